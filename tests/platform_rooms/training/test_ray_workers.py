"""How often workers are started again, and with how many; what they do is made up here."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, PreemptionError, PreemptionInfo, TrainingFailedError, WorkerGroupError

from brgsa_platform.config import load_config
from brgsa_platform.training import ray_workers
from brgsa_platform.training.loop import TrainingTask
from brgsa_platform.training.parallel import stopping
from brgsa_platform.training.parallel.workers import ALONE, WorkerContext

HISTORY = [{"epoch": 1}]
DONE, STOPPED = {"history": HISTORY}, {"stopped": True}
DIED = WorkerGroupError("", {0: ActorDiedError()})
LATE = ControllerError(TimeoutError("no room after all"))
LEFT = PreemptionError(PreemptionInfo(None, {"node": [1]}))


def task(out: Path, workers: str) -> TrainingTask:
    config = load_config("demo", overrides=[f"train.workers={workers}", "train.max_failures=1", "train.gpu=false"])
    return TrainingTask(config, "", str(out), {}, "", "")


def gives(monkeypatch: pytest.MonkeyPatch, ends: list[Any], rooms: list[int]) -> list[int]:
    """Starts end so, one after the other, where the cluster has room for so many workers; gives how many were started."""
    started: list[int] = []
    monkeypatch.setattr(ray_workers, "room_for", lambda config, gpus: rooms[len(started)])
    monkeypatch.setattr(ray_workers, "is_free", lambda config, workers, gpus: True)

    def fit(given: TrainingTask, workers: int, gpus: float | None, is_elastic: bool) -> dict[str, Any]:
        started.append(workers)
        end = ends[len(started) - 1]
        if isinstance(end, Exception):
            raise end
        return dict(end() if callable(end) else end)

    monkeypatch.setattr(ray_workers, "_fit", fit)
    return started


@pytest.mark.parametrize(
    ("workers", "ends", "rooms", "expected"),
    [
        ("2", [STOPPED, STOPPED, STOPPED, DONE], [], [2, 2, 2, 2]),
        ("[1, 4]", [DIED, DONE], [4, 2], [4, 2]),
        ("[1, 4]", [STOPPED, DONE], [2, 4], [2, 4]),
        ("[1, 4]", [LEFT, LEFT, DIED, LEFT, DONE], [4, 2, 1, 1, 4], [4, 2, 1, 1, 4]),
    ],
)
def test_started_again_with_as_many_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    workers: str,
    ends: list[Any],
    rooms: list[int],
    expected: list[int],
) -> None:
    started = gives(monkeypatch, ends, rooms)
    assert ray_workers.fit_on_workers(task(tmp_path, workers), None) == HISTORY
    assert started == expected


@pytest.mark.parametrize(
    ("workers", "ends", "starts"),
    [("2", [DIED], 1), ("[1, 2]", [DIED, LEFT, DIED], 3), ("[1, 2]", [LATE, LATE, LEFT, *[LATE] * 4], 7)],
)
def test_losses_are_counted_and_preemptions_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: str, ends: list[Any], starts: int
) -> None:
    """Of a fixed number Ray Train counts them itself."""
    started = gives(monkeypatch, ends, [2] * starts)
    with pytest.raises(TrainingFailedError):
        ray_workers.fit_on_workers(task(tmp_path, workers), None)
    assert len(started) == starts


def test_sigterm_to_the_driver_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The workers see a file in the run's folder; they are not started again."""

    def preempted() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (tmp_path / stopping.FILE).exists()
        return STOPPED

    started = gives(monkeypatch, [preempted, DONE], [2, 2])
    with pytest.raises(stopping.Terminated):
        ray_workers.fit_on_workers(task(tmp_path, "2"), None)
    assert started == [2]
    assert not (tmp_path / stopping.FILE).exists()


@pytest.mark.parametrize("asked", ["by a file", "by Ray", "not"])
def test_what_a_training_looks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str) -> None:
    """Once in a while, not at each step."""
    looks: list[None] = []

    def is_preempted() -> bool:
        looks.append(None)
        return asked == "by Ray"

    signs = stopping.StopSigns(tmp_path, WorkerContext(is_preempted=is_preempted))
    if asked == "by a file":
        stopping.ask(tmp_path)
    assert not any(signs.is_given() for _ in range(10))
    assert not looks
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_LOOKS", 0.0)
    assert signs.is_given() == (asked != "not")
    assert len(looks) == (asked != "by a file")
    assert not stopping.StopSigns(tmp_path / "other", ALONE).is_given()


def test_what_others_hold_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two of four are free: what an earlier start held would be after a moment."""
    monkeypatch.setattr(ray_workers, "room_for", lambda config, gpus: 4)
    monkeypatch.setattr(ray_workers, "is_free", lambda config, workers, gpus: workers <= 2)
    monkeypatch.setattr(ray_workers, "SECONDS_TO_LET_GO", 0.3)
    given, sigterm = task(tmp_path, "[1, 4]").config, threading.Event()
    begun = time.monotonic()
    assert ray_workers._room(given, None, sigterm) == 2
    assert time.monotonic() - begun > 0.3
    monkeypatch.setattr(ray_workers, "is_free", lambda config, workers, gpus: False)
    sigterm.set()
    with pytest.raises(stopping.Stopped):
        ray_workers._room(given, None, sigterm)


@pytest.mark.parametrize(("workers", "free", "asks"), [(2, 2, True), (2, 1, False), (4, 4, False)])
def test_room_for_more_workers_asks_the_training_to_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, free: int, asks: bool
) -> None:
    monkeypatch.setattr(ray_workers, "SECONDS_BETWEEN_COUNTS", 0.01)
    monkeypatch.setattr(ray_workers, "room_for", lambda config, gpus: 4)
    monkeypatch.setattr(ray_workers, "is_free", lambda config, workers, gpus: workers <= free)
    with ray_workers._watching_for_room(task(tmp_path, "[1, 4]"), workers, None):
        assert within(5.0 if asks else 0.1, (tmp_path / stopping.FILE).exists) == asks
    assert not any(thread.name.endswith("(watch)") for thread in threading.enumerate())


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
    return is_so()
