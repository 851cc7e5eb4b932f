"""Jobs on a cluster, whatever runs them: their state, following one to its end, and what Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

from brgsa.errors import UserError
from brgsa_platform.jobs import logs as job_logs
from brgsa_platform.tracking import client as tracking

INTERRUPTED = 130  # exit status, also of a job that was stopped
POLL_SECONDS = 1.0  # seconds
PATIENCE = 600.0  # seconds that a cluster may be away while a job is followed
LAST_LINES_SECONDS = 1.0  # seconds that the stream gets to end after its job has, before the log is read once more


class ClusterUnreachable(UserError):
    """A cluster that does not answer now: an error when it is asked first, patience while a job is followed."""


class JobNotFound(UserError):
    """A cluster that has no such job."""


@dataclass(frozen=True)
class Job:
    """A job as its cluster tells it.

    Attributes:
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        phase: the state in the cluster's own words, for the reader.
        started, ended: seconds since 1970.
        process_exit_status: of its process, where the cluster knows it.
    """

    name: str
    state: str
    phase: str
    command: str = ""
    started: float | None = None
    ended: float | None = None
    process_exit_status: int | None = None
    message: str = ""

    @property
    def finished(self) -> bool:
        return self.state in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def exit_status(self) -> int:
        """The exit status that a verb about it gives: 0, its process's own (2: a user's mistake), or 130 if stopped."""
        if self.state == "FAILED":
            return self.process_exit_status if self.process_exit_status and 0 < self.process_exit_status < 128 else 1
        return INTERRUPTED if self.state == "STOPPED" else 0

    def summary(self) -> str:
        took = ""
        if self.started is not None:
            took = f" after {_duration((self.ended or time.time()) - self.started)}"
        said = self.message.strip().splitlines()
        return f"{self.name}: {self.phase}{took if self.finished else ''}" + (f" ({said[0]})" if said else "")


class Log(Protocol):
    """A job's log, always read from its beginning; a job that is tried again has one a try."""

    @property
    def source(self) -> str: ...
    def read(self, follow: bool) -> Iterator[str]: ...


class Jobs(Protocol):
    """A cluster's jobs. Methods raise `ClusterUnreachable` while the cluster does not answer, `JobNotFound` for no such job."""

    options: str  # the options that name this cluster, as a user types them
    saves_logs: bool  # whether the log of a job that is followed goes to MLflow

    def list(self) -> list[Job]: ...
    def get(self, name: str) -> Job: ...
    def log(self, name: str) -> Log | None: ...
    def stop(self, name: str) -> None: ...


