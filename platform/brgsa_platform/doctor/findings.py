"""What the facts of `brgsa doctor` mean: a finding each, with its mend. Nothing here looks at a machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from brgsa_platform.doctor.nodes import AllReduce, ProbeFailure

OK, WARN, FAIL = "ok", "warn", "fail"

SKEW = 0.5  # seconds between two clocks that are still good enough
SLOW_STORAGE = 20.0  # MB/s: below, a checkpoint of 2 GB takes two minutes
SLOW_TRANSFER = 100.0  # MB/s between two nodes: about a network of 1 Gbit/s
SLOW_REDUCE = 0.1  # GB/s
SPILL_FULL = 0.95  # share of a disk from which on Ray spills no more
GIB = 2**30

SAME_IMAGE = (
    "Give every node the same image, or install the same versions there: pip install -c constraints.txt --editable ."
)
TOKEN = (
    "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (the file with its token) for the cluster and for every client."
)


@dataclass(frozen=True)
class Finding:
    """One line of the examination: its state is "ok", "warn" or "fail"; `mend` is one sentence, empty where all is well."""

    name: str
    state: str
    found: str
    mend: str = ""


def judge_nodes(names: list[str], silent: Mapping[str, str], gone: int = 0) -> list[Finding]:
    """Who answered."""
    left = f"; {gone} have left since it was started" if gone else ""
    mend = "Look at the node's raylet.out and its memory, then restart it or remove it from the cluster."
    found = [Finding("nodes", FAIL, f"{name}: {why}", mend) for name, why in silent.items()]
    return found or [Finding("nodes", OK, f"{_count(len(names), 'node')} answered: {', '.join(names)}{left}")]


def judge_versions(facts: Mapping[str, Mapping[str, str | None] | ProbeFailure]) -> list[Finding]:
    """Versions must be the same everywhere, the command's own process included."""
    found = _probe_failures("versions", facts, "Install brgsa's environment on that node.")
    known = {name: fact for name, fact in facts.items() if not isinstance(fact, ProbeFailure)}
    packages = list(dict.fromkeys(package for fact in known.values() for package in fact))
    for package in packages:
        by_version: dict[str, list[str]] = defaultdict(list)
        for name, fact in known.items():
            version = fact.get(package)
            if version is None and package == "commit":
                continue  # an installed wheel has none
            by_version[(version or "missing")[: 12 if package == "commit" else None]].append(name)
        if len(by_version) > 1 or "missing" in by_version:
            text = "; ".join(f"{version} on {', '.join(names)}" for version, names in by_version.items())
            found.append(Finding("versions", FAIL, f"{package}: {text}", SAME_IMAGE))
    if found or not known:
        return found
    first = next(iter(known.values()))
    commit = f", commit {str(first['commit'])[:12]}" if first.get("commit") else ""
    same = ", ".join(f"{package} {version}" for package, version in first.items() if package != "commit")
    return [Finding("versions", OK, f"{same}{commit}{' on every node' if len(known) > 2 else ''}")]


def judge_gpus(facts: Mapping[str, Mapping[str, Any] | ProbeFailure], counted: Mapping[str, float]) -> list[Finding]:
    """Ray, the driver and torch must agree; none at all is no failure."""
    found = _probe_failures("GPUs", facts, "Run nvidia-smi and `python -c 'import torch'` on that node.")
    seen, drivers = [], defaultdict(list)
    for name, fact in facts.items():
        if isinstance(fact, ProbeFailure):
            continue
        listed, torch_sees, ray_counts = len(fact["listed"]), int(fact["seen"]), int(counted.get(name, 0))
        build = f"torch built for CUDA {fact['torch_cuda']}" if fact["torch_cuda"] else "torch built without CUDA"
        driver = f"driver {fact['driver']} (CUDA {fact['driver_cuda']})"
        if fact["driver"]:
            drivers[fact["driver"]].append(name)
        if torch_sees < max(ray_counts, 1 if listed else 0):
            text = f"{name}: torch sees {torch_sees} GPUs, Ray counts {ray_counts}, nvidia-smi lists {listed}; {build}"
            mend = "Install the CUDA build of torch that this driver supports, and give the container its GPUs."
            if not listed:
                mend = "Give the container its GPUs (nvidia.com/gpu in its limits), or start Ray with --num-gpus=0."
            found.append(Finding("GPUs", FAIL, f"{text}, {driver}" if fact["driver"] else text, mend))
        elif torch_sees > ray_counts and counted:
            text = f"{name}: Ray counts {ray_counts} of {torch_sees} GPUs that torch sees"
            found.append(
                Finding("GPUs", WARN, text, f"Start Ray there with --num-gpus={torch_sees} to use all of them.")
            )
        elif torch_sees:
            seen.append(f"{name}: {torch_sees}× {fact['listed'][0] if listed else 'GPU'}, {driver}, {build}")
    if len(drivers) > 1:
        text = "; ".join(f"driver {version} on {', '.join(names)}" for version, names in drivers.items())
        found.append(Finding("GPUs", WARN, text, "Install the same driver on every GPU node."))
    if seen:
        found.append(Finding("GPUs", OK, "; ".join(seen)))
    return found or [Finding("GPUs", OK, "no GPU; everything runs on CPUs, slowly")]


