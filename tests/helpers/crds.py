"""KubeRay's schemas as an API server applies them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml


@functools.cache
def ray_schema(folder: Path, plural: str) -> Any:
    """A kind's schema that refuses unknown fields; `folder` holds KubeRay's CRDs."""
    crd = yaml.load((folder / f"ray.io_{plural}.yaml").read_text(), yaml.CSafeLoader)
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if isinstance(schema.get("required"), list):  # a field with a default is filled in before it is missed
        made["required"] = [key for key in schema["required"] if "default" not in schema["properties"].get(key, {})]
    return made