class _LogPrinter:
    """Prints a log as it comes; read again from its beginning after a broken connection, it goes on where it was."""

    def __init__(self, out: TextIO, copy: TextIO | None) -> None:
        self._outs = [out] + ([copy] if copy else [])
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Print nothing more, whatever a thread still reads."""
        with self._lock:
            self._closed = True

    def print(self, log: Log, follow: bool) -> None:
        position = 0
        for text in log.read(follow):
            with self._lock:
                if self._closed:
                    return
                seen = self._seen.get(log.source, 0)
                new = text[max(seen - position, 0) :]
                position += len(text)
                self._seen[log.source] = max(seen, position)
                for out in self._outs:
                    out.write(new)
                    out.flush()


def follow(jobs: Jobs, name: str, copy: TextIO | None = None) -> Job:
    """Stream a job's log to standard output and its changes of state to standard error, until it ends.

    Args:
        copy: a file that gets the log too.

    A job that goes from the cluster while it is followed was stopped.

    Raises:
        UserError: there is no such job.
        RuntimeError: the cluster stayed away for `PATIENCE` seconds.
    """
    printer = _LogPrinter(sys.stdout, copy)
    over = threading.Event()

    def stream() -> None:
        while not over.is_set():
            try:
                log = jobs.log(name)
                if log is not None:
                    printer.print(log, follow=True)
            except Exception:
                pass  # whatever broke the stream: it is taken up again, and the end is read once more below
            over.wait(POLL_SECONDS)

    reader = threading.Thread(target=stream, daemon=True)
    reader.start()
    try:
        with _interrupt_noted() as check:
            job = _watch(jobs, name, check)
        over.set()
        reader.join(LAST_LINES_SECONDS)
        # Where the cluster went with its job, what was streamed stands.
        with contextlib.suppress(UserError, RuntimeError):
            log = jobs.log(name)
            if log is not None:
                printer.print(log, follow=False)
    finally:
        over.set()
        printer.close()
    notify(job.summary())
    return job


@contextlib.contextmanager
def _interrupt_noted() -> Iterator[Callable[[], None]]:
    """Yields a check that raises KeyboardInterrupt after a Ctrl-C which Python has lost.

    One that comes while an object is being finalized (a closed connection, say) is printed there and forgotten.
    """
    noted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may set it; a process that is to ignore Ctrl-C (a shell's background) goes on ignoring it.
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield lambda: None
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        raise KeyboardInterrupt

    def check() -> None:
        if noted.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _watch(jobs: Jobs, name: str, check: Callable[[], None]) -> Job:
    """Say each new phase of a job until it ends; `check` is called once a round."""
    last: Job | None = None
    while True:
        check()
        try:
            job = _patiently(lambda: jobs.get(name), check)
        except JobNotFound:
            if last is None:
                raise
            return replace(last, state="STOPPED", phase="STOPPED", message="gone from the cluster")
        if job.finished:
            return job
        if last is None or job.phase != last.phase:
            notify(job.summary())
        last = job
        time.sleep(POLL_SECONDS)


def follow_to_end(jobs: Jobs, name: str) -> int:
    """Follow a job, keep its log where its cluster will not, and return its exit status.

    Ctrl-C asks whether the job is to stop, and leaves it running where nobody can answer.
    """
    with tempfile.TemporaryDirectory(prefix="brgsa-") as scratch:
        path = Path(scratch) / job_logs.FILE
        try:
            with path.open("w", encoding="utf-8") as copy:
                return follow(jobs, name, copy).exit_status
        except KeyboardInterrupt:
            return _interrupted(jobs, name)
        finally:
            if jobs.saves_logs:
                try_to_save_log(name, path)


def try_to_save_log(name: str, path: Path) -> None:
    """Keep a job's log in MLflow; where that fails, say so: the job's end counts, not where its log lies."""
    if not path.stat().st_size:
        return
    try:
        run_id = job_logs.save_log(name, path)
        notify(f"The log is kept in MLflow, run {run_id[:8]} of {tracking.shown_uri()}.")
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        notify(f"The log is not kept in MLflow: {said[0]}")


def _interrupted(jobs: Jobs, name: str) -> int:
    if sys.stdin.isatty() and sys.stderr.isatty() and _wants_to_stop(name):
        jobs.stop(name)
        notify(f"{name} is stopped.")
    else:
        notify(f"{name} goes on. {next_steps(jobs, name)}")
    return INTERRUPTED


def next_steps(jobs: Jobs, name: str) -> str:
    return f"Follow it: brgsa jobs logs {name} {jobs.options} --follow. Stop it: brgsa jobs stop {name} {jobs.options}"


def print_log(jobs: Jobs, name: str) -> bool:
    """Print what a job has logged so far; False where its cluster holds no log of it."""
    log = jobs.log(name)
    if log is None:
        return False
    _LogPrinter(sys.stdout, None).print(log, follow=False)
    return True


def print_list(found: list[Job], nothing: str) -> None:
    """A table of jobs, newest first."""
    if not found:
        print(nothing)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("job", "state", "started", "took", "command"):
        table.add_column(column, no_wrap=column != "command", overflow="fold")
    for job in sorted(found, key=lambda job: job.started or time.time(), reverse=True):
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else ""
        took = _duration((job.ended or time.time()) - job.started) if job.started else ""
        table.add_row(job.name, job.phase, began, took, job.command)
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)


def notify(line: str) -> None:
    """A line about the job, apart from its log."""
    print(f"brgsa: {line}", file=sys.stderr, flush=True)


def _patiently(work: Callable[[], Job], check: Callable[[], None]) -> Job:
    end, told = time.monotonic() + PATIENCE, False
    while True:
        check()
        try:
            return work()
        except (
            ClusterUnreachable,
            RuntimeError,
        ) as error:  # a job server that is just going or coming answers with status 500
            said = str(error).partition("\n")[0]
            if time.monotonic() > end:
                raise RuntimeError(said) from error
            if not told:
                notify(f"{said} Waiting up to {PATIENCE / 60:.0f} minutes; the job is not touched by this.")
                told = True
        time.sleep(POLL_SECONDS)


def _wants_to_stop(name: str) -> bool:
    try:
        print(f"\nStop {name} on the cluster? Otherwise it goes on. [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{left} s"
