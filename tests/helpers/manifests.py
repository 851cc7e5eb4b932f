"""What `kubectl kustomize` makes of k8s/, and the schemas that it is held to."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml
from jsonschema import Draft202012Validator
from patience import stretched

K8S = Path(__file__).resolve().parents[2] / "k8s"
OVERLAYS = ("airgapped", "gpu", "kind", "kueue", "spot")
BUILT_IN = "1.32"  # Kubernetes whose schemas built-in kinds are held to

Manifest = dict[str, Any]


@functools.cache
def render(path: str) -> list[Manifest]:
    """All documents of a kustomization below k8s/; the test skips where kubectl is absent. Copy before changing them."""
    beside = Path(sys.executable).with_name("kubectl")  # the development environment's, whatever else is on PATH
    kubectl = str(beside) if beside.exists() else shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed (it comes with the development dependencies on x86-64 and arm64)")
    limit = stretched(60)
    done = subprocess.run([kubectl, "kustomize", str(K8S / path)], capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]


def services(overlay: str) -> list[Manifest]:
    return render(f"overlays/{overlay}")


def jobs(overlay: str) -> list[Manifest]:
    return render(f"overlays/{overlay}/jobs")


def job(overlay: str, verb: str) -> Manifest:
    return next(entry for entry in jobs(overlay) if entry["metadata"]["name"] == f"brgsa-{verb}")


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)


@dataclass(frozen=True)
class Pod:
    """A pod's template and where it stands, for messages."""

    where: str
    labels: dict[str, str]
    spec: dict[str, Any]

    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(manifest: Manifest) -> Iterator[Pod]:
    """Every pod template in a manifest, the autoscaler's container among the head's, with the labels that KubeRay adds."""
    name, spec = f"{manifest['kind']}/{manifest['metadata']['name']}", manifest.get("spec", {})
    if manifest["kind"] in ("Deployment", "StatefulSet"):
        yield _pod(name, spec["template"])
    if manifest["kind"] == "RayJob":
        yield _pod(f"{name} submitter", spec["submitterPodTemplate"])
    cluster = {"RayJob": spec.get("rayClusterSpec"), "RayCluster": spec}.get(manifest["kind"])
    if cluster is None:
        return
    ray = {"ray.io/is-ray-node": "yes"}
    head = _pod(f"{name} head", cluster["headGroupSpec"]["template"], ray | {"ray.io/node-type": "head"})
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster["autoscalerOptions"]
        image = head.spec["containers"][0]["image"]  # KubeRay's choice where none is given
        beside = {"name": "autoscaler", "image": image, **options, "livenessProbe": None, "readinessProbe": None}
        head = Pod(head.where, head.labels, {**head.spec, "containers": [*head.spec["containers"], beside]})
    yield head
    for group in cluster["workerGroupSpecs"]:
        labels = ray | {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
        yield _pod(f"{name} group {group['groupName']}", group["template"], labels)


def _pod(where: str, template: dict[str, Any], labels: dict[str, str] | None = None) -> Pod:
    return Pod(where, template.get("metadata", {}).get("labels", {}) | (labels or {}), template["spec"])


def quantity(text: str | int) -> float:
    """A Kubernetes quantity in its own unit: CPUs, bytes, devices."""
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    for unit, factor in units.items():
        if str(text).endswith(unit):
            return float(str(text).removesuffix(unit)) * factor
    return float(text)


@functools.cache
def ray_schema(folder: Path, plural: str) -> Any:
    """KubeRay's schema of a kind with unknown fields refused, as a CRD's API server would refuse or drop them."""
    crd = yaml.load(
        (folder / f"ray.io_{plural}.yaml").read_text(), yaml.CSafeLoader
    )  # 1.4 MB: the other loader takes seconds
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
    if isinstance(schema.get("required"), list):
        # A field with a default is filled in before it is missed.
        made["required"] = [key for key in schema["required"] if "default" not in schema["properties"].get(key, {})]
    return made


def ray_faults(manifest: Manifest, folder: Path) -> list[str]:
    """What KubeRay's schema and its CEL rules hold against a manifest."""
    schema = ray_schema(folder, f"{manifest['kind'].lower()}s")
    found = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(manifest)]
    return found or list(_cel_faults(schema, manifest, "$"))


def _cel_faults(schema: Any, value: Any, where: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        # A rule about a change has nothing to say of a manifest alone.
        if "oldSelf" not in rule["rule"] and not cel.evaluate(rule["rule"], {"self": value}):
            yield f"{where}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for key, entry in value.items():
            below = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if isinstance(below, dict):
                yield from _cel_faults(below, entry, f"{where}.{key}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _cel_faults(schema.get("items", {}), entry, f"{where}[{index}]")
