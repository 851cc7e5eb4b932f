"""Progress of a training, written by rank 0: metrics in MLflow, and a file for the driver's bar."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from brgsa import files
from brgsa_platform.tracking import client as tracking
from brgsa_platform.training.run_folder import PROGRESS
from brgsa_platform.training.state import TrainingState

SECONDS_BETWEEN_POINTS = 2.0  # the least time between two points of a step


class TrainingLog:
    """Points of a run's steps and epochs."""

    def __init__(self, run_folder: Path, run_id: str, tracking_uri: str) -> None:
        self._file = run_folder / PROGRESS
        self._run = tracking.attach(run_id, tracking_uri)
        self._last_point = 0.0

    def step(self, state: TrainingState, loss: float) -> None:
        """Log a step's loss and learning rate, unless the last point is too new."""
        if time.monotonic() - self._last_point < SECONDS_BETWEEN_POINTS:
            return
        self._last_point = time.monotonic()
        progress, rate = state.progress, state.schedule.rate
        self._run.log_metrics({"step/loss": loss, "step/lr": rate}, step=progress.step)
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
