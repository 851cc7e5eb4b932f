"""From the int16 HU of a batch to the network's input.

A batch is fetched while the one before it is at work; its floats lie in memory on the device that every batch reuses.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from brgsa.volumes.augment import Volume16
from brgsa.volumes.intensity import Intensity, unit_intensities
from brgsa.volumes.transfer import one_pinned
from brgsa_platform.loading.loaders import Batch, Batches


class InputBuffer:
    """float32 memory on a device that holds one batch at a time; the next batch writes over it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._floats = torch.empty(0, device=device)

    def fill(self, blocks: Sequence[Tensor], intensity: Intensity | None = None) -> Tensor:
        """Write a batch to the buffer.

        Args:
            blocks: int16 HU, (n, x, y, z) each, together B volumes of one shape, on any device.
            intensity: changes of the intensities, on the same device.

        Returns:
            float32 (B, 1, x, y, z) in [-1, 1], valid until the next call.
        """
        ct = [block.to(self.device, non_blocking=True) for block in blocks]
        shape = blocks[0].shape[1:]
        volumes = sum(len(block) for block in blocks)
        if self._floats.shape[1:] != shape or len(self._floats) < volumes:
            self._floats = torch.empty((volumes, *shape), device=self.device)
        return unit_intensities(ct, intensity, out=self._floats[:volumes])


def tensor_batches(batches: Batches, device: torch.device) -> Generator[tuple[Batch, Sequence[Tensor]], None, None]:
    """Each batch, and its blocks as tensors in host memory; pinned and in one piece where they will go to a GPU.

    A thread fetches each batch while the one before it is at work: to fetch and copy 64 large volumes may take the host as long
    as a step takes the GPU, for their pages of shared memory are mapped one by one. Closed, it waits for the thread and closes
    `batches`.
    """

    def fetch() -> tuple[Batch, Sequence[Tensor]] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        blocks = as_tensors(batch.blocks)
        if device.type != "cuda":
            return batch, blocks
        pinned = one_pinned(blocks, device)
        return Batch(batch.rows, [pinned.numpy()]), [pinned]  # the blocks' shared memory is free again

    thread = ThreadPoolExecutor(1, "batches")
    try:
        ahead = thread.submit(fetch)
        while (fetched := ahead.result()) is not None:
            ahead = thread.submit(fetch)
            yield fetched
    finally:
        # While the thread fetches, `batches` cannot be closed: a second Ctrl-C that ends the wait passes it by.
        thread.shutdown(cancel_futures=True)
        batches.close()


def as_tensors(blocks: Sequence[Volume16]) -> list[Tensor]:
    """A batch's blocks as tensors that share their memory. Nobody writes to it: a block may be a view of the object store."""
    return [torch.from_numpy(np.asarray(_Lent(block))) for block in blocks]


class _Lent:
    """An array's memory, said to be writable: torch warns of any other, and to silence a warning is not safe in a thread."""

    def __init__(self, array: Volume16) -> None:
        self._array = array  # kept alive by whoever uses the memory
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
