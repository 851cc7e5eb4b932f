"""One process at a time in a folder, on a disk, on a shared file system or in an object store.

Each process that wants a folder writes a claim `lock-….json` into it and then lists the claims. It holds the folder where it
sees no other claim of a living process; otherwise it takes its own back. Of two that come at the same moment at least one
sees the other, so two never hold the folder, and a claim of the dead is in nobody's way.

A process of this machine is dead where its number is gone or was given to another. One of another machine gives a sign of life
every few seconds: a newcomer waits for the next one and is refused, or takes over after two minutes of silence, measured by
the file system's own clock. So a job that is started again on another machine goes on where the lost one stopped.
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
from typing import NamedTuple

from brgsa.errors import UserError
from brgsa_platform.runtime.storage import Folder, short_error

PREFIX = "lock-"  # of a claim's file name
SECONDS_BETWEEN_SIGNS = 5.0
SECONDS_OF_SILENCE = 120.0  # after which a process of another machine counts as dead
SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_TO_WITHDRAW = 0.9  # that one of this machine needs which came at the same moment

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

    @property
    def is_here(self) -> bool:
        """Whether this machine knows if the process lives."""
        return self.machine == _machine() and self.tick is not None

    def is_dead(self, silence: float) -> bool:
        """Whether it works no longer; `silence` is the time in seconds since its last sign of life."""
        if not self.is_here:
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
    name, claim = f"{PREFIX}{uuid.uuid4().hex[:12]}.json", json.dumps(asdict(Holder.this_process(verb)), indent=1)
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
        with _signs_of_life(folder, name, claim):
            _refuse_second(folder, name)
            yield
    finally:
        with contextlib.suppress(OSError):  # a claim that stays is one of the dead
            folder.delete(name)


def is_claim(name: str) -> bool:
    """Whether a file of this name in a folder is a process's claim to it."""
    return name.startswith(PREFIX) and name.endswith(".json")


class _Claim(NamedTuple):
    """Another process's claim, and when it was last renewed."""

    holder: Holder
    renewed: float | None


def _refuse_second(folder: Folder, mine: str) -> None:
    """Raise UserError where another process holds the folder, or came at the same moment and is first by its claim's name."""
    first_seen: dict[str, float | None] = {}
    noticed = 0.0
    while others := _living(folder, mine):
        for name, claim in others.items():
            if not claim.holder.is_here and name not in first_seen:
                log.warning(
                    "%s: waiting for a sign of life of process %s on %s", folder, claim.holder.pid, claim.holder.host
                )
            first_seen.setdefault(name, claim.renewed)
        alive = [n for n, claim in others.items() if claim.holder.is_here or claim.renewed != first_seen[n]]
        if alive:
            noticed = noticed or time.monotonic()
            here = all(others[name].holder.is_here for name in alive)
            patience = SECONDS_TO_WITHDRAW if here else 2 * SECONDS_BETWEEN_SIGNS
            if min(alive) < mine or time.monotonic() - noticed > patience:
                raise _in_use(folder, others[min(alive)].holder)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _in_use(folder: Folder, holder: Holder) -> UserError:
    return UserError(
        f"{folder} is in use: `brgsa {holder.verb}` works in it since {holder.since} on {holder.host} (process {holder.pid}). "
        "Wait until it ends, or choose another --out.",
        code="folder-in-use",
        field=str(folder),
        value=(holder.host, holder.pid, holder.since),
    )


def _living(folder: Folder, mine: str) -> dict[str, _Claim]:
    """The other claims of living processes by name; those of the dead are removed."""
    now = folder.written_at(mine) or 0.0
    living: dict[str, _Claim] = {}
    for name in folder.names():
        if name == mine or not is_claim(name):
            continue
        try:
            holder = Holder(**json.loads(folder.read(name)))
        except FileNotFoundError:  # taken back between the two calls
            continue
        except (ValueError, TypeError):  # of another version
            holder = Holder("", "an unknown machine", 0, "an unknown time", "", None)
        renewed = folder.written_at(name)
        if holder.is_dead(silence=now - (renewed or now)):
            with contextlib.suppress(FileNotFoundError):  # another newcomer removed it
                folder.delete(name)
        else:
            living[name] = _Claim(holder, renewed)
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
    """An identifier of the machine, boot and process namespace within which a process number is unique."""
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