def judge_shared_memory(
    facts: Mapping[str, Mapping[str, Any] | ProbeFailure], stores: Mapping[str, float]
) -> list[Finding]:
    """Ray's object store should lie in /dev/shm and fit there.

    Args:
        stores: node → bytes of its object store.
    """
    found = _probe_failures("shared memory", facts, "Look at /dev/shm and at Ray's logs on that node.")
    fine = []
    for name, fact in facts.items():
        if isinstance(fact, ProbeFailure):
            continue
        total, store, others = fact["shm_total"], stores.get(name, 0.0), fact["shm_left_behind"]
        if total is None:
            continue  # macOS
        mend = (
            f"Give the container at least {_gib(store * 1.1)} of /dev/shm (docker --shm-size, in Kubernetes an emptyDir "
            "with medium: Memory), or start Ray with a smaller --object-store-memory."
        )
        has = f"{name}: /dev/shm has {_gib(total)}" + (f", Ray's object store {_gib(store)}" if store else "")
        if fact["store_folder"] and not str(fact["store_folder"]).startswith("/dev/shm"):
            text = f"{has} and lies in {fact['store_folder']}, on a disk, where it is slow"
            found.append(Finding("shared memory", WARN, text, mend))
        elif total < store:
            text = f"{has}: a process that fills it dies of SIGBUS"
            found.append(Finding("shared memory", FAIL, text, mend))
        elif total - others < store:
            text = f"{has}, and other files there take {_gib(others)}"
            mend = "Remove what dead processes left in /dev/shm, or make it larger."
            found.append(Finding("shared memory", WARN, text, mend))
        else:
            fine.append(has)
    return found or [Finding("shared memory", OK, "; ".join(fine) or "this system has no /dev/shm")]


def judge_memory(
    facts: Mapping[str, Mapping[str, Any] | ProbeFailure], promised: Mapping[str, float], stores: Mapping[str, float]
) -> list[Finding]:
    """What Ray hands out (tasks' memory and object store) must fit into the container's limit.

    Args:
        promised: node → bytes that Ray counts as `memory`.
        stores: node → bytes of its object store.
    """
    found, fine = [], []
    for name, fact in facts.items():
        if isinstance(fact, ProbeFailure):
            continue
        needs = promised.get(name, 0.0) + stores.get(name, 0.0)
        text = f"{name}: limit {_gib(fact['limit'])}"
        if not needs:
            fine.append(text)
        elif needs > fact["limit"] * 1.01:
            mend = "Raise the container's memory limit, or start Ray with smaller --memory and --object-store-memory."
            found.append(
                Finding("memory", FAIL, f"{text}, but Ray hands out {_gib(needs)}: the kernel will kill", mend)
            )
        else:
            fine.append(f"{text}, Ray hands out {_gib(needs)}")
    return found or [Finding("memory", OK, "; ".join(fine))] if fine or found else []


