"""A training step: one batch to new weights. Nothing in it waits for the device; to read what it measures is to wait.

The way of a step: volumes and texts to embeddings (`brgsa.model`), their loss over the batch of all workers
(`brgsa.losses`), gradients, the optimiser.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from brgsa.locking import locked_modules
from brgsa.losses import Losses, Supervision, brgsa_loss
from brgsa.losses.micro_batches import backward_in_micro_batches
from brgsa.model import Embeddings
from brgsa.precision import autocast
from brgsa.text import Tokens
from brgsa.volumes.intensity import Intensity
from brgsa_platform.config import RunConfig
from brgsa_platform.loading.input_buffer import InputBuffer
from brgsa_platform.loading.order import Ints
from brgsa_platform.training.encoding import as_float32, select_rows
from brgsa_platform.training.monitoring.step_clock import StepClock
from brgsa_platform.training.parallel import sharding
from brgsa_platform.training.parallel.workers import WorkerContext
from brgsa_platform.training.schedule import tower_parameters
from brgsa_platform.training.state import TrainingState

MEASURED = ("loss", "plain", "bridged", "reconstruction", "supervised", "gradient_norm")


class StepInput(NamedTuple):
    """This worker's part of a batch, b pairs on its device.

    Attributes:
        volumes: int16 HU (n, x, y, z) each, together b.
        tokens: of the b texts, and after them of the K prompts of the abnormalities that are supervised.
        scans, codes: int64 (b,), see `brgsa.losses.brgsa_loss`.
        labels: float (b, K) of those abnormalities, see `brgsa.losses.Supervision`; None without supervision.
    """

    volumes: Sequence[Tensor]
    tokens: Tokens
    scans: Tensor
    codes: Tensor
    labels: Tensor | None = None


class TrainingStep:
    """The step of one of the workers; all of them make it together, and hold the same weights before and after."""

    def __init__(self, config: RunConfig, state: TrainingState, workers: WorkerContext) -> None:
        self.config, self.state, self.workers = config, state, workers
        self.model = state.model
        self._locked = locked_modules(self.model)
        self._parallel: nn.Module = self.model
        self._input = InputBuffer(workers.device)
        self.clock = StepClock(workers.device)
        if workers.world == 1 or config.train.parallel == "fsdp":
            return
        if config.train.micro_batch:
            workers.share_weights(self.model)
        else:
            devices = [workers.device] if workers.device.type == "cuda" else None
            self._parallel = nn.parallel.DistributedDataParallel(self.model, device_ids=devices)

    def __call__(self, batch: StepInput, number: int) -> Tensor:
        """Learn from a batch.

        Args:
            number: of the step in the run, which seeds what the step draws.

        Returns:
            What `MEASURED` names, float32 (6,) on the device; the losses are this worker's, to be averaged.
        """
        state, train = self.state, self.config.train
        seed_step(train.seed, number, self.workers.rank)
        self.model.train()
        for module in self._locked:
            module.eval()
        state.optimizer.zero_grad(set_to_none=True)
        floats = self._input.fill(batch.volumes, self._intensity(len(batch.scans)))
        self.clock.mark("copy")
        backward = self._backward_in_micro_batches if train.micro_batch else self._backward
        losses = backward(floats, batch)
        self.clock.mark("backward")
        if train.parallel == "fsdp" and self.model.scale is not None:
            self.workers.average_gradients(self.model.scale)  # FSDP leaves it to each worker
        state.scaler.unscale_(state.optimizer)
        # Not temperature and bias: their bounds hold them, and a part of them would cost the towers theirs.
        norm: Any = nn.utils.clip_grad_norm_(tower_parameters(self.model), self.config.optim.clip)
        if sharding.is_shared_out(norm):
            norm = norm.full_tensor()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if self.model.scale is not None:
            self.model.scale.clamp()
        self.clock.mark("optimizer")
        return torch.stack([*losses, norm]).detach()

    def _backward(self, floats: Tensor, batch: StepInput) -> Losses:
        """Gradients of the loss, averaged over the workers by DDP while they are computed."""
        with autocast(self.workers.device, self.config.train.precision):
            volumes, texts = self._parallel(floats, batch.tokens)
        losses = self._loss(batch, as_float32(volumes), as_float32(texts))
        self.state.scaler.scale(losses.total).backward()
        return losses

    def _backward_in_micro_batches(self, floats: Tensor, batch: StepInput) -> Losses:
        """The same gradients, from one micro batch of volumes after the other; they are averaged once, at the end."""
        parts = floats.split(self.config.train.micro_batch or len(floats))
        losses = backward_in_micro_batches(
            [partial(self._embed_volumes, part) for part in parts],
            [partial(self._embed_texts, batch.tokens)],  # all at once: they have a thirtieth of the tokens
            partial(self._loss, batch),
            scale=self.state.scaler.scale,
        )
        if self.config.train.parallel == "ddp":  # FSDP averages what it shares out
            self.workers.average_gradients(self.model)
        return losses

    def _embed_volumes(self, floats: Tensor) -> Embeddings:
        with autocast(self.workers.device, self.config.train.precision):
            return as_float32(self.model.embed_volumes(floats))

    def _embed_texts(self, tokens: Tokens) -> Embeddings:
        with autocast(self.workers.device, self.config.train.precision):
            return as_float32(self.model.embed_tokens(tokens))

    def _loss(self, batch: StepInput, volumes: Embeddings, texts: Embeddings) -> Losses:
        self.clock.mark("forward")
        supervision = None
        if batch.labels is not None:
            count = len(batch.scans)
            supervision = Supervision(select_rows(texts, slice(count, None)), batch.labels)
            texts = select_rows(texts, slice(count))
        losses = brgsa_loss(
            volumes,
            texts,
            batch.scans,
            self.config.loss,
            batch.codes,
            learned=self.model.scale,
            supervision=supervision,
        )
        self.clock.mark("gather")
        return losses

    def _intensity(self, volumes: int) -> Intensity | None:
        data = self.config.data
        return Intensity.draw(volumes, self.workers.device, scale=data.scale, shift=data.shift, noise=data.noise)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step, so that a run that goes on within an epoch draws the same noise and drops the same units."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


class ReadStep(NamedTuple):
    """A step whose losses have been read.

    Attributes:
        rows: (b,) rows of this worker's part of the batch.
        losses: by name, the mean over the workers.
        gradient_norm: before it is clipped.
        seconds: the mean over the steps that were read together.
    """

    rows: Ints
    losses: dict[str, float]
    gradient_norm: float
    seconds: float

    def is_finite(self, *, scaled: bool) -> bool:
        """Whether the step has left good weights; a gradient scaler leaves out a step whose gradients overflow."""
        return all(map(math.isfinite, self.losses.values())) and (scaled or math.isfinite(self.gradient_norm))


class UnreadLosses:
    """The steps since the last reading."""

    def __init__(self, workers: WorkerContext) -> None:
        self._workers = workers
        self._steps: list[tuple[Ints, Tensor]] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Count the time of the next steps from now on."""
        self._since = time.monotonic()

    def add(self, rows: Ints, measured: Tensor) -> None:
        """Take what a step measured, float32 (6,)."""
        self._steps.append((rows, measured))

    def read(self) -> list[ReadStep]:
        """The steps, oldest first, on all workers alike; none is unread afterwards. At least one must be."""
        steps, self._steps = self._steps, []
        values = self._workers.mean(torch.stack([measured for _, measured in steps])).tolist()
        seconds = (time.monotonic() - self._since) / len(steps)
        self.start_clock()
        read = []
        for (rows, _), numbers in zip(steps, values, strict=True):
            *losses, norm = numbers
            read.append(ReadStep(rows, dict(zip(MEASURED, losses, strict=False)), norm, seconds))
        return read
