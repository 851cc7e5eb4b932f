"""Everything that an overlay renders, against the schemas of its kind; and that a broken field is noticed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from manifests import BUILT_IN, K8S, OVERLAYS, job, jobs, named, ray_faults, services

GROUPS = ("ray.io/v1", "kueue.x-k8s.io/v1beta2")  # kinds that Kubernetes itself does not know


@pytest.mark.shared
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_kinds_are_valid(overlay: str, shared_data: Path) -> None:
    ray_manifests = [m for m in services(overlay) + jobs(overlay) if m["apiVersion"] == "ray.io/v1"]
    assert ray_manifests
    for manifest in ray_manifests:
        assert ray_faults(manifest, shared_data / "kuberay-crds") == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_built_in_kinds_are_valid(overlay: str) -> None:
    for manifest in [m for m in services(overlay) if m["apiVersion"] not in GROUPS]:
        validate_once(json.dumps(manifest))


@cache
def validate_once(manifest: str) -> None:
    """Raise for JSON that Kubernetes would refuse; a manifest that several overlays share is validated once."""
    kubernetes_validate.validate(json.loads(manifest), BUILT_IN, strict=True)


def test_jobs_are_rayjobs_alone() -> None:
    for overlay in OVERLAYS:
        assert {m["kind"] for m in jobs(overlay)} == {"RayJob"}
        assert "RayJob" not in {m["kind"] for m in services(overlay)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_has_a_namespace_is_in_this_one(overlay: str) -> None:
    wide = {"Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue", "WorkloadPriorityClass"}
    for manifest in services(overlay) + jobs(overlay):
        expected = None if manifest["kind"] in wide else "brgsa"
        assert manifest["metadata"].get("namespace") == expected, manifest["metadata"]["name"]


Break = Callable[[dict[str, Any]], None]

DELETION = {
    "deletionRules": [
        {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}}
    ]
}


def container(job: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    container: dict[str, Any] = pod["containers"][0]
    return container


@pytest.mark.shared
@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda j: container(j).update(imagge="x"), "imagge"),  # unknown fields, which a CRD's schema alone lets pass
        (lambda j: j["spec"].update(ttlSecondsAfterFinish=1), "ttlSecondsAfterFinish"),
        (lambda j: container(j).pop("name"), "name"),  # a field without a default
        (lambda j: container(j)["resources"]["limits"].update(memory="much"), "much"),  # a number or a text
        (lambda j: j["spec"].update(deletionStrategy=DELETION), "cannot be used together"),  # only a CEL rule knows
    ],
)
def test_a_broken_job_is_noticed(fault: Break, named: str, shared_data: Path) -> None:
    """By what this project makes of KubeRay's schema."""
    broken = copy.deepcopy(job("gpu", "train"))
    fault(broken)
    assert any(named in line for line in ray_faults(broken, shared_data / "kuberay-crds"))


def test_an_unknown_field_of_a_service_is_noticed() -> None:
    broken = copy.deepcopy(named(services("gpu"), "Deployment", "brgsa-mlflow"))
    broken["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, BUILT_IN, strict=True)


def test_no_file_is_left_out() -> None:
    """A manifest that no kustomization names would be believed to be there."""
    for file in K8S.rglob("*.yaml"):
        if file.name != "kustomization.yaml":
            assert file.name in (file.parent / "kustomization.yaml").read_text(), file
