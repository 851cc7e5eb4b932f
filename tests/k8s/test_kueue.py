"""The queue: Kueue's kinds, and the jobs that wait in it.

No schema of Kueue is to be had here, so the fields that its documentation of v1beta2 shows stand below, and no others.
"""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from manifests import Manifest, jobs, named, pods, quantity, services

API = "kueue.x-k8s.io/v1beta2"


def fields(required: str = "", **known: Any) -> dict[str, Any]:
    return {"type": "object", "properties": known, "required": required.split(), "additionalProperties": False}


def many(entry: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": entry, "minItems": 1}


TEXT = {"type": "string"}
LABELS = {"type": "object", "additionalProperties": TEXT}
QUOTA = fields("name nominalQuota", name=TEXT, nominalQuota=TEXT)
FLAVOR = fields("name resources", name=TEXT, resources=many(QUOTA))
STOPS = {"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]}
SPECS = {
    "ResourceFlavor": fields(spec=fields(nodeLabels=LABELS)),
    "LocalQueue": fields("spec", spec=fields("clusterQueue", clusterQueue=TEXT)),
    "WorkloadPriorityClass": fields("value", value={"type": "integer"}, description=TEXT),
    "ClusterQueue": fields(
        "spec",
        spec=fields(
            "resourceGroups",
            namespaceSelector=fields(matchLabels=LABELS),
            queueingStrategy={"enum": ["StrictFIFO", "BestEffortFIFO"]},
            preemption=fields(withinClusterQueue=STOPS),
            resourceGroups=many(
                fields("coveredResources flavors", coveredResources=many(TEXT), flavors=many(FLAVOR)),
            ),
        ),
    ),
}


def check(manifest: Manifest) -> None:
    about = ("apiVersion", "kind", "metadata")
    jsonschema.validate({k: v for k, v in manifest.items() if k not in about}, SPECS[manifest["kind"]])


def test_kueues_kinds_have_known_fields_alone() -> None:
    found = [manifest for manifest in services("kueue") if manifest["apiVersion"] == API]
    assert {manifest["kind"] for manifest in found} == SPECS.keys()
    for manifest in found:
        check(manifest)


def test_a_broken_queue_is_noticed() -> None:
    for breaks in (
        lambda q: q["spec"].update(cohorts=["x"]),
        lambda q: q["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0].update(nominalQuota=96),
        lambda q: q["spec"]["preemption"].update(withinClusterQueue="Always"),
    ):
        broken = copy.deepcopy(named(services("kueue"), "ClusterQueue", "brgsa"))
        breaks(broken)
        with pytest.raises(jsonschema.ValidationError):
            check(broken)


def test_jobs_of_the_queue_wait_and_fit_its_quota() -> None:
    queued = services("kueue")
    queue = named(queued, "LocalQueue", "brgsa")
    cluster_queue = named(queued, "ClusterQueue", queue["spec"]["clusterQueue"])
    flavors = {m["metadata"]["name"] for m in queued if m["kind"] == "ResourceFlavor"}
    classes = {m["metadata"]["name"] for m in queued if m["kind"] == "WorkloadPriorityClass"}
    quota = {}
    for group in cluster_queue["spec"]["resourceGroups"]:
        for flavor in group["flavors"]:
            assert flavor["name"] in flavors
            assert [r["name"] for r in flavor["resources"]] == group["coveredResources"]
            quota |= {r["name"]: quantity(r["nominalQuota"]) for r in flavor["resources"]}
    for entry in jobs("kueue"):
        labels = entry["metadata"]["labels"]
        assert entry["spec"]["suspend"] is True
        assert labels["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
        assert labels["kueue.x-k8s.io/priority-class"] in classes
        assert all(asked <= quota[name] for name, asked in requests(entry).items()), entry["metadata"]["name"]
    assert "RayCluster" not in {m["kind"] for m in queued}


def requests(job: Manifest) -> dict[str, float]:
    """What the pods of a job that has just begun ask for together."""
    replicas = {f"group {g['groupName']}": g["replicas"] for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    total: dict[str, float] = {}
    for pod in pods(job):
        times = next((count for group, count in replicas.items() if pod.where.endswith(group)), 1)
        for container in pod.containers():
            for name, asked in container["resources"]["requests"].items():
                total[name] = total.get(name, 0) + times * quantity(asked)
    return total
