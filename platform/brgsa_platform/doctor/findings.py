"""What the answers to `brgsa doctor`'s probes mean: findings with their mends. Nothing here looks at a machine.

`facts` maps a node's name to what a probe returned there, or to a `ProbeFailure`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brgsa_platform.doctor.nodes import AllReduce, ProbeFailure
from brgsa_platform.runtime.addresses import is_loopback
from brgsa_platform.runtime.console import byte_size

OK, WARN, FAIL = "ok", "warn", "fail"

SKEW = 0.5  # seconds between two clocks that still do no harm
SLOW_STORAGE = 20.0  # MB/s: below it, a checkpoint of 2 GB takes two minutes
SLOW_TRANSFER = 100.0  # MB/s between two nodes: about a network of 1 Gbit/s
SLOW_REDUCE = 0.1  # GB/s
SLOW_ANSWER = 2.0  # seconds of MLflow
SPILL_FULL = 0.95  # share of a disk in use at which Ray stops spilling
GIB = 2**30

SAME_IMAGE = (
    "Give every node the same image, or install the same versions there: pip install -c constraints.txt --editable ."
)
TOKEN = (
    "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (the file with its token) for the cluster and for every client."
)

Facts = Mapping[str, Mapping[str, Any] | ProbeFailure]


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        name: what was looked at.
        state: "ok", "warn" or "fail".
        found: what was seen.
        mend: what to do, in one sentence; empty where all is well.
    """

    name: str
    state: str
    found: str
    mend: str = ""


def judge_nodes(names: list[str], unresponsive: Mapping[str, str], departed: int = 0) -> list[Finding]:
    """Every node must answer.

    Args:
        names: the nodes that answered every question.
        unresponsive: node → why it is asked no more.
        departed: number of nodes that have left the cluster since its start.
    """
    mend = "Look at the node's raylet.out and its memory, then restart it or remove it from the cluster."
    failed = [Finding("nodes", FAIL, f"{name}: {reason}", mend) for name, reason in unresponsive.items()]
    left = f"; {departed} have left since it was started" if departed else ""
    return failed or [Finding("nodes", OK, f"{_count(len(names), 'node')} answered: {', '.join(names)}{left}")]


def judge_versions(facts: Facts) -> list[Finding]:
    """Versions must be the same everywhere, in the command's own process too."""
    bad = _probe_failures("versions", facts, "Install brgsa's environment on that node.")
    known = _answers(facts)
    packages = list(dict.fromkeys(package for fact in known.values() for package in fact))
    for package in packages:
        by_version: dict[str, list[str]] = defaultdict(list)
        for name, fact in known.items():
            version = fact.get(package)
            if version is None and package == "commit":
                continue  # an installed wheel has no commit
            by_version[(version or "missing")[: 12 if package == "commit" else None]].append(name)
        if len(by_version) > 1 or "missing" in by_version:
            text = "; ".join(f"{version} on {', '.join(names)}" for version, names in by_version.items())
            bad.append(Finding("versions", FAIL, f"{package}: {text}", SAME_IMAGE))
    if bad or not known:
        return bad
    first = next(iter(known.values()))
    commit = f", commit {str(first['commit'])[:12]}" if first.get("commit") else ""
    same = ", ".join(f"{package} {version}" for package, version in first.items() if package != "commit")
    return [Finding("versions", OK, f"{same}{commit}{' on every node' if len(known) > 2 else ''}")]


def judge_gpus(facts: Facts, counted: Mapping[str, float]) -> list[Finding]:
    """Ray, the driver and torch must see the same GPUs; a cluster without any is fine.

    Args:
        counted: node → GPUs that Ray counts there; empty without Ray.
    """
    bad = _probe_failures("GPUs", facts, "Run nvidia-smi and `python -c 'import torch'` on that node.")
    fine: list[str] = []
    drivers = defaultdict(list)
    for name, fact in _answers(facts).items():
        ray_counts, torch_sees = int(counted.get(name, 0)), int(fact["seen"])
        build = f"torch built for CUDA {fact['torch_cuda']}" if fact["torch_cuda"] else "torch built without CUDA"
        driver = f"driver {fact['driver']} (CUDA {fact['driver_cuda']})"
        if fact["driver"]:
            drivers[fact["driver"]].append(name)
        if torch_sees < max(ray_counts, 1 if fact["listed"] else 0):
            bad.append(_unseen_gpus(name, fact, ray_counts, f"{build}, {driver}" if fact["driver"] else build))
        elif torch_sees > ray_counts and counted:
            text = f"{name}: Ray counts {ray_counts} of {torch_sees} GPUs that torch sees"
            mend = f"Start Ray there with --num-gpus={torch_sees} to use all of them."
            bad.append(Finding("GPUs", WARN, text, mend))
        elif torch_sees:
            fine.append(f"{name}: {torch_sees}× {fact['listed'][0] if fact['listed'] else 'GPU'}, {driver}, {build}")
    if len(drivers) > 1:
        text = "; ".join(f"driver {version} on {', '.join(names)}" for version, names in drivers.items())
        bad.append(Finding("GPUs", WARN, text, "Install the same driver on every GPU node."))
    if fine:
        bad.append(Finding("GPUs", OK, "; ".join(fine)))
    if not bad and facts:
        return [Finding("GPUs", OK, "no GPU; everything runs on CPUs, slowly")]
    return bad


