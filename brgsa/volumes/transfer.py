"""From host memory to the training device, while the device computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class BatchCopier:
    """Copies batches to a device, each on a stream of its own beside the step that was enqueued before.

    The host works ahead of the device by one step, not more: batches that wait on the device would fill its memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last_step: torch.cuda.Event | None = None

    def __call__(self, blocks: Sequence[Tensor]) -> Sequence[Tensor]:
        """The blocks (n, …) of a batch, for use on the current stream: one tensor on a GPU, unchanged on a CPU.

        Args:
            blocks: in host memory, of one type and one shape but for n; pinned memory saves a copy.
        """
        if self._stream is None:
            return blocks
        current = torch.cuda.current_stream(self.device)
        last_step, self._last_step = self._last_step, current.record_event()
        if last_step is not None:
            last_step.synchronize()
        pinned = one_pinned(blocks, self.device)
        with torch.cuda.stream(self._stream):
            copy = pinned.to(self.device, non_blocking=True)
        current.wait_stream(self._stream)
        copy.record_stream(current)  # its memory is not used again before that stream is done with it
        return [copy]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor's copy on a device; the host does not wait for what the device has still to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def one_pinned(blocks: Sequence[Tensor], device: torch.device) -> Tensor:
    """All blocks (n, …) in one piece of pinned memory, which torch keeps until the copies from it are done.

    Args:
        blocks: in host memory, of one type and one shape but for n.
        device: the GPU that will get them; a thread has none of its own.
    """
    if len(blocks) == 1 and blocks[0].is_pinned():
        return blocks[0]
    rows = sum(len(block) for block in blocks)
    with torch.cuda.device(device):
        pinned = torch.empty((rows, *blocks[0].shape[1:]), dtype=blocks[0].dtype, pin_memory=True)
    return torch.cat(list(blocks), out=pinned)
