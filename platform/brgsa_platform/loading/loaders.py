"""Rows of a split to crops of their volumes: through Ray Data, through a torch DataLoader, or from decoded volumes.

All three take the same slices and give the same batches. What a row becomes depends on seed, epoch and row alone, so it does
not matter which process reads it.

A volume is copied as often as it must be: out of the shard, out of its decoded form into its task's block, into shared
memory, and from there to the training device. So a task makes one block, no block holds rows of two batches, and a batch
comes as its blocks, which are views of shared memory. Volumes stay int16 until they are on the training device.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from brgsa.errors import UserError
from brgsa.volumes.augment import Augmentation, Shape, Volume16, centre_crop
from brgsa_platform.config import DataSection
from brgsa_platform.loading.order import Ints
from brgsa_platform.store.reader import decoded_volume

if TYPE_CHECKING:
    from brgsa_platform.loading.volume_cache import VolumeCache

# Large beside the 13 ms that a task costs Ray, and Ray Data neither joins nor cuts blocks below 128 MiB.
BLOCK_BYTES = 96 * 2**20
# Ray Data plans all tasks of a stream before the first runs, 1 ms each: an archive's 39 epochs would start after minutes.
TASKS_A_STREAM = 500
# What the server imports from which torch's loader processes are forked, Ray because it is the main module of its workers. They
# then start in 0.15 s instead of several.
PRELOADED = ["ray", "torch", "blosc2", "brgsa_platform.loading.loaders"]

Block = dict[str, Any]  # "row" (n,) and "ct" (n, x, y, z), or "refusal": one pickled UserError


@dataclass(frozen=True)
class BatchSlice:
    """Row numbers (n,) of one batch, all or some of them, and their epoch."""

    rows: Ints
    epoch: int


@dataclass(frozen=True)
class Batch:
    """A training worker's part of a global batch.

    Attributes:
        rows: (b,) row numbers.
        blocks: int16 HU, (n, x, y, z) each, together b volumes in the order of `rows`; may be read-only.
    """

    rows: Ints
    blocks: list[Volume16]

    def volumes(self) -> Iterator[tuple[int, Volume16]]:
        """Each row number and its volume (x, y, z)."""
        return zip(self.rows.tolist(), chain.from_iterable(self.blocks), strict=True)

    @property
    def ct(self) -> Volume16:
        """All volumes (b, x, y, z) in one array; a copy where there are several blocks."""
        return self.blocks[0] if len(self.blocks) == 1 else np.concatenate(self.blocks)


Batches = Generator[Batch, None, None]  # closed, a stream ends what it has begun to read


@dataclass(frozen=True)
class VolumeReader:
    """Reads rows of a split as crops of their volumes.

    Attributes:
        shards: shard files, by path or URL.
        shard, row_group: (N,) where each row's volume lies: index into `shards`, and row group within.
        crop: voxels (x, y, z) of a crop.
        augmentation: places, flips and turns the crops; None: they are cut from the middle.
        cache: the store's volumes, where they have been decoded beforehand.
    """

    shards: Sequence[str]
    shard: Ints = field(repr=False)
    row_group: Ints = field(repr=False)
    crop: Shape
    augmentation: Augmentation | None = None
    cache: VolumeCache | None = None

    def volume(self, row: int, memory: Volume16 | None = None) -> Volume16:
        """The whole volume (x, y, z) of a row, int16 HU; read-only where it comes from the cache.

        Args:
            memory: an array to decode into, where it has the right shape.

        Raises:
            UserError: the shard is missing or damaged.
        """
        shard, row_group = int(self.shard[row]), int(self.row_group[row])
        if self.cache is not None:
            return self.cache.volume(shard, row_group)
        return decoded_volume(self.shards[shard], row_group, memory)

    def read(self, rows: Ints, epoch: int) -> Volume16:
        """Crops (n, x, y, z) of n rows, int16 HU; seed, epoch and row decide what augmentation makes of each.

        Raises:
            UserError: a shard is missing or damaged.
        """
        crops = np.empty((len(rows), *self.crop), dtype=np.int16)
        volume: Volume16 | None = None  # decoded into the memory of the one before it
        for crop, row in zip(crops, rows.tolist(), strict=True):
            volume = self.volume(row, volume)
            if self.augmentation is None:
                crop[...] = centre_crop(volume, self.crop)
            else:
                self.augmentation.place(volume, crop, epoch, row)
        return crops

    def read_block(self, piece: BatchSlice) -> Block:
        """A slice's rows and crops, or why they cannot be read: as a value, a refusal crosses processes unharmed."""
        try:
            return {"row": piece.rows, "ct": self.read(piece.rows, piece.epoch)}
        except UserError as error:
            return {"refusal": np.array([pickle.dumps(error)], dtype=object)}