def _unseen_gpus(name: str, fact: Mapping[str, Any], ray_counts: int, software: str) -> Finding:
    listed = len(fact["listed"])
    text = f"{name}: torch sees {fact['seen']} GPUs, Ray counts {ray_counts}, nvidia-smi lists {listed}; {software}"
    mend = "Install the CUDA build of torch that this driver supports, and give the container its GPUs."
    if not listed:
        mend = "Give the container its GPUs (nvidia.com/gpu in its limits), or start Ray with --num-gpus=0."
    return Finding("GPUs", FAIL, text, mend)


def judge_shared_memory(facts: Facts, stores: Mapping[str, float]) -> list[Finding]:
    """Ray's object store must lie in /dev/shm and fit there.

    Args:
        stores: node → bytes of its object store.
    """
    bad = _probe_failures("shared memory", facts, "Look at /dev/shm and at Ray's logs on that node.")
    fine = []
    for name, fact in _answers(facts).items():
        total, store, others = fact["shm_total"], stores.get(name, 0.0), fact["shm_left_behind"]
        if total is None:
            continue  # macOS
        mend = (
            f"Give the container at least {byte_size(store * 1.1)} of /dev/shm (docker --shm-size, in Kubernetes an emptyDir "
            "with medium: Memory), or start Ray with a smaller --object-store-memory."
        )
        has = f"{name}: /dev/shm has {byte_size(total)}" + (f", Ray's object store {byte_size(store)}" if store else "")
        if fact["store_folder"] and not str(fact["store_folder"]).startswith("/dev/shm"):
            text = f"{has} and lies in {fact['store_folder']}, on a disk, where it is slow"
            bad.append(Finding("shared memory", WARN, text, mend))
        elif total < store:
            text = f"{has}: a process that fills it dies of SIGBUS"
            bad.append(Finding("shared memory", FAIL, text, mend))
        elif total - others < store:
            text = f"{has}, and other files there take {byte_size(others)}"
            mend = "Remove what dead processes left in /dev/shm, or make it larger."
            bad.append(Finding("shared memory", WARN, text, mend))
        else:
            fine.append(has)
    if bad or not facts:
        return bad
    return [Finding("shared memory", OK, "; ".join(fine) or "this system has no /dev/shm")]


def judge_memory(facts: Facts, promised: Mapping[str, float], stores: Mapping[str, float]) -> list[Finding]:
    """What Ray hands out (memory for tasks and the object store) must fit into the container's limit.

    Args:
        promised: node → bytes that Ray counts as `memory`.
        stores: node → bytes of its object store.
    """
    bad, fine = [], []
    for name, fact in _answers(facts).items():
        needs = promised.get(name, 0.0) + stores.get(name, 0.0)
        text = f"{name}: limit {byte_size(fact['limit'])}"
        if not needs:
            fine.append(text)
        elif needs > fact["limit"] * 1.01:
            text += f", but Ray hands out {byte_size(needs)}: the kernel will kill processes"
            mend = "Raise the container's memory limit, or start Ray with smaller --memory and --object-store-memory."
            bad.append(Finding("memory", FAIL, text, mend))
        else:
            fine.append(f"{text}, Ray hands out {byte_size(needs)}")
    return bad or _fine("memory", fine)


def judge_disk(facts: Facts, stores: Mapping[str, float]) -> list[Finding]:
    """There must be free space where Ray spills the objects that its store cannot hold.

    Args:
        stores: node → bytes of its object store.
    """
    bad, fine = [], []
    mend = "Free space there, or start Ray with --object-spilling-directory on a larger disk."
    for name, fact in _answers(facts).items():
        free, total = fact["disk_free"], fact["disk_total"]
        text = f"{name}: {byte_size(free)} of {byte_size(total)} free at {fact['spill_folder'] or '/tmp'}"
        if free < (1 - SPILL_FULL) * total:
            text += f"; Ray stops spilling when {SPILL_FULL:.0%} are used"
            bad.append(Finding("spill disk", FAIL, text, mend))
        elif free < stores.get(name, 0.0):
            text += f", less than the object store's {byte_size(stores[name])}"
            bad.append(Finding("spill disk", WARN, text, mend))
        else:
            fine.append(text)
    return bad or _fine("spill disk", fine)