def judge_disk(facts: Mapping[str, Mapping[str, Any] | ProbeFailure], stores: Mapping[str, float]) -> list[Finding]:
    """Free space where Ray spills objects that its store cannot hold."""
    found, fine = [], []
    mend = "Free space there, or start Ray with --object-spilling-directory on a larger disk."
    for name, fact in facts.items():
        if isinstance(fact, ProbeFailure):
            continue
        free, total = fact["disk_free"], fact["disk_total"]
        text = f"{name}: {_gib(free)} of {_gib(total)} free at {fact['spill_folder'] or '/tmp'}"
        if free < (1 - SPILL_FULL) * total:
            found.append(Finding("spill disk", FAIL, f"{text}; Ray spills no more from {SPILL_FULL:.0%} on", mend))
        elif free < stores.get(name, 0.0):
            text += f", less than the object store's {_gib(stores[name])}"
            found.append(Finding("spill disk", WARN, text, mend))
        else:
            fine.append(text)
    return found or [Finding("spill disk", OK, "; ".join(fine))] if fine or found else []


def judge_transfers(speeds: Mapping[tuple[str, str], float | ProbeFailure], size: int, nodes: int) -> list[Finding]:
    """Objects from node to node."""
    name = "object store"
    found, fine = [], {}
    for (source, target), speed in speeds.items():
        way = f"{source} to {target}" if source != target else f"into {source}"
        if isinstance(speed, ProbeFailure):
            mend = "Open the nodes' ports to each other (object manager, node manager, workers), in both directions."
            found.append(Finding(name, FAIL, f"{way}: {speed.reason}", mend))
        elif speed < SLOW_TRANSFER:
            text = f"{way}: {size / 2**20:.0f} MiB at {speed:.0f} MB/s"
            found.append(
                Finding(name, WARN, text, "Use a faster network, or keep data and training on the same nodes.")
            )
        else:
            fine[way] = speed
    missed = nodes - len(speeds)
    rest = f"; {missed} ways not measured for lack of time" if missed > 0 else ""
    if fine:
        slowest = min(fine, key=lambda way: fine[way])
        text = f"{size / 2**20:.0f} MiB at {fine[slowest]:.0f} MB/s {slowest}"
        found.append(Finding(name, OK, text + (", the slowest way" if len(fine) > 1 else "") + rest))
    return found


def judge_storage(
    name: str, url: str, here: Mapping[str, Any] | ProbeFailure, nodes: Mapping[str, Mapping[str, Any] | ProbeFailure]
) -> list[Finding]:
    """A folder must be the same one on every node, be writable, and not too slow."""
    if isinstance(here, ProbeFailure) or here["error"]:
        why = here.reason if isinstance(here, ProbeFailure) else here["error"]
        mend = "Give a folder or s3:// URL that this user may write, and look at its mount or its credentials."
        return [Finding(name, FAIL, f"{url}: {why}", mend)]
    found = []
    blind = [node for node, fact in nodes.items() if not isinstance(fact, ProbeFailure) and not fact["seen"]]
    if blind:
        mend = (
            "Put it on storage that every node mounts at this path (in Kubernetes a ReadWriteMany volume), or on s3://."
        )
        found.append(Finding(name, FAIL, f"{url} is another folder, or none, on {', '.join(blind)}", mend))
    speeds = {"this process": here}
    for node, fact in nodes.items():
        if isinstance(fact, ProbeFailure) or fact["error"]:
            why = fact.reason if isinstance(fact, ProbeFailure) else fact["error"]
            mend = "Let that node's user write there too, with the same mount and the same credentials."
            found.append(Finding(name, FAIL, f"{url} on {node}: {why}", mend))
        elif fact["seen"]:
            speeds[node] = fact
    for way in ("write", "read"):
        slowest = min(speeds, key=lambda node: speeds[node][way])
        if speeds[slowest][way] < SLOW_STORAGE:
            text = f"{url}: {slowest} can {way} only {speeds[slowest][way]:.0f} MB/s"
            found.append(Finding(name, WARN, text, "Use faster storage: checkpoints and volumes go through it."))
    written, read = (min(fact[way] for fact in speeds.values()) for way in ("write", "read"))
    seen = ", seen from every node" if nodes else ""
    return found or [Finding(name, OK, f"{url}: write {written:.0f} MB/s, read {read:.0f} MB/s{seen}")]


