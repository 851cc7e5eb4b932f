"""Running probes on the nodes of a cluster, or on this machine alone, with a time limit: nobody waits for a node that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from brgsa_platform.doctor import probes
from brgsa_platform.runtime.storage import error_line

HEAD = "node:__internal_head__"
ROUND_TRIPS = 7  # the fastest of them tells the clock's offset
GROUP_WAIT = 0.1  # share of the all-reduce's time in which two free CPUs must be handed out

T = TypeVar("T")


@dataclass(frozen=True)
class ProbeFailure:
    """A probe that gave no answer, and the reason in one line."""

    reason: str


def run_with_timeout(limit: float, work: Callable[[], T]) -> T | ProbeFailure:
    """Run a piece of work in this process for at most `limit` seconds.

    A thread that hangs in a system call (a dead network file system) cannot be ended: it is left behind.

    Returns:
        What `work` returned, or a `ProbeFailure` where it raised or took too long.
    """
    results: list[T | ProbeFailure] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(ProbeFailure(error_line(error)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    return results[0] if results else ProbeFailure(f"no answer within {limit:.0f} s")


class LocalMachine:
    """This machine without Ray: probes run in this process."""

    def __init__(self) -> None:
        self.names = ["this machine"]
        self.unresponsive: dict[str, str] = {}

    def resource(self, name: str, kind: str) -> float:
        """0: without Ray nothing is counted."""
        return 0.0

    def ask(self, probe: Callable[..., Any], limit: float, *args: Any, **each: dict[str, Any]) -> dict[str, Any]:
        """See `ClusterNodes.ask`."""
        name = self.names[0]
        given = {key: value[name] for key, value in each.items()}
        return {name: run_with_timeout(limit, lambda: probe(*args, **given))}


class ClusterNodes:
    """The living nodes of the cluster that this process has joined, each under a name of its own.

    Attributes:
        names: the nodes that have answered so far; the head is the first.
        unresponsive: node → why it is asked no more.
        count: living nodes, including the unresponsive ones.
        on_head: whether this process runs on the head.
        departed: number of nodes that have left the cluster since its start.
    """

    def __init__(self) -> None:
        import ray

        ray.cloudpickle.register_pickle_by_value(probes)
        listed = ray.nodes()
        self.departed = sum(not node["Alive"] for node in listed)
        alive = sorted((n for n in listed if n["Alive"]), key=lambda n: (HEAD not in n["Resources"], n["NodeName"]))
        addresses = [node["NodeManagerAddress"] for node in alive]
        self._nodes: dict[str, dict[str, Any]] = {}
        for node in alive:
            address = node["NodeManagerAddress"]
            suffix = f"#{node['NodeID'][:6]}" if addresses.count(address) > 1 else ""
            head = " (head)" if HEAD in node["Resources"] else ""
            self._nodes[f"{address}{suffix}{head}"] = node
        self.names = list(self._nodes)
        self.count = len(self.names)
        here = ray.get_runtime_context().get_node_id()
        self.on_head = not ray.util.client.ray.is_connected() and any(
            HEAD in node["Resources"] and node["NodeID"] == here for node in alive
        )
        self.unresponsive: dict[str, str] = {}
        self._remote: dict[Callable[..., Any], Any] = {}

    def resource(self, name: str, kind: str) -> float:
        """How much of a resource ("CPU", or "memory" in bytes) Ray counts on a node."""
        return float(self._nodes[name]["Resources"].get(kind, 0.0))

    def ask(self, probe: Callable[..., Any], limit: float, *args: Any, **each: dict[str, Any]) -> dict[str, Any]:
        """Run a probe on every node at the same time.

        A node that dies, or does not answer within `limit` seconds, is not asked again.

        Args:
            args: arguments of the probe, the same on every node.
            each: keyword arguments of the probe that differ: node → value.

        Returns:
            Node → what the probe returned there, or a `ProbeFailure`.
        """
        import ray

        tasks = {
            name: self.start(name, probe, *args, **{key: value[name] for key, value in each.items()})
            for name in self.names
        }
        ready, _ = ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=limit) if tasks else ([], [])
        return {name: self._answer(name, task, task in ready, probe, limit) for name, task in tasks.items()}

    def start(self, name: str, probe: Callable[..., Any], *args: Any, **given: Any) -> Any:
        """Start a probe on a node and return Ray's reference to its answer. It needs no CPU, so a busy cluster answers too."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if probe not in self._remote:  # made once: Ray sends a new remote function to every worker again
            self._remote[probe] = ray.remote(probe)
        there = NodeAffinitySchedulingStrategy(self._nodes[name]["NodeID"], soft=False)
        return self._remote[probe].options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*args, **given)

    def named(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Names of the nodes with these ids."""
        return tuple(name for name, node in self._nodes.items() if node["NodeID"] in set(ids))

    def give_up_on(self, name: str, reason: str) -> ProbeFailure:
        """Ask this node no more."""
        self.unresponsive[name] = reason
        self.names = [other for other in self.names if other != name]
        return ProbeFailure(reason)

    def _answer(self, name: str, task: Any, ready: bool, probe: Callable[..., Any], limit: float) -> Any:
        import ray

        if not ready:
            ray.cancel(task, force=True)
            return self.give_up_on(name, f"no answer to '{probe.__name__}' within {limit:.0f} s")
        try:
            return ray.get(task, timeout=limit)
        except ray.exceptions.RayTaskError as error:
            return ProbeFailure(error_line(error))
        except ray.exceptions.RayError as error:
            return self.give_up_on(name, f"'{probe.__name__}' was lost ({type(error).__name__})")


def clock_offsets(nodes: ClusterNodes, limit: float) -> dict[str, tuple[float, float]]:
    """Compare each node's clock with this process' clock, by the fastest of some round trips.

    Returns:
        Node → (seconds that its clock is ahead, the uncertainty of that in seconds).
    """
    import ray

    offsets: dict[str, tuple[float, float]] = {}
    for name in list(nodes.names):
        end = time.monotonic() + limit
        for _ in range(ROUND_TRIPS):
            start = time.time()
            task = nodes.start(name, probes.clock)
            try:
                there = ray.get(task, timeout=max(0.1, end - time.monotonic()))
            except ray.exceptions.RayError as error:
                nodes.give_up_on(name, f"'clock' was lost ({type(error).__name__})")
                break
            took = time.time() - start
            if name not in offsets or took / 2 < offsets[name][1]:
                offsets[name] = (there - start - took / 2, took / 2)
    return offsets


def transfers(nodes: ClusterNodes, limit: float, size: int) -> dict[tuple[str, str], float | ProbeFailure]:
    """Send an object of `size` bytes around the ring of nodes, one way after the other, until `limit` seconds are over.

    On a single node the object only goes into its object store and out again.

    Returns:
        (from, to) → MB/s.
    """
    import ray

    speeds: dict[tuple[str, str], float | ProbeFailure] = {}
    ring = list(nodes.names)
    end = time.monotonic() + limit
    for source, target in zip(ring, ring[1:] + ring[:1], strict=True):
        if time.monotonic() > end:
            break
        try:
            # The first transfer also opens connections and starts a process.
            speeds[source, target] = size / 1e6 / min(_transfer(nodes, source, target, size, end) for _ in range(2))
        except ray.exceptions.RayError as error:
            speeds[source, target] = ProbeFailure(error_line(error))
    return speeds


def _transfer(nodes: ClusterNodes, source: str, target: str, size: int, end: float) -> float:
    """Seconds that one object took."""
    import ray

    refs, took = ray.get(nodes.start(source, probes.put, size), timeout=max(0.1, end - time.monotonic()))
    if source != target:
        took = ray.get(nodes.start(target, probes.get, refs), timeout=max(0.1, end - time.monotonic()))
    return float(took)


@dataclass(frozen=True)
class AllReduce:
    """An all-reduce of two processes: over "gloo" or "nccl", on these nodes, in so many seconds."""

    backend: str
    nodes: tuple[str, ...]
    seconds: float


def all_reduce(nodes: ClusterNodes, limit: float, size: int) -> AllReduce | ProbeFailure | None:
    """Sum a tensor of `size` bytes over two processes, on two nodes where two have a free CPU (and a free GPU).

    Returns:
        None where no two CPUs are free.
    """
    import ray
    from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

    end = time.monotonic() + limit
    for unit, backend in (({"CPU": 1, "GPU": 1}, "nccl"), ({"CPU": 1}, "gloo")):
        free = ray.available_resources()
        if any(free.get(kind, 0) < 2 * amount for kind, amount in unit.items()):
            continue
        group = placement_group([unit, unit], strategy="SPREAD")
        try:
            if not group.wait(GROUP_WAIT * limit):
                continue
            seconds = _run_peers(group, unit.get("GPU", 0), backend, size, end)
            ids = placement_group_table(group)["bundles_to_node_id"].values()
            return AllReduce(backend, nodes.named(ids), seconds)
        except ray.exceptions.RayError as error:
            return ProbeFailure(error_line(error))
        finally:
            remove_placement_group(group)  # this also ends the two processes
    return None


def _run_peers(group: Any, gpus: int, backend: str, size: int, end: float) -> float:
    """Seconds that the slower of the two processes of a placement group needed; `end` is of `time.monotonic`."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundles = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank) for rank in range(2)]
    peer = ray.remote(probes.Peer)
    peers = [peer.options(num_cpus=1, num_gpus=gpus, scheduling_strategy=bundle).remote() for bundle in bundles]
    address = ray.get(peers[0].address.remote(), timeout=max(0.1, end - time.monotonic()))
    left = max(1.0, end - time.monotonic())
    tasks = [peer.all_reduce.remote(address, rank, backend, size, left) for rank, peer in enumerate(peers)]
    return float(max(ray.get(tasks, timeout=left)))
