"""What every pod of every overlay must be: of a pinned image, without rights, with probes, bounds and writable places."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from manifests import K8S, OVERLAYS, Manifest, Pod, jobs, named, pods, quantity, services

from brgsa_platform.runtime.session import ROLE_LABEL

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
PINNED = re.compile(r"^[\w./:-]+:\d+(\.\d+)+(-[\w.]+)?$")


def every_pod() -> Iterator[tuple[str, Pod]]:
    for overlay in OVERLAYS:
        for manifest in services(overlay) + jobs(overlay):
            for pod in pods(manifest):
                yield overlay, pod


def test_images_are_pinned_by_version() -> None:
    for _, pod in every_pod():
        for container in pod.containers():
            assert PINNED.match(container["image"]), (pod.where, container["image"])
    assert not any(PINNED.match(image) for image in ("redis", "redis:latest", "redis:7", "brgsa-platform:cuda"))


def test_pods_have_no_rights() -> None:
    for _, pod in every_pod():
        pod_wide = pod.spec["securityContext"]
        assert pod_wide["runAsNonRoot"] is True, pod.where
        assert pod_wide["runAsUser"] >= 999, pod.where
        assert pod_wide["seccompProfile"] == {"type": "RuntimeDefault"}, pod.where
        assert not any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), pod.where
        assert not any("hostPath" in volume for volume in pod.spec.get("volumes", [])), pod.where
        for container in pod.containers():
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, (pod.where, container["name"])


def test_only_the_autoscaler_sees_a_token() -> None:
    seen = set()
    for overlay, pod in every_pod():
        assert pod.spec["automountServiceAccountToken"] is False, pod.where
        for container in pod.containers():
            if any(mount["mountPath"].startswith(TOKEN) for mount in container.get("volumeMounts", [])):
                seen.add(container["name"])
                assert overlay != "kueue"
    assert seen == {"autoscaler"}


def test_who_has_the_token_reads_nothing_that_jobs_write() -> None:
    for _, pod in every_pod():
        places = {c["name"]: {m["name"] for m in c["volumeMounts"]} for c in pod.containers()}
        holder = places.pop("autoscaler", set())
        assert not any(holder & others for others in places.values()), pod.where
        # No volume is left that nobody mounts.
        assert {volume["name"] for volume in pod.spec["volumes"]} <= holder.union(*places.values()), pod.where


def test_what_is_written_has_a_place() -> None:
    for _, pod in every_pod():
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for container in pod.containers():
            places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert "emptyDir" in volumes[places["/tmp"]], pod.where
            if "/brgsa-" in f"/{container['image']}":
                assert "emptyDir" in volumes[places["/var/lib/brgsa"]], (pod.where, container["name"])
            claimed = volumes.keys() | {"data"}  # a StatefulSet's own claim
            assert set(places.values()) <= claimed, pod.where


def test_shared_memory_holds_the_object_store() -> None:
    for _, pod in every_pod():
        for container in pod.containers():
            if container["name"] in ("ray-head", "ray-worker"):
                mount = next(m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm")
                volume = next(v for v in pod.spec["volumes"] if v["name"] == mount["name"])["emptyDir"]
                memory = quantity(container["resources"]["limits"]["memory"])
                assert volume["medium"] == "Memory"
                # Ray's store is 30 % of the memory; what is in it counts towards the container's limit.
                assert 0.3 * memory <= quantity(volume["sizeLimit"]) <= 0.5 * memory, pod.where


def test_resources_are_bounded() -> None:
    for _, pod in every_pod():
        for container in pod.containers():
            asked, bound = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory"} <= asked.keys() <= bound.keys(), pod.where
            assert all(quantity(asked[name]) <= quantity(bound[name]) for name in asked), pod.where
            if container["name"] == "ray-worker":  # Ray counts the limit, the scheduler the request
                assert asked == bound, pod.where


def test_services_and_ray_nodes_have_probes() -> None:
    for _, pod in every_pod():
        for container in pod.containers():
            if container["name"] not in ("autoscaler", "ray-job-submitter"):
                assert {"livenessProbe", "readinessProbe"} <= container.keys(), (pod.where, container["name"])
                ports = {port["name"] for port in container["ports"]}
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    http = container.get(probe, {}).get("httpGet")
                    assert http is None or http["port"] in ports, (pod.where, probe)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_named_is_there(overlay: str) -> None:
    """Accounts, priorities, settings and claims that pods name are among the services."""
    there = {(m["kind"], m["metadata"]["name"]) for m in services(overlay)}
    for manifest in services(overlay) + jobs(overlay):
        for pod in pods(manifest):
            assert ("PriorityClass", pod.spec["priorityClassName"]) in there, pod.where
            if "serviceAccountName" in pod.spec:
                assert ("ServiceAccount", pod.spec["serviceAccountName"]) in there, pod.where
            for volume in pod.spec.get("volumes", []):
                if "persistentVolumeClaim" in volume:
                    assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
                if "configMap" in volume:
                    assert ("ConfigMap", volume["configMap"]["name"]) in there
            for container in pod.containers():
                for source in container.get("envFrom", []):
                    assert ("ConfigMap", source["configMapRef"]["name"]) in there, pod.where


def test_drains_stop_at_databases_and_drivers() -> None:
    for overlay in OVERLAYS:
        budgets = [m["spec"] for m in services(overlay) if m["kind"] == "PodDisruptionBudget"]
        for manifest in services(overlay) + jobs(overlay):
            for pod in pods(manifest):
                held = [b for b in budgets if b["selector"]["matchLabels"].items() <= pod.labels.items()]
                worker, submitter = pod.labels.get("ray.io/node-type") == "worker", pod.where.endswith("submitter")
                assert len(held) == (0 if worker or submitter else 1), pod.where


def test_gpus_are_asked_of_the_right_nodes() -> None:
    for overlay in ("airgapped", "gpu", "kueue", "spot"):
        for manifest in jobs(overlay):
            for pod in pods(manifest):
                gpus = "nvidia.com/gpu" in pod.containers()[0]["resources"]["limits"]
                selector = pod.spec.get("nodeSelector", {})
                assert ("nvidia.com/gpu.product" in selector) == gpus, pod.where
                assert any(t["key"] == "nvidia.com/gpu" for t in pod.spec.get("tolerations", [])) == gpus, pod.where
                if overlay == "spot" and pod.labels.get("ray.io/node-type"):
                    assert selector["karpenter.sh/capacity-type"] == ("spot" if gpus else "on-demand"), pod.where
    assert not any("nvidia.com/gpu" in str(manifest) for manifest in services("kind") + jobs("kind"))


def test_a_training_pod_tells_ray_that_it_ends_and_has_time_to_leave() -> None:
    found = 0
    for overlay in OVERLAYS:
        for manifest in jobs(overlay):
            for pod in pods(manifest):
                if "nvidia.com/gpu" in pod.containers()[0]["resources"]["limits"]:
                    (command,) = pod.containers()[0]["lifecycle"]["preStop"]["exec"]["command"][2:]
                    drain, wait = command.split("; ")
                    assert drain.startswith("ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
                    assert int(drain.split()[-1]) == int(wait.split()[-1]) < pod.spec["terminationGracePeriodSeconds"]
                    found += 1
    assert found


def test_nodes_have_the_roles_that_the_platform_looks_for() -> None:
    for overlay in OVERLAYS:
        for manifest in jobs(overlay):
            groups = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
            roles = {group["groupName"]: group["labels"][ROLE_LABEL] for group in groups}
            assert roles == {"data": "data", "gpu": "training"} or roles == {"data": "data"}, overlay


def test_airgapped_takes_images_from_one_registry_and_stays_offline() -> None:
    for manifest in services("airgapped") + jobs("airgapped"):
        for pod in pods(manifest):
            assert pod.spec["imagePullSecrets"] == [{"name": "brgsa-registry"}], pod.where
            assert all(c["image"].startswith("registry.example.org/brgsa/") for c in pod.containers()), pod.where
    assert named(services("airgapped"), "ConfigMap", "brgsa")["data"]["HF_HUB_OFFLINE"] == "1"


def secrets_named(manifest: Manifest) -> set[tuple[str, str]]:
    """(secret, key) that a manifest refers to; KubeRay reads the token's by itself."""
    secrets: set[tuple[str, str]] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if "secretKeyRef" in node:
                secrets.add((node["secretKeyRef"]["name"], node["secretKeyRef"]["key"]))
            if "authOptions" in node:
                secrets.add((node["authOptions"]["secretName"], "auth_token"))
            for entry in node.values():
                walk(entry)
        elif isinstance(node, list):
            for entry in node:
                walk(entry)

    walk(manifest)
    return secrets


def test_secrets_are_named_and_the_readme_makes_them() -> None:
    readme = (K8S / "README.md").read_text()
    for overlay in OVERLAYS:
        for manifest in services(overlay) + jobs(overlay):
            assert manifest["kind"] != "Secret"
            for name, key in secrets_named(manifest):
                command = next(line for line in readme.replace("\\\n", " ").splitlines() if f"generic {name} " in line)
                assert f"--from-literal={key}=" in command, (name, key)
