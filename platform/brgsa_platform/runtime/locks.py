"""One process at a time in a folder, on a disk, on a shared file system or in an object store.

Each process that wants a folder writes a claim `lock-….json` into it and then lists the claims. It holds the folder where it
sees no other claim of a living process; otherwise it takes its own back. Of two that come at the same moment at least one
sees the other, so two never hold the folder, and a claim of the dead is in nobody's way.

A process of this machine is dead where its number is gone or was given to another. One of another machine is dead after two
minutes without a sign of life; its silence is measured by the file system's own clock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from brgsa.errors import UserError
from brgsa_platform.runtime.storage import Folder, short_error

SECONDS_BETWEEN_SIGNS = 15.0
SECONDS_OF_SILENCE = 120.0  # after which a process of another machine counts as dead
LOOKS, SECONDS_BETWEEN_LOOKS = 3, 0.3  # for others that came at the same moment, and withdraw

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """The process that works in a folder.

    Attributes:
        verb: what it does there, such as "train".
        host, pid, since: its machine's name, its number there, and when it began, as text with a time zone.
        machine: where and until when `pid` means a process: host, boot and process namespace.
        tick: when the process started, in ticks since the boot; None where the system does not tell (macOS). A process that got
            the number of a dead one started at another.
    """

    verb: str
    host: str
    pid: int
    since: str
    machine: str
    tick: int | None

    @classmethod
    def this_process(cls, verb: str) -> Holder:
        """This process, from now."""
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(verb, socket.gethostname(), os.getpid(), since, _machine(), _start_tick(os.getpid()))

    def is_dead(self, silence: float) -> bool:
        """Whether it works no longer; `silence` is the time in seconds since its last sign of life."""
        if self.machine != _machine() or self.tick is None:
            return silence > SECONDS_OF_SILENCE
        try:
            os.kill(self.pid, 0)  # sends nothing
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # another user's, of which the system may tell nothing more
        return _start_tick(self.pid) != self.tick


@contextmanager
def held(folder: Folder | Path | str, verb: str) -> Iterator[None]:
    """Hold a folder while the block runs; the folder is made where it is missing.

    A process that finds its claim taken away, because it gave no sign of life for too long, is interrupted as by Ctrl-C:
    another may work in the folder by then.

    Args:
        verb: the `brgsa` verb that works in it, for the one that is refused.

    Raises:
        UserError: another process holds it ("folder-in-use"; the value is its host, process number and since when), or it
            cannot be written ("folder-not-writable").
    """
    folder = folder if isinstance(folder, Folder) else Folder(folder)
    name, claim = f"lock-{uuid.uuid4().hex[:12]}.json", json.dumps(asdict(Holder.this_process(verb)), indent=1)
    try:
        folder.make()
        folder.write(name, claim)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be written ({short_error(error)}): mend that, or choose another --out.",
            code="folder-not-writable",
            field=str(folder),
        ) from error
    try:
        _refuse_second(folder, name)
        with _signs_of_life(folder, name, claim):
            yield
    finally:
        with contextlib.suppress(OSError):  # a claim that stays is one of the dead
            folder.delete(name)


def _refuse_second(folder: Folder, mine: str) -> None:
    """Raise UserError where another process holds the folder, or came at the same moment and is first by its claim's name."""
    for look in range(LOOKS):
        others = _living(folder, mine)
        if not others:
            return
        if min(others) < mine or look == LOOKS - 1:
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    first = others[min(others)]
    raise UserError(
        f"{folder} is in use: `brgsa {first.verb}` works in it since {first.since} on {first.host} (process {first.pid}). "
        "Wait until it ends, or choose another --out.",
        code="folder-in-use",
        field=str(folder),
        value=(first.host, first.pid, first.since),
    )


def _living(folder: Folder, mine: str) -> dict[str, Holder]:
    """The other claims of living processes by name; those of the dead are removed."""
    now = folder.written_at(mine) or 0.0
    living: dict[str, Holder] = {}
    for name in folder.names():
        if name == mine or not (name.startswith("lock-") and name.endswith(".json")):
            continue
        try:
            holder = Holder(**json.loads(folder.read(name)))
        except FileNotFoundError:  # taken back between the two calls
            continue
        except (ValueError, TypeError):  # of another version
            holder = Holder("", "an unknown machine", 0, "an unknown time", "", None)
        if holder.is_dead(silence=now - (folder.written_at(name) or now)):
            folder.delete(name)
        else:
            living[name] = holder
    return living


@contextmanager
def _signs_of_life(folder: Folder, name: str, claim: str) -> Iterator[None]:
    """Write the claim anew now and then, from a thread."""
    over = threading.Event()

    def live() -> None:
        while not over.wait(SECONDS_BETWEEN_SIGNS):
            try:
                if folder.exists(name):
                    folder.write(name, claim)
                    continue
            except OSError as error:  # the next sign may arrive
                log.warning("No sign of life could be written to %s (%s)", folder, short_error(error))
                continue
            if not over.is_set():
                log.error("%s was taken over by another process or its lock removed: this process stops", folder)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # wakes it from a wait, too
            return

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _machine() -> str:
    """What is one and the same for all processes whose numbers mean the same: a container has numbers of its own."""
    told = [socket.gethostname()]
    with contextlib.suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        told.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(told)


def _start_tick(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None where it has ended or the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, tick = fields[0], fields[19]  # proc(5): fields 3 and 22
    return None if state in "ZX" else int(tick)
