"""The loop of a training worker: set up, then epochs of steps, each epoch validated, saved and reported.

All workers compute the same loss (InfoNCE over the global batch), so they agree on everything that follows from it. A step
goes through `batches` (volumes) and `texts`, the towers and the bank of `brgsa.model`, and `brgsa.losses`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from brgsa.errors import UserError
from brgsa.losses import Losses, brgsa_loss
from brgsa.precision import autocast
from brgsa.volumes.intensity import Intensity
from brgsa_platform.config import RunConfig, TrainSection
from brgsa_platform.loading.batches import BatchSource, SplitIndex, evaluation_batches, split_index, training_batches
from brgsa_platform.loading.input_buffer import InputBuffer
from brgsa_platform.loading.loaders import Batch, Batches
from brgsa_platform.loading.order import steps_per_epoch
from brgsa_platform.loading.random_streams import Purpose, stream
from brgsa_platform.loading.texts import Texts, written_texts
from brgsa_platform.loading.volume_cache import VolumeCache
from brgsa_platform.store.store import Store
from brgsa_platform.training import placement_groups, run_checkpoints
from brgsa_platform.training.checkpoint_writer import CheckpointWriter
from brgsa_platform.training.encoding import EncodedSplit, as_float32, encode_split, encode_texts
from brgsa_platform.training.log import TrainingLog
from brgsa_platform.training.state import TrainingState
from brgsa_platform.training.validation import Measured, Validation
from brgsa_platform.training.workers import WorkerContext


@dataclass(frozen=True)
class TrainingTask:
    """What a training worker is told: plain data, so that it travels to any node.

    Attributes:
        config: RunConfig tree.
        store, out: the store's and the run's folder, seen by all nodes.
        run: what a checkpoint's run.json holds.
        tracking_uri, run_id: the MLflow run that rank 0 appends to.
        cache: the store's volumes, where a search has decoded them for all of its trials.
    """

    config: dict[str, Any]
    store: str
    out: str
    run: dict[str, Any]
    tracking_uri: str
    run_id: str
    cache: VolumeCache | None = None


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Entry point of a Ray Train worker.

    Returns:
        {"history": …}, or {"refused": UserError}: raised, it would make Ray Train start the workers again.
    """
    import ray.train.torch

    context = ray.train.get_context()
    workers = WorkerContext(
        context.get_world_rank(),
        context.get_world_size(),
        ray.train.torch.get_device(),
        ray.train.report,
        context.get_local_world_size(),
    )
    task: TrainingTask = settings["task"]
    if workers.rank == 0:
        placement_groups.remember(Path(task.out))
    try:
        return {"history": run_training(task, workers)}
    except UserError as error:
        return {"refused": error}


def train_here(
    task: TrainingTask, on_epoch: Callable[[dict[str, Any]], None], device: torch.device
) -> list[dict[str, Any]]:
    """The same loop in this process, for a search's trial: Ray Train's workers would cost each trial 12-20 s more.

    Raises:
        UserError: something that the user can mend stops the training.
    """
    return run_training(task, WorkerContext(device=device, report=on_epoch))


def run_training(task: TrainingTask, workers: WorkerContext) -> list[dict[str, Any]]:
    """Train from where the run stands to its last epoch, as one of the workers.

    Returns:
        The history, one entry an epoch.

    Raises:
        UserError: something that the user can mend stops the training; on all workers alike.
    """
    trainer = workers.together(lambda: Trainer(task, workers))
    trainer.fit()
    return trainer.state.progress.history