class Loader:
    """Reads the slices of one stream after the other for a training worker; closed, it ends what it has started.

    Args:
        data: `loader` decides which processes read; `cpus` bounds them, with Ray also `object_store_share`.
        world: training workers that load batches side by side.
    """

    def __init__(self, reader: VolumeReader, data: DataSection, world: int) -> None:
        self._reader, self._data, self._world = reader, data, world
        self._processes: _TorchProcesses | None = None

    def batches(self, slices: Iterable[BatchSlice]) -> Batches:
        """Read the slices' batches in their order, a few of them ahead; one stream at a time.

        Raises:
            UserError: a shard is missing or damaged.
        """
        if self._reader.cache is not None:
            return _from_cache(self._reader, slices)
        if self._data.loader == "ray":
            return _through_ray(self._reader, slices, self._data, self._world)
        if self._processes is None:
            self._processes = _TorchProcesses(self._reader, loader_processes(self._data, self._world))
        return self._processes.batches(slices)

    def close(self) -> None:
        """End the processes of a torch DataLoader."""
        if self._processes is not None:
            self._processes.close()
            self._processes = None


def load_batches(reader: VolumeReader, slices: Iterable[BatchSlice], data: DataSection, world: int) -> Batches:
    """One stream of a `Loader` of its own."""
    with contextlib.closing(Loader(reader, data, world)) as loader:
        yield from loader.batches(slices)


def _from_cache(reader: VolumeReader, slices: Iterable[BatchSlice]) -> Batches:
    """Cut out in this process."""
    for batch in slices:
        yield Batch(batch.rows, [reader.read(batch.rows, batch.epoch)])


@dataclass(frozen=True)
class _Pieces:
    """What a process of a torch DataLoader does: it is given slices instead of numbers, and gives blocks."""

    reader: VolumeReader

    def __getitem__(self, piece: BatchSlice) -> Block:
        return self.reader.read_block(piece)


class _TorchProcesses:
    """A torch DataLoader on this node, whose processes stay from stream to stream; its blocks come in shared memory.

    They come in the order in which it is given slices.
    """

    def __init__(self, reader: VolumeReader, processes: int) -> None:
        import torch

        self._reader = reader
        self._slices: Iterable[BatchSlice] = ()
        self._begun: deque[int] = deque()  # blocks of each batch that is being read
        # A fork of this process would inherit Ray's and CUDA's threads in whatever state they are.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        dataset: Any = _Pieces(reader)
        sampler: Any = self
        self._loader: Any = torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=processes,
            prefetch_factor=2,
            multiprocessing_context=context,
            worker_init_fn=_end_with_parent,
            generator=torch.Generator(),  # its own, so that the training's random numbers stay as they are
            persistent_workers=True,
        )

    def __iter__(self) -> Iterator[BatchSlice]:
        """The stream's slices, one of each block: what the DataLoader takes for row numbers."""
        for batch in self._slices:
            cut = _cut(batch, self._reader)
            self._begun.append(len(cut))
            yield from cut

    def batches(self, slices: Iterable[BatchSlice]) -> Batches:
        """The batches of a stream; the one before it is over."""
        self._slices = slices
        self._begun.clear()
        death, blocks = "", None
        try:
            blocks = iter(self._loader)
            for first in blocks:
                yield _joined([first, *islice(blocks, self._begun.popleft() - 1)])
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            if str(error).startswith("Caught "):
                raise  # in a process that lives, as torch says
            death = str(error) or type(error).__name__
        finally:
            self._slices = ()
            del blocks  # an error, which someone may keep, would keep the processes as well
        if death:
            raise RuntimeError(
                f"A process that reads volumes died ({death}). Where memory or /dev/shm is short, lower data.cpus or set "
                "data.loader=ray."
            )

    def close(self) -> None:
        """End the processes; no stream is read any more."""
        self._loader = None


