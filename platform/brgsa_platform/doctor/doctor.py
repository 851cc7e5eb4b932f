"""`brgsa doctor`: check this machine, or every node of a cluster, and say what is wrong and how to mend it.

Each check has its own time limit, and one that fails does not end the others.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brgsa_platform.doctor import findings, probes
from brgsa_platform.doctor import nodes as doctor_nodes
from brgsa_platform.doctor.findings import FAIL, OK, WARN, Finding
from brgsa_platform.doctor.nodes import ClusterNodes, LocalMachine, ProbeFailure, run_with_timeout
from brgsa_platform.runtime import session
from brgsa_platform.runtime.addresses import is_loopback
from brgsa_platform.runtime.console import print_line, print_table, table
from brgsa_platform.runtime.ray_errors import check_address
from brgsa_platform.runtime.storage import Folder, error_line
from brgsa_platform.tracking import connection

STORAGE_SIZE = 64 * 2**20  # bytes that each check writes or sends
OBJECT_SIZE = 256 * 2**20
REDUCE_SIZE = 64 * 2**20
CHECKS = 11  # of a cluster, without a store
STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}

Check = tuple[str, Callable[[], list[Finding]]]


@dataclass(frozen=True)
class Limits:
    """Seconds that each check may take.

    Attributes:
        connect: the answer at the cluster's address.
        first: the first answer of a node, which also starts a process there.
        quick: an answer that takes no work.
    """

    connect: float = 5.0
    first: float = 20.0
    quick: float = 10.0
    gpus: float = 30.0
    clock: float = 5.0
    transfer: float = 10.0
    storage: float = 20.0
    mlflow: float = 25.0
    reduce: float = 30.0


LIMITS = Limits()


def examine(
    data: str | None = None,
    out: str = "runs",
    *,
    on_step: Callable[[str], None] = lambda name: None,
    limits: Limits | None = None,
) -> list[Finding]:
    """Examine the cluster of RAY_ADDRESS, or this machine, where a Ray session is started for it and ended again.

    Args:
        data: a store: a folder or an s3:// URL; None where there is none to check.
        out: the folder or URL for runs.
        on_step: called after each check, with its name.
        limits: default `LIMITS`.

    Raises:
        UserError: nothing answers at RAY_ADDRESS, or it is the address of something else.
    """
    limits = limits or LIMITS
    address = os.environ.get("RAY_ADDRESS", "")
    check_address(address, limits.connect)
    results: list[Finding] = []
    with ExitStack() as stack:
        nodes, ray_finding = _join(stack, address)
        results.append(ray_finding)
        for name, check in _Examination(nodes, bool(address), data, out, limits).checks():
            try:
                results += check()
            except Exception as error:
                text = f"the check itself failed: {error_line(error)}"
                results.append(Finding(name, FAIL, text, "Run it again, and report it if it fails again."))
            on_step(name)
        if isinstance(nodes, ClusterNodes):  # judged last: a node may stop answering at any question
            results[1:1] = findings.judge_nodes(nodes.names, nodes.unresponsive, nodes.departed)
    return results


def _join(stack: ExitStack, address: str) -> tuple[ClusterNodes | LocalMachine, Finding]:
    """Join or start Ray; where that fails, fall back to this machine without it."""
    try:
        stack.enter_context(session.ray_session())
        nodes = ClusterNodes()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        mend = "Look at the newest folder under /tmp/ray: its logs say why."
        if address and "mismatch" in reason:
            mend = findings.SAME_IMAGE
        elif address:
            mend = f"{findings.TOKEN} Where it asks for none, look at its head."
        return LocalMachine(), Finding("Ray", FAIL, f"cannot {'join' if address else 'start'}: {reason}", mend)
    text = f"joined {address}" if address else "started on this machine for this examination (--ray joins a cluster)"
    return nodes, Finding("Ray", OK, text)


class _Examination:
    """The checks of one examination, in their order. The first question finds the nodes that do not answer."""

    def __init__(
        self, nodes: ClusterNodes | LocalMachine, joined: bool, data: str | None, out: str, limits: Limits
    ) -> None:
        self.nodes, self.data, self.out, self.limits = nodes, data, out, limits
        # Nodes other than this machine, or None: a Ray that was started here has none.
        self.cluster = nodes if joined and isinstance(nodes, ClusterNodes) else None
        self.memory: dict[str, Any] = {}

    def checks(self) -> Iterator[Check]:
        """Name and work of each check."""
        yield "versions", self._versions
        yield "GPUs", self._gpus
        yield "shared memory", self._shared_memory
        yield "memory", lambda: findings.judge_memory(self.memory, self._counted("memory"), self._store_sizes())
        yield "spill disk", lambda: findings.judge_disk(self.memory, self._store_sizes())
        nodes = self.nodes
        if isinstance(nodes, ClusterNodes):
            yield "object store", lambda: _transfers(nodes, self.limits.transfer)
        yield "runs", lambda: _storage("runs", self.out, self.cluster, self.limits.storage)
        data = self.data
        if data is not None:
            yield "store", lambda: _storage("store", data, self.cluster, self.limits.storage)
        yield "MLflow", lambda: _tracking(self.cluster, self.limits.mlflow)
        if isinstance(nodes, ClusterNodes):
            yield "clocks", lambda: findings.judge_clocks(doctor_nodes.clock_offsets(nodes, self.limits.clock))
            yield "all-reduce", lambda: _all_reduce(nodes, self.limits.reduce)
            yield "access", lambda: _access(nodes)

    def _versions(self) -> list[Finding]:
        answers = self.nodes.ask(probes.versions, self.limits.first)
        heard = {name: answer for name, answer in answers.items() if name not in self.nodes.unresponsive}
        return findings.judge_versions({"this process": probes.versions(), **heard})

    def _gpus(self) -> list[Finding]:
        counted = {name: self.nodes.resource(name, "GPU") for name in self.nodes.names}
        answers = self.nodes.ask(probes.gpus, self.limits.gpus, counted=counted)
        return findings.judge_gpus(answers, counted if isinstance(self.nodes, ClusterNodes) else {})

    def _shared_memory(self) -> list[Finding]:
        self.memory.update(self.nodes.ask(probes.memory, self.limits.quick))
        return findings.judge_shared_memory(self.memory, self._store_sizes())

    def _store_sizes(self) -> dict[str, float]:
        return self._counted("object_store_memory")

    def _counted(self, kind: str) -> dict[str, float]:
        """Node → how much of a resource Ray counts there."""
        return {name: self.nodes.resource(name, kind) for name in self.memory}


def _transfers(nodes: ClusterNodes, limit: float) -> list[Finding]:
    smallest = min((nodes.resource(name, "object_store_memory") for name in nodes.names), default=0.0)
    size = min(OBJECT_SIZE, int(smallest) // 4)
    return findings.judge_transfers(doctor_nodes.transfers(nodes, limit, size), size, len(nodes.names))


def _storage(name: str, url: str, nodes: ClusterNodes | None, limit: float) -> list[Finding]:
    """Check a folder from this process and from `nodes`; where it is not there yet, the folder that it would be made in."""
    shown, place = str(Folder(url)), _existing(url)
    if place != shown:
        shown = f"{shown} (not there yet; looked at {place})"
    with _marker_file(place, limit) as marker:
        if isinstance(marker, ProbeFailure):
            return findings.judge_storage(name, shown, marker, {})
        here = run_with_timeout(limit, lambda: probes.storage(place, STORAGE_SIZE))
        answers = nodes.ask(probes.storage, limit, place, STORAGE_SIZE, *marker) if nodes else {}
    return findings.judge_storage(name, shown, here, answers)


@contextmanager
def _marker_file(folder: str, limit: float) -> Iterator[tuple[str, str] | ProbeFailure]:
    """A small file that other nodes must see: its name and its text, or why it cannot be written. It is removed afterwards."""
    name, text = f".brgsa-doctor-{uuid.uuid4().hex}", uuid.uuid4().hex
    failure = run_with_timeout(limit, lambda: Folder(folder).write(name, text))
    if failure is not None:
        yield failure
        return
    try:
        yield name, text
    finally:
        run_with_timeout(limit, lambda: Folder(folder).delete(name))


def _existing(url: str) -> str:
    """The folder itself or the nearest one above it that is there; a URL stays as it is."""
    folder = Folder(url)
    if folder.remote:
        return folder.url
    path = Path(folder.url)
    return str(next(p for p in (path, *path.parents) if p.is_dir()))


def _tracking(nodes: ClusterNodes | None, limit: float) -> list[Finding]:
    uri, experiment, shown = connection.tracking_uri(), connection.experiment_name(), connection.shown_uri()
    answers: dict[str, Any] = {"this process": run_with_timeout(limit, lambda: probes.tracking_answer(uri, experiment))}
    if nodes and connection.is_server(uri):
        answers |= nodes.ask(probes.tracking_answer, limit, uri, experiment)
    return findings.judge_tracking(shown, answers, nodes.count if nodes else 1)


def _all_reduce(nodes: ClusterNodes, limit: float) -> list[Finding]:
    return findings.judge_all_reduce(doctor_nodes.all_reduce(nodes, limit, REDUCE_SIZE), REDUCE_SIZE)


def _access(nodes: ClusterNodes) -> list[Finding]:
    dashboard = session.dashboard_address()
    # On another machine than the head, a loopback address would be that of this machine.
    reachable = dashboard if dashboard and (nodes.on_head or not is_loopback(dashboard)) else None
    return findings.judge_access(asks_for_token(reachable), dashboard)


def asks_for_token(dashboard: str | None) -> bool:
    """Whether the cluster refuses a request without a token; where no dashboard answers, whether this process uses one."""
    if dashboard:
        address = dashboard if "://" in dashboard else f"http://{dashboard}"
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5):
                return False
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)
        except OSError:
            pass
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def print_findings(results: Sequence[Finding]) -> None:
    """A line for each finding, with its mend below it, and a line that counts them."""
    from rich.text import Text

    rows = []
    for finding in results:
        text = Text(finding.found)
        if finding.mend:
            text.append(f"\n→ {finding.mend}", style="bold")
        rows.append((Text(finding.state, style=STYLES[finding.state]), finding.name, text))
    print_table(table(["", "looked at", "found"], rows, unbroken=[1]))
    count = Counter(finding.state for finding in results)
    print_line(f"{count[FAIL]} failed, {count[WARN]} warned, {count[OK]} fine.")
