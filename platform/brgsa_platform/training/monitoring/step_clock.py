"""Where a step's time goes: by the device's own clock on a GPU, where a step's work is only queued while the step runs."""

from __future__ import annotations

import itertools
import time

import torch

DATA = "data"  # waiting for the batch: the one part that is always the host's
PARTS = (DATA, "copy", "forward", "gather", "backward", "optimizer")


class StepClock:
    """The parts of a step, one after the other; only the steps that it is told to measure cost anything.

    `data` is the wait for a batch; `copy` its way to the device and into floats; `forward` the towers; `gather` the
    embeddings of all workers and the loss; `backward` with what the workers average in it; `optimizer` with clipping.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float, torch.cuda.Event | None]] = []
        self._is_on = False

    def begin(self, *, measured: bool) -> None:
        """Begin a step."""
        self._is_on = measured
        self._marks = []
        self.mark("")

    def mark(self, part: str) -> None:
        """End a part."""
        if not self._is_on:
            return
        event = None
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self._marks.append((part, time.perf_counter(), event))

    def read(self) -> dict[str, float]:
        """Seconds of each part of the step that was measured last, once; on a GPU the step must be done."""
        marks, self._marks, self._is_on = self._marks, [], False
        seconds: dict[str, float] = {}
        for (_, begun, since), (part, ended, event) in itertools.pairwise(marks):
            spent = ended - begun
            if since is not None and event is not None and part != DATA:
                spent = since.elapsed_time(event) / 1000
            seconds[part] = seconds.get(part, 0.0) + spent
        return seconds
