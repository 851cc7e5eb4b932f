"""A training that is asked to stop ends its step, writes a checkpoint, and goes on later where it stood.

Who asks: SIGTERM to the driver or to a training worker; Ray, for a node that is about to go; the driver, where the cluster now
has room for more workers. The driver asks through a file in the run's folder, which all nodes see.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from brgsa_platform.training.parallel.workers import WorkerContext

FILE = "stop"  # in the run's folder
SECONDS_BETWEEN_LOOKS = 1.0  # at the file, and for Ray's notice
GO_ON, LOOK, STOP = range(3)

_sigterm = threading.Event()  # came to this training worker
_trains = threading.Event()  # in this process, at steps that look for it


class Stopped(Exception):
    """The training was asked to stop, and has written its checkpoint."""


class Terminated(KeyboardInterrupt):
    """It has stopped for a SIGTERM to the driver."""


class StopSigns:
    """Whether a training is to stop, as its workers see it together."""

    def __init__(self, run_folder: Path, workers: WorkerContext) -> None:
        self._file, self._workers = run_folder / FILE, workers
        self._looked = time.monotonic()

    def is_given(self) -> bool:
        """Whether to stop after this step; all workers ask after each step, and get the same answer."""
        sign = self._workers.most(self._mine())
        if sign == LOOK and self._workers.is_preempted is not None:
            return self._workers.is_preempted()
        return sign == STOP

    def _mine(self) -> int:
        if _sigterm.is_set():
            return STOP
        if self._workers.rank or time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return GO_ON
        self._looked = time.monotonic()
        return STOP if self._file.exists() else LOOK


def ask(run_folder: Path) -> None:
    """Ask a run's training to stop."""
    with contextlib.suppress(OSError):  # a folder that cannot be written takes no checkpoint either
        (run_folder / FILE).touch()


def take_back(run_folder: Path) -> None:
    """Let a run's next training begin."""
    (run_folder / FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def sigterm_asks(run_folder: Path) -> Iterator[threading.Event]:
    """While the block runs, SIGTERM asks the run's training to stop, and sets the event.

    Only where this is the main thread: a search's trial is not, and its processes end with the search.

    Raises:
        Terminated: the block raised `Stopped`.
    """
    came = threading.Event()
    take_back(run_folder)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        came.set()
        ask(run_folder)

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, on_sigterm) if is_main else None
    try:
        yield came
    except Stopped as stopped:
        raise Terminated from stopped
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
        take_back(run_folder)


@contextlib.contextmanager
def training_here() -> Iterator[None]:
    """While the block runs, SIGTERM to this training worker asks the training to stop."""
    _trains.set()
    try:
        yield
    finally:
        _trains.clear()


def listen() -> None:
    """Take SIGTERM, in the main thread of a worker's process; where nothing trains, do with it what Ray does."""
    of_ray: Any = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if _trains.is_set():
            _sigterm.set()
        elif callable(of_ray):
            of_ray(number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)