def _end_with_parent(worker: int) -> None:
    """End this loader process when the training process dies, be it by SIGKILL.

    Torch would see the death of its parent; that is the server it was forked from, which lives as long as its children do.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def loader_processes(data: DataSection, world: int) -> int:
    """Processes of each training worker's torch loader.

    Its share of `data.cpus`, or as many as this process has threads, but for the one that waits for the device.
    """
    import torch

    share = int(data.cpus // world) if data.cpus else torch.get_num_threads() - 1
    return max(1, share)


def _through_ray(reader: VolumeReader, slices: Iterable[BatchSlice], data: DataSection, world: int) -> Batches:
    """By Ray Data tasks, one stream after the other, each of so many tasks that it is planned in half a second."""
    source = iter(slices)
    while batches := list(_up_to(TASKS_A_STREAM, source, reader)):
        tasks = _Tasks(reader, [piece for cut in batches for piece in cut])
        # Closed here: left to the garbage collector, Ray Data's executor may be ended in a thread of its own, and hang.
        with contextlib.closing(_ray_blocks(tasks, data, world)) as blocks:
            for cut in batches:
                yield _joined(list(islice(blocks, len(cut))))


@dataclass(frozen=True)
class _Tasks:
    """What a Ray Data task does: it is given task numbers, and gives a block for each."""

    reader: VolumeReader
    pieces: Sequence[BatchSlice] = field(repr=False)

    def __call__(self, batch: dict[str, Ints]) -> Iterator[Block]:
        for task in batch["id"].tolist():
            yield self.reader.read_block(self.pieces[task])


def _ray_blocks(tasks: _Tasks, data: DataSection, world: int) -> Generator[Block, None, None]:
    import ray

    from brgsa_platform.runtime.session import set_data_context

    set_data_context()
    number = len(tasks.pieces)
    dataset = ray.data.range(number, override_num_blocks=number).map_batches(tasks, batch_size=None)
    options = dataset.context.execution_options
    options.preserve_order = True
    # Every training worker runs a stream of its own, so each gets its share of what the streams together may use.
    options.resource_limits = options.resource_limits.copy(
        cpu=max(1.0, data_cpus(data, world) / world),
        object_store_memory=data.object_store_share * ray.cluster_resources().get("object_store_memory", 0) / world,
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)


def data_cpus(data: DataSection, world: int) -> float:
    """CPUs that all Ray Data tasks together may use: as configured, or the data nodes', or what training workers leave free."""
    from brgsa_platform.runtime.session import cluster_cpus, nodes_for

    return data.cpus or (cluster_cpus("data") if nodes_for("data") else cluster_cpus() - world)


def _cut(batch: BatchSlice, reader: VolumeReader) -> list[BatchSlice]:
    """A batch's slice as one of each block."""
    a_block = max(1, BLOCK_BYTES // (2 * math.prod(reader.crop)))
    pieces = np.array_split(batch.rows, -(-len(batch.rows) // a_block))
    return [BatchSlice(rows, batch.epoch) for rows in pieces]


def _up_to(tasks: int, slices: Iterator[BatchSlice], reader: VolumeReader) -> Iterator[list[BatchSlice]]:
    """Cut batches until they make so many tasks."""
    while tasks > 0 and (batch := next(slices, None)) is not None:
        cut = _cut(batch, reader)
        tasks -= len(cut)
        yield cut


def _joined(blocks: Sequence[Block]) -> Batch:
    for block in blocks:
        if "refusal" in block:
            raise pickle.loads(block["refusal"][0])
    return Batch(np.concatenate([block["row"] for block in blocks]), [np.asarray(block["ct"]) for block in blocks])
