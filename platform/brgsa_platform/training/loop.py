"""The loop that a training worker executes: setup → epochs of fit, validate, checkpoint → done.

Knows Ray Train for its rank and its reports, and `batches` for its data. All workers compute the same loss (InfoNCE
over the global batch), so they also agree on what happens next.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from brgsa import checkpoint, losses, metrics, zeroshot
from brgsa.errors import UserError
from brgsa.model import BrgSA, Embeddings
from brgsa.volumes.intensity import Intensity, unit_intensities
from brgsa_platform.config import RunConfig
from brgsa_platform.runtime import files
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.training import batches as datasets
from brgsa_platform.training import checkpoints
from brgsa_platform.training import placement_groups as worker_groups
from brgsa_platform.training.loaders import Batch
from brgsa_platform.training.order import steps_per_epoch
from brgsa_platform.training.schedule import Schedule, optimizer_of
from brgsa_platform.training.texts import Texts, codes_of
from brgsa_platform.training.volume_cache import VolumeCache

SECONDS_BETWEEN_POINTS = 2.0  # step metrics and progress are written at most this often


@dataclass(frozen=True)
class Job:
    """What a worker is told: plain data, so that it travels to any node.

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


@dataclass
class Progress:
    """How far a training is; saved with each checkpoint.

    Attributes:
        epoch, step: whole epochs, and steps of the run.
        history: one entry a whole epoch.
        sums, seconds: of the steps of the epoch that is under way.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, found: dict[str, float], seconds: float) -> None:
        """One more step and what it measured."""
        self.step += 1
        self.seconds += seconds
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in found.items()}

    def end_epoch(self, score: float, found: dict[str, float]) -> None:
        self.epoch += 1
        self.history.append({"epoch": self.epoch, "score": score, **found})
        self.sums, self.seconds = {}, 0.0


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Entry point of a Ray Train worker.

    Returns:
        {"history": …} or, for a mistake that a restart cannot mend, {"refused": sentence}.
    """
    import ray.train.torch

    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        worker_groups.remember(Path(settings["job"].out))
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), ray.train.report)
    return _train(settings["job"], place)


