"""What steps measure stays on the device until it is read, many steps at a time: to read it is to wait for the device."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from brgsa_platform.loading.order import Ints
from brgsa_platform.training.step import MEASURED
from brgsa_platform.training.workers import WorkerContext


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

    def __len__(self) -> int:
        return len(self._steps)

    def start_clock(self) -> None:
        """Count the time of the next steps from now on."""
        self._since = time.monotonic()

    def add(self, rows: Ints, measured: Tensor) -> None:
        """Take a step's `step.MEASURED`, float32 (5,)."""
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
