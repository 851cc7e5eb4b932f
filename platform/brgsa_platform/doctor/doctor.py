"""`brgsa doctor`: look at this machine, or at every node of a cluster, and say what is wrong and how it is mended.

Each look has its own time limit and may fail without ending the others.
"""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from brgsa.errors import UserError
from brgsa_platform.doctor import findings, probes
from brgsa_platform.doctor import nodes as doctor_nodes
from brgsa_platform.doctor.findings import FAIL, OK, Finding
from brgsa_platform.doctor.nodes import ClusterNodes, LocalMachine, ProbeFailure, run_with_timeout
from brgsa_platform.runtime import session
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.tracking import client as tracking

# Seconds; the first question to a node also starts a process there.
FIRST, QUICK, GPU, CLOCK, TRANSFER, STORAGE, MLFLOW, REDUCE = 20.0, 10.0, 30.0, 5.0, 10.0, 20.0, 25.0, 30.0
STORAGE_SIZE = 64 * 2**20
OBJECT_SIZE = 256 * 2**20
REDUCE_SIZE = 64 * 2**20
ANSWER = 5.0
# How HTTP/2, and so Ray's gRPC, begins: a live server answers it at once, a frozen one only accepts the connection.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

Check = tuple[str, Callable[[], list[Finding]]]