def train_here(job: Job, on_epoch: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The same loop in this very process, for a search's trial: Ray Train's workers would cost each 12-20 s more."""
    return _train(job, Place(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"), on_epoch))


@dataclass(frozen=True)
class Place:
    """Where a worker stands: its rank among `world`, its device, and who is told of each epoch's metrics."""

    rank: int
    world: int
    device: torch.device
    report: Callable[[dict[str, Any]], None]


def _train(job: Job, place: Place) -> dict[str, Any]:
    try:
        worker = Worker(job, place)
        worker.fit()
    except UserError as error:
        return {"refused": str(error)}
    return {"history": worker.progress.history}


class Worker:
    """One of `world` training workers."""

    def __init__(self, job: Job, place: Place) -> None:
        self.rank, self.world, self.device, self.report = place.rank, place.world, place.device, place.report
        self.job, self.out = job, Path(job.out)
        self.config = RunConfig.from_tree(job.config)
        train = self.config.train
        torch.set_num_threads(train.threads or max(1, (os.cpu_count() or 1) // self.world))
        torch.set_flush_denormal(True)  # vanishing gradients are 0 to us, and slow a CPU down several times
        torch.manual_seed(train.seed)

        store = Store.open(job.store)
        self.labels = store.labels
        self.rows = datasets.split_index(store, "train")
        self.validation = self._validation_rows(store)
        self.texts = Texts(store, self.config, self.rows)
        self.crop = self.config.model.vision.volume
        self.source = datasets.BatchSource(
            self.rows, self.crop, self.config.data, self.rank, self.world, cache=job.cache
        )
        self.steps = steps_per_epoch(self.rows.scans, train.batch_size)

        self.model = self._model()
        self.optimizer = optimizer_of(self.config.optim, self.model)
        self.schedule = Schedule(self.config.optim, self.steps * train.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self._autocast_type() == torch.float16)
        self.progress = Progress()
        self.reference_scores: dict[str, list[float]] = {}
        self._floats = torch.empty(0)  # a batch's memory, see `_volumes`
        self._resume()
        # DDP broadcasts rank 0's weights, so all workers start alike.
        self.parallel: nn.Module = self.model
        if self.world > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.parallel = nn.parallel.DistributedDataParallel(self.model, device_ids=devices)
        self.mlflow = tracking.attach(job.run_id, job.tracking_uri) if self.rank == 0 else None
        self._last_point = 0.0

    def _model(self) -> BrgSA:
        from transformers import AutoTokenizer

        tokenizer = None
        if self.config.model.text.name == "small":
            tokenizer = AutoTokenizer.from_pretrained(str(self.out / "tokenizer"), local_files_only=True)
        return BrgSA(self.config.model, tokenizer=tokenizer).to(self.device)

    def _validation_rows(self, store: Store) -> datasets.SplitIndex | None:
        try:
            return datasets.split_index(store, "validation")
        except UserError:
            return None  # a store without validation volumes trains without validation; `train` has said so

    def _resume(self) -> None:
        newest = checkpoints.latest(self.out)
        if newest is None:
            if self.model.bank is not None and self.config.model.bank.init == "kmeans":
                self._bank_from_embeddings()
            return
        checkpoint.load_weights(self.model, newest)
        state = checkpoint.load_training(newest, self.optimizer)
        self.schedule.restore(state.pop("schedule"))
        self.scaler.load_state_dict(state.pop("scaler"))
        self.progress = Progress(**state)

    @torch.no_grad()
    def _bank_from_embeddings(self) -> None:
        assert self.model.bank is not None
        found: list[Tensor] = []
        if self.rank == 0:
            wanted = 2 * self.config.model.bank.size
            source = replace(self.source, rank=0, world=1)
            for batch in datasets.evaluation_batches(source, batch_size=self.config.train.batch_size):
                tokens = self.texts.tokens(self.model.text, batch.rows).to(self.device)
                volumes, texts = self.model(self._volumes(batch.blocks), tokens)
                found += [volumes.plain, texts.plain]
                if sum(len(part) for part in found) >= wanted:
                    break
            self.model.bank.initialise_from(torch.cat(found), self.config.train.seed)

    def fit(self) -> None:
        """Train from where the run stands to its last epoch."""
        train = self.config.train
        epochs = range(self.progress.epoch, train.epochs)
        if not epochs:
            return
        batches = datasets.training_batches(
            self.source,
            batch_size=train.batch_size,
            epochs=epochs,
            seed=train.seed,
            skip=self.progress.step - self.progress.epoch * self.steps,
        )
        self._last_checkpoint = time.monotonic()
        for epoch in epochs:
            self.texts.draw(epoch)
            while self.progress.step < (epoch + 1) * self.steps:
                started = time.monotonic()
                found = self._step(next(batches))
                self.progress.add(found, time.monotonic() - started)
                self._tell(found["loss"])
                self._checkpoint_within()
            self._end_epoch()
        if self.mlflow is not None:
            self.mlflow.close()

    def _step(self, batch: Batch) -> dict[str, float]:
        config, step = self.config, self.progress.step
        # Seeded anew, so that a run that goes on in mid-epoch draws the same noise and drops the same units.
        torch.manual_seed(int(np.random.SeedSequence([config.train.seed, step, self.rank]).generate_state(1)[0]))
        self.parallel.train()
        self.schedule.apply(self.optimizer, step)
        rows = batch.rows
        tokens = self.texts.tokens(self.model.text, rows).to(self.device)
        data = config.data
        intensity = Intensity.draw(len(rows), self.device, scale=data.scale, shift=data.shift, noise=data.noise)
        with self._autocast():
            volumes, texts = self.parallel(self._volumes(batch.blocks, intensity), tokens)
        loss = losses.brgsa_loss(
            _float(volumes),
            _float(texts),
            self._codes(self.rows.scans[rows]),
            config.loss,
            self._codes(self.texts.codes[rows]),
        )
        found = self._mean_over_workers(
            {"loss": loss.total, "plain": loss.plain, "bridged": loss.bridged, "reconstruction": loss.reconstruction}
        )
        if not np.isfinite(found["loss"]):
            raise UserError(f"The loss is {found['loss']} at step {step}: lower optim.lr or raise loss.temperature.")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss.total).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return found

    def _validate(self) -> dict[str, float]:
        """Zero-shot AUROC and loss on the validation split; every worker encodes its part, all know the result."""
        if self.validation is None:
            return {}
        rows = self.validation
        self.model.eval()
        indices: list[int] = []
        encoded: list[Embeddings] = []
        batch_size = self.config.train.batch_size
        source = replace(self.source, index=rows)
        for batch in datasets.evaluation_batches(source, batch_size=max(1, batch_size // self.world)):
            with self._autocast():
                encoded.append(_float(self.model.encode_volumes(self._volumes(batch.blocks))).cpu())
            indices += batch.rows.tolist()
        order, volumes = self._gather_embeddings(indices, encoded)
        prompts = zeroshot.prompts(self.labels)
        scores = zeroshot.scores(volumes, self.model.encode_texts(prompts).cpu()).numpy()
        labels = rows.labels[order]
        each = {
            i: metrics.auroc(labels[:, i], scores[:, i])
            for i in range(len(self.labels))
            if 0 < np.nansum(labels[:, i]) < np.sum(~np.isnan(labels[:, i]))
        }
        written = self.texts.of(rows, order)
        texts = Embeddings.concatenate(
            [
                self.model.encode_texts(written[start : start + batch_size]).cpu()
                for start in range(0, len(written), batch_size)
            ]
        )
        self.reference_scores = dict(zip(prompts, np.sort(scores.T, axis=1).round(6).tolist(), strict=True))
        found = {"val/loss": self._validation_loss(volumes, texts, rows.scans[order], codes_of(written))}
        rare = datasets.rare_labels(self.rows)
        for name, chosen in (
            ("val/auroc", list(each.values())),
            ("val/auroc_common", [value for i, value in each.items() if not rare[i]]),
            ("val/auroc_rare", [value for i, value in each.items() if rare[i]]),
        ):
            if chosen:
                found[name] = float(np.mean(chosen))
        return found

    def _validation_loss(self, volumes: Embeddings, texts: Embeddings, scans: np.ndarray, codes: np.ndarray) -> float:
        """The training loss over the validation volumes, in batches of the training's size."""
        size = self.config.train.batch_size
        found, weights = [], []
        for start in range(0, len(scans), size):
            part = slice(start, start + size)
            a, b = (Embeddings(e.plain[part], None if e.bridged is None else e.bridged[part]) for e in (volumes, texts))
            loss = losses.brgsa_loss(
                a, b, torch.from_numpy(scans[part]), self.config.loss, torch.from_numpy(codes[part]), local=True
            )
            found.append(float(loss.total))
            weights.append(len(a.plain))
        return float(np.average(found, weights=weights))

    def _gather_embeddings(self, indices: list[int], encoded: list[Embeddings]) -> tuple[np.ndarray, Embeddings]:
        mine = (indices, Embeddings.concatenate(encoded) if encoded else None)
        everyone: list[Any] = [mine]
        if self.world > 1:
            everyone = [None] * self.world
            dist.all_gather_object(everyone, mine)
        parts = [part for part in everyone if part[1] is not None]
        return np.concatenate([p[0] for p in parts]), Embeddings.concatenate([p[1] for p in parts])

    def _end_epoch(self) -> None:
        progress = self.progress
        found = {f"train/{name}": total / self.steps for name, total in progress.sums.items()}
        found["train/volumes_per_s"] = self.steps * self.config.train.batch_size / progress.seconds
        found |= self._validate()
        self.schedule.after_epoch(found.get("val/loss", found["train/loss"]))
        progress.end_epoch(found.get("val/auroc", -found["train/loss"]), found)
        if self.rank == 0:
            # Persist first, report then: a worker that dies right after a report loses what was not yet polled.
            self._save(checkpoints.folder_of(self.out, progress.epoch), self.reference_scores)
            checkpoints.keep_best(self.out, progress.history, self.config.train.keep)
            assert self.mlflow is not None
            self.mlflow.log_metrics(found, step=progress.step, at_once=True)  # a search may end the process in `report`
        self.report({"epoch": progress.epoch, **found})

    def _checkpoint_within(self) -> None:
        """Rank 0 alone decides by the clock: the others need not know, for all stand at the same step."""
        due = time.monotonic() - self._last_checkpoint >= 60 * self.config.train.checkpoint_minutes
        if self.rank == 0 and due and self.progress.step % self.steps:
            self._save(checkpoints.folder_of(self.out, self.progress.epoch, self.progress.step), {})

    def _save(self, folder: Path, reference_scores: dict[str, list[float]]) -> None:
        state = {**asdict(self.progress), "schedule": self.schedule.state(), "scaler": self.scaler.state_dict()}
        run = {**self.job.run, "epoch": self.progress.epoch, "reference_scores": reference_scores}
        checkpoint.save(folder, self.model, run, training=state, optimizer=self.optimizer)
        checkpoints.forget_steps(self.out)
        self._last_checkpoint = time.monotonic()

    def _tell(self, loss: float) -> None:
        if self.rank != 0 or time.monotonic() - self._last_point < SECONDS_BETWEEN_POINTS:
            return
        self._last_point = time.monotonic()
        assert self.mlflow is not None
        rate = self.optimizer.param_groups[0]["lr"]
        self.mlflow.log_metrics({"step/loss": loss, "step/lr": rate}, step=self.progress.step)
        last = self.progress.history[-1] if self.progress.history else {}
        files.write_json(
            self.out / "progress.json",
            {"step": self.progress.step, "loss": loss, "auroc": last.get("val/auroc"), "pid": os.getpid()},
        )

    def _volumes(self, blocks: Sequence[np.ndarray], intensity: Intensity | None = None) -> Tensor:
        """int16 HU blocks, together B volumes, to (B, 1, X, Y, Z) in [-1, 1] on the training device."""
        ct = [_view(block).to(self.device, non_blocking=True) for block in blocks]
        volumes = sum(len(block) for block in blocks)
        if len(self._floats) < volumes:
            self._floats = torch.empty((volumes, *self.crop), device=self.device)
        # Written anew each step: by then the last one's gradients are made.
        return unit_intensities(ct, intensity, out=self._floats[:volumes])

    def _codes(self, codes: np.ndarray) -> Tensor:
        return torch.from_numpy(codes).to(self.device)

    def _autocast_type(self) -> torch.dtype | None:
        # CPUs without native 16-bit arithmetic are two hundred times slower in it: a CPU always trains in 32.
        if self.device.type != "cuda" or self.config.train.precision == "32":
            return None
        return torch.float16 if self.config.train.precision == "16" else torch.bfloat16

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        kind = self._autocast_type()
        return contextlib.nullcontext() if kind is None else torch.autocast(self.device.type, dtype=kind)

    def _mean_over_workers(self, found: dict[str, Tensor]) -> dict[str, float]:
        values = torch.stack([value.detach() for value in found.values()])
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return dict(zip(found, values.tolist(), strict=True))


def _float(embeddings: Embeddings) -> Embeddings:
    bridged = embeddings.bridged
    return Embeddings(embeddings.plain.float(), None if bridged is None else bridged.float())


def _view(block: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # A block is a read-only view of the object store; nobody writes to it.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(block)
