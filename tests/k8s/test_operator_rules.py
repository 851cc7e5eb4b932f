"""Rules that KubeRay's operator and Kueue have and that no schema holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from manifests import OVERLAYS, Manifest, job, jobs, named, services

SHELL = set(";|&$`<>(){}*?\\\"'\n")  # the submitter's shell would read them before Ray does


def faults(job: Manifest) -> list[str]:
    """What the operator would refuse, or take another way than it is meant."""
    spec, cluster = job["spec"], job["spec"].get("rayClusterSpec", {})
    sidecar = spec.get("submissionMode") == "SidecarMode"
    auth, auto = cluster.get("authOptions", {}), cluster.get("enableInTreeAutoscaling", False)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    restart = {group["template"]["spec"].get("restartPolicy", "Never") for group in groups}
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    version = tuple(int(part) for part in cluster["rayVersion"].split("."))
    start = cluster["headGroupSpec"]["rayStartParams"]
    rules = {
        "name above 47 characters": len(job["metadata"]["name"]) > 47,
        "TTL without shutdown": spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown,
        "deletionRules beside shutdown": bool(spec.get("deletionStrategy", {}).get("deletionRules")) and shutdown,
        "suspend without shutdown": spec.get("suspend", False) and not shutdown,
        "sidecar with a submitter's template": sidecar and "submitterPodTemplate" in spec,
        "retry of a job without a cluster of its own": spec.get("backoffLimit", 0) > 0
        and ("clusterSelector" in spec or spec.get("submissionMode") == "InteractiveMode"),
        "autoscaler v2 with restarts": auto
        and cluster["autoscalerOptions"].get("version") == "v2"
        and restart != {"Never"},
        "token before Ray 2.52": auth.get("mode") == "token" and version < (2, 52, 0),
        "num-cpus that is no string": not all(isinstance(g["rayStartParams"].get("num-cpus", ""), str) for g in groups),
        "Redis' password in rayStartParams": "redis-password" in start,
        "shell in the entrypoint": bool(SHELL & set(spec["entrypoint"])),
        "queue beside an autoscaler": "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"] and auto,
        "more groups than Kueue takes": len(groups) + 1 > 8,
        "alpha": any(key in cluster for key in ("networkPolicy", "tlsOptions"))
        or cluster.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb",
    }
    return [rule for rule, broken in rules.items() if broken]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_operator_takes_every_job(overlay: str) -> None:
    assert {j["metadata"]["name"]: faults(j) for j in jobs(overlay)} == {
        j["metadata"]["name"]: [] for j in jobs(overlay)
    }


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda j: j["metadata"].update(name="brgsa-" + 42 * "x"), "name above 47 characters"),
        (lambda j: j["spec"].update(shutdownAfterJobFinishes=False), "TTL without shutdown"),
        (lambda j: j["spec"].update(submissionMode="SidecarMode"), "sidecar with a submitter's template"),
        (
            lambda j: j["spec"].update(clusterSelector={"ray.io/cluster": "x"}),
            "retry of a job without a cluster of its own",
        ),
        (
            lambda j: j["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(restartPolicy="Always"),
            "autoscaler v2 with restarts",
        ),
        (lambda j: j["spec"]["rayClusterSpec"].update(rayVersion="2.51.0"), "token before Ray 2.52"),
        (lambda j: j["spec"].update(entrypoint="brgsa tune || brgsa tune"), "shell in the entrypoint"),
        (lambda j: j["metadata"]["labels"].update({"kueue.x-k8s.io/queue-name": "q"}), "queue beside an autoscaler"),
    ],
)
def test_a_broken_rule_is_noticed(change: Callable[[dict[str, Any]], None], rule: str) -> None:
    broken = copy.deepcopy(job("gpu", "train"))
    change(broken)
    assert rule in faults(broken)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_finished_job_leaves_nothing_and_a_failed_one_is_tried_again(overlay: str) -> None:
    for entry in jobs(overlay):
        spec = entry["spec"]
        assert spec["shutdownAfterJobFinishes"] is True
        assert 0 < spec["ttlSecondsAfterFinished"] <= 86400
        assert spec["backoffLimit"] >= 1
        assert "gcsFaultToleranceOptions" not in spec["rayClusterSpec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_heads_run_no_work_and_ask_for_a_token(overlay: str) -> None:
    clusters = [m["spec"] for m in services(overlay) if m["kind"] == "RayCluster"]
    clusters += [entry["spec"]["rayClusterSpec"] for entry in jobs(overlay)]
    for cluster in clusters:
        assert cluster["rayVersion"] == "2.60.0"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["authOptions"] == {"mode": "token", "secretName": "brgsa-ray-token"}


def test_the_standing_cluster_survives_its_head() -> None:
    options = named(services("gpu"), "RayCluster", "brgsa")["spec"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "brgsa-redis:6379"
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "brgsa-redis", "key": "password"}}}