class Trainer:
    """One of the workers that train a model together."""

    def __init__(self, task: TrainingTask, workers: WorkerContext) -> None:
        """Set up data, texts, model and the run's newest checkpoint; no call here waits for another worker."""
        self.task, self.workers = task, workers
        self.config = RunConfig.from_tree(task.config)
        train, out = self.config.train, Path(task.out)
        _set_up_torch(train, workers.local_world)

        store = Store.open(task.store)
        data = self.config.data
        self.rows = split_index(store, "train", data.style)
        self.texts = Texts(written_texts(store, data.style, self.rows), data, train.seed)
        self.validation = Validation.of(store, data.style, self.rows)
        self.steps = steps_per_epoch(self.rows.scans, train.batch_size)
        self.input = InputBuffer(workers.device)

        self.state = TrainingState.new(self.config, out, self.steps * train.epochs, workers.device)
        self.model = self.state.model
        self.resumed_from = run_checkpoints.latest(out)
        if self.resumed_from is not None:
            self.state.load(self.resumed_from)
        self.log: TrainingLog | None = None
        self.checkpoints: CheckpointWriter | None = None
        if workers.rank == 0:
            run_checkpoints.mend(out, train.keep)
            self.log = TrainingLog(out, task.run_id, task.tracking_uri)
            self.checkpoints = CheckpointWriter(out, task.run, train)

    def fit(self) -> None:
        """Train from where the run stands to its last epoch."""
        progress = self.state.progress
        if self.resumed_from is None:
            self.initialise_bank()
        elif progress.history:
            # A kill may have come before the report. A receiver that has this epoch already ignores it.
            self.workers.report(run_checkpoints.report_of(progress.history[-1]))
        epochs = range(progress.epoch, self.config.train.epochs)
        if epochs:
            # Close the stream: the traceback of an error would keep it open until Ray ends.
            with contextlib.closing(self._batches(epochs)) as batches:
                self._fit(self._parallel(), batches, epochs)
        if self.log is not None:
            self.log.close()

    def _fit(self, model: nn.Module, batches: Iterator[Batch], epochs: range) -> None:
        """The epochs, each with its steps."""
        progress = self.state.progress
        for epoch in epochs:
            self.texts.draw(epoch)
            while progress.step < (epoch + 1) * self.steps:
                started = time.monotonic()
                losses = self._step(model, self.workers.together(partial(next, batches)))
                progress.end_step(losses, time.monotonic() - started)
                self._after_step(losses["loss"])
            self._end_epoch()

    def _parallel(self) -> nn.Module:
        """The model with its gradients averaged over the workers; all of them start with the weights of rank 0."""
        if self.workers.world == 1:
            return self.model
        devices = [self.workers.device] if self.workers.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(self.model, device_ids=devices)

    def _batches(self, epochs: range) -> Batches:
        """This worker's part of each global batch, from the step on where the run stands."""
        progress, train = self.state.progress, self.config.train
        return training_batches(
            self._source(self.rows),
            batch_size=train.batch_size,
            epochs=epochs,
            seed=train.seed,
            skip=progress.step - progress.epoch * self.steps,
        )

    def _step(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Learn from one batch; gives its losses, the mean over the workers."""
        config, state = self.config, self.state
        _seed_step(config.train.seed, state.progress.step, self.workers.rank)
        model.train()
        loss = self._loss(model, batch)
        losses = self.workers.mean(
            {"loss": loss.total, "plain": loss.plain, "bridged": loss.bridged, "reconstruction": loss.reconstruction}
        )
        if not np.isfinite(losses["loss"]):
            raise UserError(
                f"The loss is {losses['loss']} at step {state.progress.step}: lower optim.lr or raise loss.temperature.",
                code="loss-not-finite",
                field="optim.lr",
                value=config.optim.lr,
            )
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss.total).backward()
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return losses

    def _loss(self, model: nn.Module, batch: Batch) -> Losses:
        """The loss of a batch over all workers, with its gradient."""
        config, device = self.config, self.workers.device
        tokens = self.texts.tokens(self.model.text, batch.rows).to(device)
        data = config.data
        intensity = Intensity.draw(len(batch.rows), device, scale=data.scale, shift=data.shift, noise=data.noise)
        with autocast(device, config.train.precision):
            volumes, texts = model(self.input.fill(batch.blocks, intensity), tokens)
        scans, codes = (
            torch.from_numpy(of_rows[batch.rows]).to(device) for of_rows in (self.rows.scans, self.texts.codes)
        )
        return brgsa_loss(as_float32(volumes), as_float32(texts), scans, config.loss, codes)

    def _after_step(self, loss: float) -> None:
        """Log the step, set the next step's rate, and save where it is time."""
        state = self.state
        if self.log is not None:
            self.log.step(state, loss)
        state.schedule.after_step()
        if self.checkpoints is not None and state.progress.step % self.steps:
            self.checkpoints.within_epoch(state)

    def _end_epoch(self) -> None:
        """Validate, save, log and report the epoch."""
        progress = self.state.progress
        metrics = {f"train/{name}": total / self.steps for name, total in progress.sums.items()}
        metrics["train/volumes_per_s"] = self.steps * self.config.train.batch_size / progress.seconds
        validated = self._validate()
        metrics |= validated.metrics
        self.state.schedule.after_epoch(metrics.get("val/loss", metrics["train/loss"]))
        progress.end_epoch(metrics.get("val/auroc", -metrics["train/loss"]), metrics)
        if self.checkpoints is not None:
            # Save before reporting: a worker that dies right after a report loses what Ray has not polled yet.
            self.checkpoints.end_epoch(self.state, validated.reference_scores)
        if self.log is not None:
            self.log.epoch(metrics, progress.step)
        self.workers.report(run_checkpoints.report_of(progress.history[-1]))

    def _validate(self) -> Measured:
        """Measure the model on the validation split, if there is one; every worker encodes its part."""
        if self.validation is None:
            return Measured({}, {})
        train = self.config.train
        volumes = self._encode(self.validation.rows, train.precision).embeddings
        measured = self.validation.measure(self.model, volumes, self.config.loss, train.batch_size)
        # Rank 0's metrics count. Rounded differently on two workers, a loss would make their learning rates diverge.
        return self.workers.gather(measured)[0]

    def initialise_bank(self) -> None:
        """Where so configured, start the bank from the embeddings that the untrained towers give a sample of the split.

        Raises:
            UserError: the split is too small for the bank.
        """
        bank, config = self.model.bank, self.config
        if bank is None or config.model.bank.init != "kmeans":
            return
        drawn = stream(Purpose.BANK_SAMPLE, config.train.seed).permutation(len(self.rows))
        sample = np.sort(drawn[: config.model.bank.size])
        volumes = self._encode(self.rows.take(sample), "32").embeddings
        texts = encode_texts(self.model, [self.texts.written[row] for row in sample])
        bank.initialise_from(torch.cat([volumes.plain, texts.plain]), config.train.seed)

    def _encode(self, rows: SplitIndex, precision: str) -> EncodedSplit:
        """Embeddings of the volumes of `rows`, each worker encoding its part."""
        workers = self.workers
        batch_size = max(1, self.config.train.batch_size // workers.world)
        batches = evaluation_batches(self._source(rows), batch_size=batch_size)
        return encode_split(self.model, rows, batches, workers=workers, precision=precision)

    def _source(self, rows: SplitIndex) -> BatchSource:
        """What this worker's batches of some rows are made of."""
        config, workers = self.config, self.workers
        return BatchSource(
            rows, config.model.vision.volume, config.data, workers.rank, workers.world, cache=self.task.cache
        )


def _set_up_torch(config: TrainSection, workers: int) -> None:
    """This process's threads and first random numbers."""
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // workers))
    torch.set_flush_denormal(True)  # vanishing gradients count as 0, and slow a CPU down several times
    torch.manual_seed(config.seed)


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step, so that a run that goes on within an epoch draws the same noise and drops the same units."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))
