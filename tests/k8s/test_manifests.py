"""The manifests against KubeRay's own schemas, unknown fields refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"

pytestmark = pytest.mark.shared


def strict(schema: Any) -> Any:
    """OpenAPI v3 to JSON Schema that refuses unknown fields; fields with a default are not required (KubeRay sets them)."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if "required" in schema and isinstance(schema["required"], list):
        made["required"] = [key for key in schema["required"] if "default" not in schema["properties"].get(key, {})]
    return made


@pytest.fixture(scope="module")
def rayjob_schema(shared_data: Path) -> Any:
    crd = yaml.safe_load((shared_data / "kuberay-crds" / "ray.io_rayjobs.yaml").read_text())
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.fixture(scope="module")
def train() -> Any:
    return yaml.safe_load((K8S / "base" / "train.yaml").read_text())


def test_the_training_job_is_valid(rayjob_schema: Any, train: Any) -> None:
    jsonschema.validate(train, rayjob_schema)


def test_a_misspelt_field_is_refused(rayjob_schema: Any, train: Any) -> None:
    broken = copy.deepcopy(train)
    broken["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagge"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagge"):
        jsonschema.validate(broken, rayjob_schema)


def test_the_kustomization_lists_each_manifest() -> None:
    base = K8S / "base"
    listed = yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(p.name for p in base.glob("*.yaml") if p.name != "kustomization.yaml")