def examine(
    data: str | None = None,
    out: str = "runs",
    *,
    on_step: Callable[[str], None] = lambda name: None,
    limit: float = FIRST,
) -> list[Finding]:
    """Examine the cluster of RAY_ADDRESS, or this machine, where a Ray of our own is started for it.

    Args:
        data: a store: a folder or an s3:// URL.
        out: where runs are to lie.
        on_step: called after each look, with its name.
        limit: seconds in which a node must answer its first question.

    Raises:
        UserError: nothing answers at RAY_ADDRESS, or it is of another kind.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    check_address(address)
    found: list[Finding] = []
    with ExitStack() as stack:
        nodes, ray_line = _join(stack, address)
        found.append(ray_line)
        for name, look in _checks(nodes, bool(address), data, out, limit):
            try:
                found += look()
            except Exception as error:
                text = f"the look itself failed: {doctor_nodes.in_short(error)}"
                found.append(Finding(name, FAIL, text, "Run it again, and report it if it fails again."))
            on_step(name)
        if isinstance(nodes, ClusterNodes):  # last, for a node may fall silent at any question
            found[1:1] = findings.judge_nodes(nodes.names, nodes.unresponsive, nodes.departed)
    return found


CHECKS = 11  # steps of an examination of a cluster


def check_address(address: str) -> None:
    """Raise UserError where no Ray answers at an address: Ray itself would try for many minutes."""
    if address in ("", "auto", "local"):
        return
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{address} is a dashboard: run the doctor on a node of the cluster and give the address there, HOST:6379 or auto, "
            "or ray://HOST:10001 from elsewhere."
        )
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=ANSWER) as link:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                link.sendall(GREETING)
                if not link.recv(9):
                    raise ConnectionError("it hangs up")
    except (OSError, ValueError) as error:
        raise UserError(
            f"No Ray answers at {address} ({error}): start the cluster, or correct --ray or RAY_ADDRESS."
        ) from error


def _join(stack: ExitStack, address: str) -> tuple[ClusterNodes | LocalMachine, Finding]:
    """Ray, joined or started; where that fails, this machine without it."""
    try:
        stack.enter_context(session.ray_session())
        nodes = ClusterNodes()
    except Exception as error:
        lines = " ".join(str(error).split())[:300]
        mend = "Look at the newest folder under /tmp/ray: its logs say why."
        if address:
            mend = (
                findings.SAME_IMAGE
                if "mismatch" in lines
                else findings.TOKEN + " Where it asks for none, look at its head."
            )
        return LocalMachine(), Finding("Ray", FAIL, f"cannot {'join' if address else 'start'}: {lines}", mend)
    text = f"joined {address}" if address else "started on this machine for this examination (--ray joins a cluster)"
    return nodes, Finding("Ray", OK, text)


def _checks(
    nodes: ClusterNodes | LocalMachine, joined: bool, data: str | None, out: str, limit: float
) -> Iterator[Check]:
    """What is looked at, in this order; the first question finds the nodes that are silent."""
    facts: dict[str, Any] = {}

    def of(kind: str) -> dict[str, float]:
        return {name: nodes.resource(name, kind) for name in facts}

    def versions() -> list[Finding]:
        answers = nodes.ask(probes.versions, limit)
        heard = {name: answer for name, answer in answers.items() if name not in nodes.unresponsive}
        return findings.judge_versions({"this process": probes.versions(), **heard})

    def shared_memory() -> list[Finding]:
        facts.update(nodes.ask(probes.memory, QUICK))
        return findings.judge_shared_memory(facts, of("object_store_memory"))

    def gpus() -> list[Finding]:
        counted = {name: nodes.resource(name, "GPU") for name in nodes.names}
        answers = nodes.ask(probes.gpus, GPU, counted=counted)
        return findings.judge_gpus(answers, counted if isinstance(nodes, ClusterNodes) else {})

    yield "versions", versions
    yield "GPUs", gpus
    yield "shared memory", shared_memory
    yield "memory", lambda: findings.judge_memory(facts, of("memory"), of("object_store_memory"))
    yield "spill disk", lambda: findings.judge_disk(facts, of("object_store_memory"))
    cluster = nodes if joined and isinstance(nodes, ClusterNodes) else None
    if isinstance(nodes, ClusterNodes):
        yield "object store", lambda: _transfers(nodes)
    yield "runs", lambda: _storage("runs", out, cluster)
    if data is not None:
        yield "store", lambda: _storage("store", data, cluster)
    yield "MLflow", lambda: _tracking(cluster)
    if isinstance(nodes, ClusterNodes):
        yield "clocks", lambda: findings.judge_clocks(doctor_nodes.clock_offsets(nodes, CLOCK))
        yield (
            "all-reduce",
            lambda: findings.judge_all_reduce(doctor_nodes.all_reduce(nodes, REDUCE, REDUCE_SIZE), REDUCE_SIZE),
        )
        yield "access", lambda: _access(nodes)


def _transfers(nodes: ClusterNodes) -> list[Finding]:
    smallest = min(nodes.resource(name, "object_store_memory") for name in nodes.names)
    size = min(OBJECT_SIZE, int(smallest) // 4)
    return findings.judge_transfers(doctor_nodes.transfers(nodes, TRANSFER, size), size, len(nodes.names))


def _storage(name: str, url: str, nodes: ClusterNodes | None) -> list[Finding]:
    """Look at a folder from this process and from `nodes`; one that is not there yet, at what it would be made in."""
    shown, place = str(Folder(url)), _existing(url)
    if place != shown:
        shown = f"{shown} (not there yet; looked at {place})"
    with _mark(place) as mark:
        if isinstance(mark, ProbeFailure):
            return findings.judge_storage(name, shown, mark, {})
        here = run_with_timeout(STORAGE, lambda: probes.storage(place, STORAGE_SIZE))
        answers = nodes.ask(probes.storage, STORAGE, place, STORAGE_SIZE, *mark) if nodes else {}
    return findings.judge_storage(name, shown, here, answers)


@contextmanager
def _mark(place: str) -> Iterator[tuple[str, str] | ProbeFailure]:
    """A small file that other nodes should see; its name and text, or why it cannot be written."""
    name, text = f".brgsa-doctor-{uuid.uuid4().hex}", uuid.uuid4().hex
    trouble = run_with_timeout(STORAGE, lambda: Folder(place).write(name, text))
    if trouble is not None:
        yield trouble
        return
    try:
        yield name, text
    finally:
        run_with_timeout(STORAGE, lambda: Folder(place).delete(name))


def _existing(url: str) -> str:
    folder = Folder(url)
    if folder.remote:
        return folder.url
    path = Path(folder.url)
    return str(next(p for p in (path, *path.parents) if p.is_dir()))


def _tracking(nodes: ClusterNodes | None) -> list[Finding]:
    uri, experiment, shown = tracking.tracking_uri(), tracking.experiment_name(), tracking.shown_uri()
    answers: dict[str, Any] = {
        "this process": run_with_timeout(MLFLOW, lambda: probes.tracking_answer(uri, experiment))
    }
    if nodes and uri.startswith(("http://", "https://")):
        answers |= nodes.ask(probes.tracking_answer, MLFLOW, uri, experiment)
    return findings.judge_tracking(shown, answers, nodes.count if nodes else 1)


def _access(nodes: ClusterNodes) -> list[Finding]:
    dashboard = session.dashboard_address()
    # Elsewhere than on the head, its loopback is not ours.
    reachable = dashboard if nodes.on_head or not findings.is_loopback(dashboard) else None
    return findings.judge_access(asks_for_token(reachable), dashboard)


def asks_for_token(dashboard: str | None) -> bool:
    """Whether the cluster refuses a request without a token; where no dashboard answers, whether we came with one."""
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


def print_table(found: Sequence[Finding]) -> None:
    """A line a finding, its mend below it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("", "looked at", "found"):
        table.add_column(head, overflow="fold", no_wrap=head == "looked at")
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for one in found:
        text = Text(one.found)
        if one.mend:
            text.append(f"\n→ {one.mend}", style="bold")
        table.add_row(Text(one.state, style=styles[one.state]), one.name, text)
    Console().print(table)
    failed, warned = (sum(one.state == state for one in found) for state in (FAIL, findings.WARN))
    Console().print(f"{failed} failed, {warned} warned, {len(found) - failed - warned} fine.", highlight=False)
