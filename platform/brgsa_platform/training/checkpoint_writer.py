"""When a training writes a checkpoint: after each epoch, and within an epoch every so many minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from brgsa_platform.config import TrainSection
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.parallel.workers import WorkerContext
from brgsa_platform.training.state import TrainingState


class CheckpointWriter:
    """Writes a run's checkpoints. All workers call it, for each may hold a part of the state; rank 0 writes."""

    def __init__(self, run_folder: Path, run: dict[str, Any], config: TrainSection, workers: WorkerContext) -> None:
        self._run_folder, self._run, self._config, self._workers = run_folder, run, config, workers
        self._written = time.monotonic()

    def end_epoch(self, state: TrainingState, reference_scores: dict[str, list[float]]) -> None:
        """Save an epoch that has ended, and remove what is no longer among the best."""
        self._save(state, run_checkpoints.folder_of(self._run_folder, state.progress.epoch), reference_scores)
        if self._workers.rank == 0:
            run_checkpoints.keep_best(self._run_folder, state.progress.history, self._config.keep)

    def within_epoch(self, state: TrainingState) -> None:
        """Save if the last checkpoint is old enough, by the clock of rank 0."""
        is_due = time.monotonic() - self._written >= 60 * self._config.checkpoint_minutes
        if self._workers.gather(is_due)[0]:
            self.now(state)

    def now(self, state: TrainingState) -> None:
        """Save within an epoch."""
        progress = state.progress
        self._save(state, run_checkpoints.folder_of(self._run_folder, progress.epoch, progress.step), {})

    def _save(self, state: TrainingState, folder: Path, reference_scores: dict[str, list[float]]) -> None:
        whole = state.whole()
        if self._workers.rank == 0:
            run = {**self._run, "epoch": state.progress.epoch, "reference_scores": reference_scores}
            state.save(folder, run, whole)
            run_checkpoints.forget_steps(self._run_folder)
        self._written = time.monotonic()
