"""The loop of a training worker: set up, then epochs of steps, each epoch validated, saved and reported.

All workers compute the same loss (InfoNCE over the global batch), so they agree on everything that follows from it. A step
takes its volumes from `batches` and its texts from `texts`, and goes on in `step`. The loop works ahead of the device: it reads
losses once in `train.log_every` steps, and always before it saves or reports anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from brgsa.compilation import compile_tower
from brgsa.errors import UserError
from brgsa.files import write_json
from brgsa.text import Tokens
from brgsa.volumes.augment import Shape
from brgsa.volumes.transfer import BatchCopier, send
from brgsa_platform.config import RunConfig, TrainSection
from brgsa_platform.loading.batches import BatchSource, SplitIndex, evaluation_batches, split_index, training_batches
from brgsa_platform.loading.input_buffer import tensor_batches
from brgsa_platform.loading.items import items_of, training_steps
from brgsa_platform.loading.loaders import Batch, Batches, Loader
from brgsa_platform.loading.order import Ints
from brgsa_platform.loading.random_streams import Purpose, stream
from brgsa_platform.loading.supervision import SupervisedLabels
from brgsa_platform.loading.texts import Texts, written_texts
from brgsa_platform.loading.unseen import training_view
from brgsa_platform.loading.volume_cache import VolumeCache
from brgsa_platform.store.store import Store
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.checkpoint_writer import CheckpointWriter
from brgsa_platform.training.encoding import EncodedSplit, encode_split, encode_texts
from brgsa_platform.training.monitoring.log import SystemLog, TrainingLog
from brgsa_platform.training.monitoring.step_clock import DATA, StepClock
from brgsa_platform.training.parallel import sharding
from brgsa_platform.training.parallel.stopping import Stopped, StopSigns
from brgsa_platform.training.parallel.workers import WorkerContext
from brgsa_platform.training.state import TrainingState
from brgsa_platform.training.step import ReadStep, StepInput, TrainingStep, UnreadLosses
from brgsa_platform.training.validation import Measured, Validation

WEIGHTS = "weights.json"  # in the run's folder: what was taken of the weights that the towers started from
NOT_FINITE = "not-finite.json"  # in the run's folder: the step whose loss was no number


@dataclass(frozen=True)
class TrainingTask:
    """What a training worker is told: plain data, so that it travels to any node.

    Attributes:
        config: of the run.
        store, out: the store's and the run's folder, seen by all nodes.
        run: what a checkpoint's run.json holds.
        tracking_uri, run_id: the MLflow run that rank 0 appends to; no run where the id is empty.
        cache: the store's volumes, where a search has decoded them for all of its trials.
        supervised: the labels of the training's rows, where it learns from labels.
    """

    config: RunConfig
    store: str
    out: str
    run: dict[str, Any]
    tracking_uri: str
    run_id: str
    cache: VolumeCache | None = None
    supervised: SupervisedLabels | None = None


def train_here(
    task: TrainingTask, on_epoch: Callable[[dict[str, Any]], None], device: torch.device
) -> list[dict[str, Any]]:
    """The same loop in this process, for a search's trial: Ray Train's workers would cost each trial 12-20 s more.

    Raises:
        UserError: something that the user can mend stops the training.
        Stopped: it was asked to stop.
    """
    return run_training(task, WorkerContext(device=device, report=on_epoch))


def run_training(task: TrainingTask, workers: WorkerContext) -> list[dict[str, Any]]:
    """Train from where the run stands to its end, as one of the workers.

    Returns:
        The history, one entry an epoch.

    Raises:
        UserError: something that the user can mend stops the training; on all workers alike.
        Stopped: it was asked to stop; on all workers alike.
    """
    torch.set_flush_denormal(True)  # vanishing gradients count as 0, and slow a CPU down several times
    try:
        trainer = workers.together(lambda: Trainer(task, workers))
        trainer.fit()
    finally:
        torch.set_flush_denormal(False)  # after a training in the user's own process, its arithmetic is exact again
    return trainer.state.progress.history


class Trainer:
    """One of the workers that train a model together."""

    def __init__(self, task: TrainingTask, workers: WorkerContext) -> None:
        """Set up data, texts, model and the run's newest checkpoint; no call here waits for another worker."""
        self.task, self.workers = task, workers
        self.stop_signs = StopSigns(Path(task.out), workers)
        self.config = task.config
        train, out = self.config.train, Path(task.out)
        _set_up_torch(train, workers.local_world)

        data = self.config.data
        store = training_view(Store.open(task.store), data)
        self.rows = split_index(store, "train", data.style)
        self.texts = Texts(written_texts(store, data.style, self.rows), data, train.seed)
        self.validation = Validation.of(store, self.config, task.supervised)
        self.items = items_of(store, self.rows, self.config)
        self.steps = training_steps(self.rows, self.items, self.config)
        self.seen = self.config.model.vision.evaluated(store.geometry.shape)
        self.state = TrainingState.new(self.config, out, self.steps * train.epochs, workers.device)
        self.model = self.state.model
        is_compiled = train.compile and compile_tower(self.model.vision)
        self.resumed_from = run_checkpoints.latest(out)
        started = {} if self.resumed_from else self.state.start_towers()
        if self.resumed_from is not None:
            self.state.load(self.resumed_from)
        self.log: TrainingLog | None = None
        self.checkpoints = CheckpointWriter(out, task.run, train, workers)
        if workers.rank == 0:
            if started:
                write_json(out / WEIGHTS, {tower: told.to_dict() for tower, told in started.items()})
            run_checkpoints.mend(out, train.keep)
        self.system: SystemLog | None = None
        if workers.leads_node and task.run_id and train.system_metrics:
            self.system = SystemLog.of_node(workers.node, task.run_id, task.tracking_uri)
        if workers.rank == 0 and task.run_id:
            self.log = TrainingLog(out, task.run_id, task.tracking_uri)
            self.log.started(workers.world, self.state.progress.step)
            for tower, told in started.items():
                self.log.note(f"brgsa.weights.{tower}", str(told))
            if train.compile and not is_compiled:
                self.log.warn(
                    "brgsa.compiled", "train.compile needs a C compiler on each training node: trained without it"
                )

    def fit(self) -> None:
        """Train from where the run stands to its last epoch, or until it stops early.

        Raises:
            UserError: something that the user can mend stops the training; on all workers alike.
            Stopped: it was asked to stop, and has saved what it has done.
        """
        progress = self.state.progress
        if self.resumed_from is None:
            self.initialise_bank()
        elif progress.history:
            # A kill may have come before the report. A receiver that has this epoch already ignores it.
            self.workers.report(run_checkpoints.report_of(progress.history[-1]))
        is_over = run_checkpoints.is_over(progress.history, self.config.train)
        epochs = range(0) if is_over else range(progress.epoch, self.config.train.epochs)
        if self.config.train.parallel == "fsdp":
            self.workers.share_weights(self.model)
            self.state.shard(self.config.optim, self.steps * self.config.train.epochs)
        if epochs:
            # Close the stream: the traceback of an error would keep it open until Ray ends.
            ahead = tensor_batches(self._batches(epochs), self.workers.device)
            with contextlib.closing(self._validation_loader), contextlib.closing(ahead) as batches:
                self._fit(TrainingStep(self.config, self.state, self.workers), batches, epochs)
        self._close()

    def _fit(self, learn: TrainingStep, batches: Iterator[tuple[Batch, Sequence[Tensor]]], epochs: range) -> None:
        """The epochs, each with its steps."""
        progress, to_device = self.state.progress, BatchCopier(self.workers.device)
        unread, clock = UnreadLosses(self.workers), learn.clock
        for epoch in epochs:
            self.texts.draw(epoch)
            unread.start_clock()
            last = (epoch + 1) * self.steps - 1
            for step in range(progress.step, last + 1):
                is_due = step == last or (step + 1) % self.config.train.log_every == 0
                clock.begin(measured=is_due)
                batch, blocks = self.workers.together(partial(next, batches))
                clock.mark(DATA)
                volumes = to_device(blocks)
                unread.add(batch.rows, learn(self._step_input(batch.rows, volumes), step))
                is_to_stop = self.stop_signs.is_given()
                if is_due or is_to_stop:
                    self._count(unread.read(), clock)
                self.state.schedule.after_step()
                if is_to_stop:
                    self._stop()
                if is_due and step < last:
                    self.checkpoints.within_epoch(self.state)
                    unread.start_clock()
            self._end_epoch()
            if run_checkpoints.is_over(progress.history, self.config.train):
                return

    def _stop(self) -> NoReturn:
        """Save what is done of the epoch, also where nothing is left but to validate: that may take longer than there is."""
        self.checkpoints.now(self.state)
        self._close()
        raise Stopped

    def _close(self) -> None:
        for log in (self.log, self.system):
            if log is not None:
                log.close()

    def _batches(self, epochs: range) -> Batches:
        """This worker's part of each global batch, from the step on where the run stands."""
        progress, train = self.state.progress, self.config.train
        return training_batches(
            self._source(self.rows, self.config.model.vision.volume),
            self.items,
            batch_size=train.batch_size,
            epochs=epochs,
            seed=train.seed,
            skip=progress.step - progress.epoch * self.steps,
        )

    def _step_input(self, rows: Ints, volumes: Sequence[Tensor]) -> StepInput:
        """What a step learns from: the volumes of these rows, and what belongs to them."""
        device = self.workers.device
        supervised = self.task.supervised
        prompts = () if supervised is None else supervised.prompts
        tokens = Tokens(*(send(part, device) for part in self.texts.tokens(self.model.text, rows, prompts)))
        scans, codes = (torch.from_numpy(of_rows[rows]) for of_rows in (self.rows.scans, self.texts.codes))
        labels = None if supervised is None else send(torch.from_numpy(supervised.labels[rows]), device)
        return StepInput(volumes, tokens, send(scans, device), send(codes, device), labels)

    def _count(self, steps: list[ReadStep], clock: StepClock) -> None:
        """Count steps that are done, and log the last one."""
        state = self.state
        for step in steps:
            if not step.is_finite(scaled=state.scaler.is_enabled()):
                raise self._not_finite(step)
            state.progress.end_step(step.losses, step.seconds)
        if self.log is not None:
            self.log.step(state, steps[-1].losses["loss"], clock.read())
        if self.system is not None:
            self.system.step(state.progress.step)

    def _not_finite(self, step: ReadStep) -> UserError:
        """Why training cannot go on; which volumes the step had stands in the run's folder alone."""
        file, number = Path(self.task.out) / NOT_FINITE, self.state.progress.step
        rows = [row for part in self.workers.gather(step.rows.tolist()) for row in part]
        if self.workers.rank == 0:
            volumes = [self.rows.volume_ids[row] for row in rows]
            measured = {name: str(value) for name, value in [*step.losses.items(), ("gradient", step.gradient_norm)]}
            write_json(file, {"step": number, **measured, "volumes": volumes})
        return UserError(
            f"The loss is {step.losses['loss']} at step {number}, with a gradient of {step.gradient_norm}: lower optim.lr or "
            f"raise loss.temperature. {file} names the step's volumes.",
            code="loss-not-finite",
            field="optim.lr",
            value=self.config.optim.lr,
        )

    def _end_epoch(self) -> None:
        """Validate, save, log and report the epoch."""
        progress = self.state.progress
        metrics = {f"train/{name}": total / self.steps for name, total in progress.sums.items()}
        if self.model.scale is not None:
            metrics |= {f"train/{name}": value for name, value in self.model.scale.learned().items()}
        metrics["train/volumes_per_s"] = self.steps * self.config.train.batch_size / progress.seconds
        validated = self._validate()
        metrics |= validated.metrics
        self.state.schedule.after_epoch(metrics.get("val/loss", metrics["train/loss"]))
        progress.end_epoch(run_checkpoints.score_of(metrics, self.config.train.select), metrics)
        # Save before reporting: a worker that dies right after a report loses what Ray has not polled yet.
        self.checkpoints.end_epoch(self.state, validated.reference_scores)
        if self.log is not None:
            self.log.epoch(metrics, progress.step)
        self.workers.report(run_checkpoints.report_of(progress.history[-1]))

    def _validate(self) -> Measured:
        """Measure the model on the validation split, if there is one; every worker encodes its part."""
        if self.validation is None:
            return Measured({}, {})
        with sharding.gathered(self.model):
            rows, precision = self.validation.rows, self.config.train.precision
            volumes = self._encode(rows, precision, self._validation_loader).embeddings
            scale, loss = self.model.scale, self.config.loss
            measured = self.validation.measure(self.model, volumes, loss if scale is None else scale.fixed(loss))
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

    @cached_property
    def _validation_loader(self) -> Loader:
        """What reads the validation split in each epoch."""
        rows = self.rows if self.validation is None else self.validation.rows
        return self._source(rows, self.seen).loader()

    def _encode(self, rows: SplitIndex, precision: str, loader: Loader | None = None) -> EncodedSplit:
        """Embeddings of the volumes of `rows`, each worker encoding its part."""
        workers, train = self.workers, self.config.train
        batch_size = train.micro_batch or max(1, train.batch_size // workers.world)
        batches = evaluation_batches(self._source(rows, self.seen), batch_size=batch_size, loader=loader)
        return encode_split(self.model, rows, batches, workers=workers, precision=precision)

    def _source(self, rows: SplitIndex, crop: Shape) -> BatchSource:
        """What this worker's batches of some rows are made of."""
        workers = self.workers
        return BatchSource(rows, crop, self.config.data, workers.rank, workers.world, cache=self.task.cache)


def _set_up_torch(config: TrainSection, workers: int) -> None:
    """This process's threads and first random numbers."""
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // workers))
    torch.manual_seed(config.seed)