def judge_tracking(shown: str, answers: Mapping[str, Mapping[str, Any] | ProbeFailure], nodes: int) -> list[Finding]:
    """Every node must reach MLflow with its own credentials; SQLite is one machine's.

    Args:
        shown: the store's address without a password.
        answers: "this process" or a node → seconds or error.
        nodes: nodes of the cluster.
    """
    if ("://" not in shown or shown.startswith(("sqlite:", "file:"))) and nodes > 1:
        mend = "Run a tracking server and set MLFLOW_TRACKING_URI=http://HOST:5000 here and on every node (docs/doctor.md)."
        return [Finding("MLflow", FAIL, f"{shown} is a file of one machine, and the cluster has {nodes} nodes", mend)]
    found = []
    for who, answer in answers.items():
        why = answer.reason if isinstance(answer, ProbeFailure) else answer["error"]
        if not why:
            continue
        mend = "Start the server, or correct MLFLOW_TRACKING_URI and the network between it and the nodes."
        if any(sign in why for sign in ("401", "403")):
            mend = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD there to a user of the server."
        if not isinstance(answer, ProbeFailure):
            mend = answer.get("mend") or mend
        found.append(Finding("MLflow", FAIL, f"from {who}: {why}" + f" ({shown})" * (shown not in why), mend))
    if found:
        return found
    took = [a["seconds"] for a in answers.values() if not isinstance(a, ProbeFailure) and a["seconds"] is not None]
    if not took:
        return [Finding("MLflow", OK, f"{shown} is made by the first run")]
    text = f"{shown} answers within {max(took):.2f} s"
    if max(took) > 2.0:
        return [Finding("MLflow", WARN, text, "Give the server a PostgreSQL database and more workers.")]
    return [Finding("MLflow", OK, text + (", from every node too" if len(answers) > 1 else ""))]


def judge_clocks(offsets: Mapping[str, tuple[float, float]]) -> list[Finding]:
    """Clocks of nodes and of this process, by (seconds ahead of this process, of which so much may be the way)."""
    if not offsets:
        return []
    both = {"this process": (0.0, 0.0), **offsets}
    late = min(both, key=lambda name: both[name][0])
    early = max(both, key=lambda name: both[name][0])
    skew = both[early][0] - both[late][0]
    unsure = both[early][1] + both[late][1]
    if skew - unsure > SKEW:
        text = f"the clock of {early} is {skew:.1f} s ahead of that of {late}"
        return [Finding("clocks", WARN, text, "Run chrony or another NTP client on every node.")]
    return [Finding("clocks", OK, f"at most {skew * 1000:.0f} ms apart (±{unsure * 1000:.0f} ms)")]


def judge_all_reduce(result: AllReduce | ProbeFailure | None, size: int) -> list[Finding]:
    """Two training processes and their network."""
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
    """Who can give this cluster work: everyone that reaches a port of it, where there is no token.

    Args:
        token: whether the cluster asks for one.
        dashboard: HOST:PORT or a URL, None where none runs.
    """
    found = []
    local = is_loopback(dashboard)
    if token:
        found.append(Finding("token", OK, "Ray asks for a token"))
    else:
        text = "Ray asks for no token: whoever reaches a port of it runs code there"
        found.append(Finding("token", WARN, text, TOKEN))
    if not local:
        mend = "Start the head with --dashboard-host=127.0.0.1 and reach it through ssh -L or kubectl port-forward."
        found.append(Finding("dashboard", WARN, f"the dashboard listens at {dashboard}, not on loopback only", mend))
    else:
        found.append(Finding("dashboard", OK, f"on loopback, {dashboard}" if dashboard else "none runs"))
    return found


def is_loopback(address: str | None) -> bool:
    """Whether a HOST:PORT or URL is reached from its own machine only, as none at all is."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname if address else None
    return host is None or host in ("127.0.0.1", "localhost", "::1")


def _probe_failures(name: str, facts: Mapping[str, Any], mend: str) -> list[Finding]:
    return [
        Finding(name, FAIL, f"{node}: {fact.reason}", mend)
        for node, fact in facts.items()
        if isinstance(fact, ProbeFailure)
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + "s" * (number != 1)
