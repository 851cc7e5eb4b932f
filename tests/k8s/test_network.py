"""Who may talk to whom, worked out from the policies as a cluster would."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from manifests import OVERLAYS, jobs, pods, services

RAY = {"ray.io/is-ray-node": "yes", "app.kubernetes.io/part-of": "brgsa"}
PEERS: dict[str, dict[str, str]] = {
    "head": RAY | {"ray.io/node-type": "head"},
    "worker": RAY | {"ray.io/node-type": "worker"},
    "submitter": {"app.kubernetes.io/name": "brgsa-submitter"},
    "mlflow": {"app.kubernetes.io/name": "brgsa-mlflow"},
    "postgres": {"app.kubernetes.io/name": "brgsa-postgres"},
    "redis": {"app.kubernetes.io/name": "brgsa-redis"},
    "stranger": {"app": "stranger"},
}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def passes(overlay: str, direction: str, of: str, other: str, port: int) -> bool:
    """Whether the policies on `of` let traffic of one direction pass; all of these pods are in one namespace."""
    for policy in (m["spec"] for m in services(overlay) if m["kind"] == "NetworkPolicy"):
        if not matches(policy["podSelector"], PEERS[of]):
            continue
        for rule in policy.get(direction, []):
            peers = rule["from" if direction == "ingress" else "to"]
            ports = [entry["port"] for entry in rule.get("ports", [])]
            here = [p for p in peers if "podSelector" in p and "namespaceSelector" not in p]
            if any(matches(p["podSelector"], PEERS[other]) for p in here) and (not ports or port in ports):
                return True
    return False


def may(overlay: str, source: str, target: str, port: int) -> bool:
    return passes(overlay, "egress", source, target, port) and passes(overlay, "ingress", target, source, port)


PORTS = (5000, 5432, 6379, 8265, 10002, 52365)
ALLOWED = {
    *((a, b, port) for a in ("head", "worker") for b in ("head", "worker") for port in PORTS),
    *((ray, "mlflow", 5000) for ray in ("head", "worker")),
    *((ray, "redis", 6379) for ray in ("head", "worker")),
    ("submitter", "head", 8265),
    ("mlflow", "postgres", 5432),
}


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay != "kueue"])
def test_only_these_talk(overlay: str) -> None:
    found = {(a, b, port) for a in PEERS for b in PEERS for port in PORTS if may(overlay, a, b, port)}
    assert found == ALLOWED


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_else_is_denied(overlay: str) -> None:
    deny = [m["spec"] for m in services(overlay) if m["metadata"]["name"] == "default-deny"]
    assert deny == [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]


def test_the_operator_reaches_the_dashboard_alone() -> None:
    rules = [
        (m["metadata"]["name"], [p["port"] for p in rule["ports"]])
        for m in services("gpu")
        if m["kind"] == "NetworkPolicy"
        for rule in m["spec"].get("ingress", [])
        if any("kuberay-operator" in str(peer) for peer in rule["from"])
    ]
    assert rules == [("ray-dashboard", [8265])]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_leaves_an_airgapped_cluster(overlay: str) -> None:
    outside = [
        ipaddress.ip_network(peer["ipBlock"]["cidr"])
        for m in services(overlay)
        if m["kind"] == "NetworkPolicy"
        for rule in m["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert any(not network.is_private for network in outside) == (overlay != "airgapped")


def test_the_labels_are_the_pods_own() -> None:
    """The policies choose pods by labels that pods really have."""
    worn = [pod.labels for m in services("gpu") + jobs("gpu") for pod in pods(m)]
    for name, labels in PEERS.items():
        assert any(labels.items() <= has.items() for has in worn) == (name != "stranger"), name
