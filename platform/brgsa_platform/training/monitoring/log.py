"""Progress of a training: metrics in MLflow, and a file for the driver's bar, by rank 0; its machines, by a worker of each."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from brgsa import files
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking.system_metrics import SystemMetrics
from brgsa_platform.training.run_folder import PROGRESS
from brgsa_platform.training.state import TrainingState

SECONDS_BETWEEN_POINTS = 2.0  # the least time between two points of a step
SECONDS_BETWEEN_SYSTEM_POINTS = 10.0


class TrainingLog:
    """Points of a run's steps and epochs."""

    def __init__(self, run_folder: Path, run_id: str, tracking_uri: str) -> None:
        self._file = run_folder / PROGRESS
        self._run = tracking.attach(run_id, tracking_uri)
        self._last_point = 0.0

    def started(self, workers: int, step: int) -> None:
        """Log how many workers begin or go on at a step: with a range of them it may change."""
        self._run.log_metrics({"train/workers": float(workers)}, step=step)

    def step(self, state: TrainingState, loss: float, parts: Mapping[str, float]) -> None:
        """Log a step's loss, learning rate and the seconds of its parts, unless the last point is too new."""
        if time.monotonic() - self._last_point < SECONDS_BETWEEN_POINTS:
            return
        self._last_point = time.monotonic()
        progress, rate = state.progress, state.schedule.rate
        seconds = {f"step/{part}_s": value for part, value in parts.items()}
        self._run.log_metrics({"step/loss": loss, "step/lr": rate, **seconds}, step=progress.step)
        last = progress.history[-1] if progress.history else {}
        point = {"step": progress.step, "loss": loss, "auroc": last.get("val/auroc"), "pid": os.getpid()}
        files.write_json(self._file, point)

    def epoch(self, metrics: dict[str, float], step: int) -> None:
        """Log an epoch's metrics at once: a search may end the process as soon as it is told of them."""
        self._run.log_metrics(metrics, step=step, at_once=True)

    def note(self, tag: str, sentence: str) -> None:
        """Say something in this process's log, and as a tag of the run."""
        logging.getLogger(__name__).info(sentence)
        self._run.set_tags({tag: sentence})

    def warn(self, tag: str, sentence: str) -> None:
        """Say what goes otherwise than configured: in this process's log, and as a tag of the run."""
        logging.getLogger(__name__).warning(sentence)
        self._run.set_tags({tag: sentence})

    def close(self) -> None:
        """Send what waits to be sent."""
        self._run.close()


class SystemLog:
    """Points of what a node's machine does, at the steps of the training."""

    def __init__(self, run: tracking.Run, metrics: SystemMetrics) -> None:
        self._run, self._metrics = run, metrics
        self._last_point = time.monotonic()

    @classmethod
    def of_node(cls, node: int, run_id: str, tracking_uri: str) -> SystemLog | None:
        """Of this node, by its number; None where psutil is missing."""
        if not SystemMetrics.are_available():
            return None
        prefix = f"system/node_{node}/" if node else "system/"
        return cls(tracking.attach(run_id, tracking_uri), SystemMetrics(prefix))

    def step(self, step: int) -> None:
        """Log a point, unless the last one is too new."""
        if time.monotonic() - self._last_point < SECONDS_BETWEEN_SYSTEM_POINTS:
            return
        self._last_point = time.monotonic()
        self._run.log_metrics(self._metrics.read(), step=step)

    def close(self) -> None:
        """Send what waits to be sent."""
        self._run.close()
