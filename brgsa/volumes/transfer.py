"""From host memory to the training device, one batch ahead of the step that needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def copied_ahead(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Batches on the device, each copied on a stream of its own while the step before it computes.

    Args:
        batches: in pinned host memory, else the copy waits for the device.
        device: on a CPU the batches pass through.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[Tensor, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = batch.to(device, non_blocking=True)
            copied = stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copy, copied
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(copy: Tensor, copied: torch.cuda.Event) -> Tensor:
    """The copy, for use on the current stream: its memory is not reused before that stream is done with it."""
    current = torch.cuda.current_stream(copy.device)
    current.wait_event(copied)
    copy.record_stream(current)
    return copy