def judge_transfers(speeds: Mapping[tuple[str, str], float | ProbeFailure], size: int, nodes: int) -> list[Finding]:
    """Objects must get from node to node, and not too slowly.

    Args:
        speeds: (from, to) → MB/s.
        size: bytes of the object.
        nodes: number of nodes, and so of ways around their ring.
    """
    name = "object store"
    bad, fine = [], {}
    for (source, target), speed in speeds.items():
        way = f"{source} to {target}" if source != target else f"into {source}"
        if isinstance(speed, ProbeFailure):
            mend = "Open the nodes' ports to each other (object manager, node manager, workers), in both directions."
            bad.append(Finding(name, FAIL, f"{way}: {speed.reason}", mend))
        elif speed < SLOW_TRANSFER:
            text = f"{way}: {size / 2**20:.0f} MiB at {speed:.0f} MB/s"
            mend = "Use a faster network, or keep data and training on the same nodes."
            bad.append(Finding(name, WARN, text, mend))
        else:
            fine[way] = speed
    missed = nodes - len(speeds)
    rest = f"; {missed} ways not measured for lack of time" if missed > 0 else ""
    if fine:
        slowest = min(fine, key=lambda way: fine[way])
        text = f"{size / 2**20:.0f} MiB at {fine[slowest]:.0f} MB/s {slowest}"
        bad.append(Finding(name, OK, text + (", the slowest way" if len(fine) > 1 else "") + rest))
    return bad


def judge_storage(name: str, url: str, here: Mapping[str, Any] | ProbeFailure, facts: Facts) -> list[Finding]:
    """A folder must be the same one on every node, be writable, and not too slow.

    Args:
        here: what the probe returned in this process.
    """
    if reason := _storage_error(here):
        mend = "Give a folder or s3:// URL that this user may write, and look at its mount or its credentials."
        return [Finding(name, FAIL, f"{url}: {reason}", mend)]
    bad = []
    blind = [node for node, fact in _answers(facts).items() if not fact["seen"]]
    if blind:
        mend = (
            "Put it on storage that every node mounts at this path (in Kubernetes a ReadWriteMany volume), or on s3://."
        )
        bad.append(Finding(name, FAIL, f"{url} is another folder, or none, on {', '.join(blind)}", mend))
    speeds = {"this process": here}
    for node, fact in facts.items():
        if reason := _storage_error(fact):
            mend = "Let that node's user write there too, with the same mount and the same credentials."
            bad.append(Finding(name, FAIL, f"{url} on {node}: {reason}", mend))
        elif node not in blind:
            speeds[node] = fact
    slowest = {}  # way → (MB/s, where)
    for way in ("write", "read"):
        slowest[way] = min((float(fact[way]), node) for node, fact in _answers(speeds).items())
        speed, node = slowest[way]
        if speed < SLOW_STORAGE:
            text = f"{url}: {node} can {way} only {speed:.0f} MB/s"
            bad.append(Finding(name, WARN, text, "Use faster storage: checkpoints and volumes go through it."))
    seen = ", seen from every node" if facts else ""
    text = f"{url}: write {slowest['write'][0]:.0f} MB/s, read {slowest['read'][0]:.0f} MB/s{seen}"
    return bad or [Finding(name, OK, text)]


def _storage_error(fact: Mapping[str, Any] | ProbeFailure) -> str | None:
    return fact.reason if isinstance(fact, ProbeFailure) else fact["error"]


