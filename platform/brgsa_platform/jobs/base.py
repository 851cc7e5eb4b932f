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
from brgsa_platform.runtime.console import INTERRUPTED, duration, print_table, table
from brgsa_platform.runtime.waiting import patiently
from brgsa_platform.tracking import connection

POLL_SECONDS = 1.0
AWAY_SECONDS = 600.0  # how long a cluster may be unreachable while a job is followed
LAST_LINES_SECONDS = 1.0  # how long the log's stream may go on after the job's end, before the log is read once more


class ClusterUnreachable(UserError):
    """A cluster that does not answer now. It ends a first question; while a job is followed, it is waited for."""


class JobNotFound(UserError):
    """A cluster that has no such job."""


@dataclass(frozen=True)
class Job:
    """A job as its cluster describes it.

    Attributes:
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        phase: the state in the cluster's own words, for the reader.
        command: the command line that it runs.
        started, ended: seconds since 1970; None where that has not happened yet.
        process_exit_status: the exit status of its process, None where the cluster does not know it.
        message: why it failed.
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
        """Whether it has ended, well or not."""
        return self.state in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def exit_status(self) -> int:
        """The exit status of a verb that follows the job.

        Returns:
            0 while it runs and after it succeeded; after a failure that of its process (2: a user's mistake), or 1 where
            that is unknown or a signal's; 130 for a job that was stopped.
        """
        if self.state == "FAILED":
            status = self.process_exit_status
            return status if status is not None and 0 < status < 128 else 1
        return INTERRUPTED if self.state == "STOPPED" else 0

    def summary(self) -> str:
        """One line: name, phase, how long it took, why it failed."""
        took = f" after {self._took()}" if self.finished and self.started is not None else ""
        reason = self.message.strip().partition("\n")[0]
        return f"{self.name}: {self.phase}{took}" + (f" ({reason})" if reason else "")

    def row(self) -> list[str]:
        """Name, phase, start, duration and command, as a table shows them."""
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started)) if self.started else ""
        return [self.name, self.phase, started, self._took() if self.started else "", self.command]

    def _took(self) -> str:
        return duration((self.ended or time.time()) - (self.started or 0.0))


class Log(Protocol):
    """A job's log. A job that is tried again has a log for each try."""

    @property
    def source(self) -> str:
        """Tells the logs of several tries apart."""
        ...

    def read(self, follow: bool) -> Iterator[str]:
        """Pieces of text from the log's beginning: what is there now, or with `follow` until the job ends."""
        ...


class Jobs(Protocol):
    """The jobs of one cluster.

    All methods raise `ClusterUnreachable` while the cluster does not answer, and `JobNotFound` where it has no such job.

    Attributes:
        options: the options of the command line that name this cluster.
        saves_logs: whether the log of a job that is followed goes to MLflow, since the cluster will not keep it.
    """

    options: str
    saves_logs: bool

    def list(self) -> list[Job]:
        """All jobs that the cluster knows, in any order."""
        ...

    def get(self, name: str) -> Job:
        """The job as it is now."""
        ...

    def log(self, name: str) -> Log | None:
        """The log of the job's newest try; None where there is none."""
        ...

    def stop(self, name: str) -> None:
        """Stop the job, and return when it has stopped."""
        ...


class _LogPrinter:
    """Prints a log as it comes. After a broken connection it reads the log again from the start and prints what is new."""

    def __init__(self, out: TextIO, copy: TextIO | None) -> None:
        self._outs = [out] + ([copy] if copy else [])
        self._printed: dict[str, int] = {}  # source → characters
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Print nothing more, even when a thread still reads."""
        with self._lock:
            self._closed = True

    def print(self, log: Log, follow: bool) -> None:
        """Print what is new in a log, and with `follow` what comes until its stream ends."""
        position = 0
        for text in log.read(follow):
            with self._lock:
                if self._closed:
                    return
                printed = self._printed.get(log.source, 0)
                new = text[max(printed - position, 0) :]
                position += len(text)
                self._printed[log.source] = max(printed, position)
                for out in self._outs:
                    out.write(new)
                    out.flush()


def follow(jobs: Jobs, name: str, copy: TextIO | None = None) -> Job:
    """Print a job's log to standard output and its changes of state to standard error, until it ends.

    A job that disappears from the cluster meanwhile counts as stopped.

    Args:
        copy: a file that gets the log too.

    Returns:
        The job as it ended.

    Raises:
        JobNotFound: there is no such job.
        RuntimeError: the cluster stayed unreachable for `AWAY_SECONDS`.
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
                pass  # whatever broke the stream, it starts again, and the end of the log is read once more below
            over.wait(POLL_SECONDS)

    reader = threading.Thread(target=stream, daemon=True)
    reader.start()
    try:
        with _interrupts_remembered() as raise_interrupt:
            job = _watch(jobs, name, raise_interrupt)
        over.set()
        reader.join(LAST_LINES_SECONDS)
        # Where the cluster has gone with its job, the lines that were streamed are all there is.
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
def _interrupts_remembered() -> Iterator[Callable[[], None]]:
    """Yield a function that raises the KeyboardInterrupt of a Ctrl-C that Python has lost.

    Python loses one that comes while it finalizes an object (a closed connection, say): it prints the exception and goes on.
    """
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may set a handler, and a process that ignores Ctrl-C (in a shell's background) keeps ignoring it.
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield lambda: None
        return

    def remember(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def raise_interrupt() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield raise_interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def _watch(jobs: Jobs, name: str, raise_interrupt: Callable[[], None]) -> Job:
    """Report each new phase of a job until it ends; `raise_interrupt` is called in each round."""
    last: Job | None = None
    while True:
        try:
            job = _get_patiently(jobs, name, raise_interrupt)
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


def _get_patiently(jobs: Jobs, name: str, raise_interrupt: Callable[[], None]) -> Job:
    notified = False

    def ask() -> Job:
        raise_interrupt()
        return jobs.get(name)

    def is_away(error: Exception) -> bool:
        # A job server that is just starting or ending answers with status 500, which is a RuntimeError.
        return isinstance(error, (ClusterUnreachable, RuntimeError))

    def notify_once(error: Exception) -> None:
        nonlocal notified
        if not notified:
            reason = str(error).partition("\n")[0]
            notify(f"{reason} Waiting up to {AWAY_SECONDS / 60:.0f} minutes; the job is not touched by this.")
        notified = True

    try:
        return patiently(ask, is_away, AWAY_SECONDS, notify_once)
    except ClusterUnreachable as error:
        raise RuntimeError(str(error).partition("\n")[0]) from error


def follow_to_end(jobs: Jobs, name: str) -> int:
    """Follow a job, save its log where its cluster will not keep it, and return its exit status.

    Ctrl-C asks whether to stop the job, and leaves it running where nobody can answer.
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
    """Save a job's log in MLflow. A failure is only reported: the job's end matters more than the place of its log."""
    if not path.stat().st_size:
        return
    try:
        run_id = job_logs.save_log(name, path)
        notify(f"The log is kept in MLflow, run {run_id[:8]} of {connection.shown_uri()}.")
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        notify(f"The log is not kept in MLflow: {lines[0]}")


def _interrupted(jobs: Jobs, name: str) -> int:
    if sys.stdin.isatty() and sys.stderr.isatty() and _wants_to_stop(name):
        jobs.stop(name)
        notify(f"{name} is stopped.")
    else:
        notify(f"{name} goes on. {next_steps(jobs, name)}")
    return INTERRUPTED


def next_steps(jobs: Jobs, name: str) -> str:
    """The commands that follow and stop a job, in one line."""
    return f"Follow it: brgsa jobs logs {name} {jobs.options} --follow. Stop it: brgsa jobs stop {name} {jobs.options}"


def print_log(jobs: Jobs, name: str) -> bool:
    """Print what a job has logged so far; False where its cluster has no log of it."""
    log = jobs.log(name)
    if log is None:
        return False
    _LogPrinter(sys.stdout, None).print(log, follow=False)
    return True


def print_jobs(jobs: list[Job]) -> None:
    """Print a table of jobs, the newest first."""
    if not jobs:
        print("No jobs.")
        return
    newest_first = sorted(jobs, key=lambda job: job.started or time.time(), reverse=True)
    heads = ["job", "state", "started", "took", "command"]
    print_table(table(heads, [job.row() for job in newest_first], unbroken=range(4)))


def notify(line: str) -> None:
    """Print a line about a job to standard error, apart from its log."""
    print(f"brgsa: {line}", file=sys.stderr, flush=True)


def _wants_to_stop(name: str) -> bool:
    try:
        print(f"\nStop {name} on the cluster? Otherwise it goes on. [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False