def judge_tracking(shown: str, facts: Facts, nodes: int) -> list[Finding]:
    """Every node must reach MLflow with its own credentials; a SQLite file serves one machine only.

    Args:
        shown: the tracking store's address without a password.
        facts: of "this process" and of each node: seconds or error.
        nodes: number of nodes of the cluster.
    """
    if ("://" not in shown or shown.startswith(("sqlite:", "file:"))) and nodes > 1:
        mend = "Run a tracking server and set MLFLOW_TRACKING_URI=http://HOST:5000 here and on every node (docs/doctor.md)."
        return [Finding("MLflow", FAIL, f"{shown} is a file of one machine, and the cluster has {nodes} nodes", mend)]
    bad = []
    for node, fact in facts.items():
        if not (reason := _storage_error(fact)):
            continue
        mend = "Start the server, or correct MLFLOW_TRACKING_URI and the network between it and the nodes."
        if any(status in reason for status in ("401", "403")):
            mend = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD there to a user of the server."
        if not isinstance(fact, ProbeFailure):
            mend = fact.get("mend") or mend
        bad.append(Finding("MLflow", FAIL, f"from {node}: {reason}" + f" ({shown})" * (shown not in reason), mend))
    if bad:
        return bad
    took = [fact["seconds"] for fact in _answers(facts).values() if fact["seconds"] is not None]
    if not took:
        return [Finding("MLflow", OK, f"{shown} is made by the first run")]
    text = f"{shown} answers within {max(took):.2f} s"
    if max(took) > SLOW_ANSWER:
        return [Finding("MLflow", WARN, text, "Give the server a PostgreSQL database and more workers.")]
    return [Finding("MLflow", OK, text + (", from every node too" if len(facts) > 1 else ""))]


def judge_clocks(offsets: Mapping[str, tuple[float, float]]) -> list[Finding]:
    """The clocks of the nodes and of this process must agree.

    Args:
        offsets: node → (seconds that its clock is ahead of this process' clock, uncertainty in seconds).
    """
    if not offsets:
        return []
    all_offsets = {"this process": (0.0, 0.0), **offsets}
    behind = min(all_offsets, key=lambda name: all_offsets[name][0])
    ahead = max(all_offsets, key=lambda name: all_offsets[name][0])
    skew = all_offsets[ahead][0] - all_offsets[behind][0]
    uncertainty = all_offsets[ahead][1] + all_offsets[behind][1]
    if skew - uncertainty > SKEW:
        text = f"the clock of {ahead} is {skew:.1f} s ahead of that of {behind}"
        return [Finding("clocks", WARN, text, "Run chrony or another NTP client on every node.")]
    return [Finding("clocks", OK, f"at most {skew * 1000:.0f} ms apart (±{uncertainty * 1000:.0f} ms)")]


def judge_all_reduce(result: AllReduce | ProbeFailure | None, size: int) -> list[Finding]:
    """Two training processes must reach each other, and not too slowly.

    Args:
        result: None where no two CPUs were free.
        size: bytes of the tensor.
    """
    name = "all-reduce"
    if result is None:
        mend = "Run the doctor again when two CPUs are free."
        return [Finding(name, WARN, "not measured: the cluster has no two CPUs free", mend)]
    if isinstance(result, ProbeFailure):
        mend = "Open all ports between the nodes, and set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to the network card."
        return [Finding(name, FAIL, result.reason, mend)]
    speed = size / 1e9 / result.seconds
    where = " and ".join(result.nodes) if len(result.nodes) > 1 else f"two processes on {result.nodes[0]}"
    text = f"{size / 2**20:.0f} MiB over {result.backend} in {result.seconds * 1000:.0f} ms, {speed:.2f} GB/s ({where})"
    if speed < SLOW_REDUCE:
        return [Finding(name, WARN, text, "Train on one node, or on nodes with a faster network.")]
    return [Finding(name, OK, text)]


def judge_access(token: bool, dashboard: str | None) -> list[Finding]:
    """Only who has the token may give the cluster work: without one, everybody who reaches a port of it can.

    Args:
        token: whether the cluster asks for one.
        dashboard: HOST:PORT or a URL; None where no dashboard runs.
    """
    text = "Ray asks for no token: whoever reaches a port of it runs code there"
    access = [Finding("token", OK, "Ray asks for a token") if token else Finding("token", WARN, text, TOKEN)]
    if dashboard and not is_loopback(dashboard):
        mend = "Start the head with --dashboard-host=127.0.0.1 and reach it through ssh -L or kubectl port-forward."
        text = f"the dashboard listens at {dashboard}, not on loopback only"
        return [*access, Finding("dashboard", WARN, text, mend)]
    return [*access, Finding("dashboard", OK, f"on loopback, {dashboard}" if dashboard else "none runs")]


def _answers(facts: Facts) -> dict[str, Mapping[str, Any]]:
    return {node: fact for node, fact in facts.items() if not isinstance(fact, ProbeFailure)}


def _probe_failures(name: str, facts: Facts, mend: str) -> list[Finding]:
    failures = {node: fact.reason for node, fact in facts.items() if isinstance(fact, ProbeFailure)}
    return [Finding(name, FAIL, f"{node}: {reason}", mend) for node, reason in failures.items()]


def _fine(name: str, texts: list[str]) -> list[Finding]:
    return [Finding(name, OK, "; ".join(texts))] if texts else []


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + "s" * (number != 1)
