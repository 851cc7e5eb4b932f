"""Shards to batches: the one place that knows Ray Data's training side.

Which volume comes when is decided beforehand (`order`), so a run is repeatable and a resumed one starts its stream at the very
step where the last one stood. A store holds one volume a row group: reading in any order costs no more than in file order.
CPU tasks of Ray Data read, decode, crop and augment; rows stay int16 until they are on the training device.

A volume is copied as often as it must be: out of the shard, out of its decoded form into the task's block, into the object
store, and from there to the training device. So a task makes one block, no block holds parts of two batches, and a batch
comes as its blocks, which are views of the object store.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brgsa.errors import UserError
from brgsa.volumes import decode
from brgsa.volumes.augment import Augmentation, Shape, Volume16, centre_crop
from brgsa_platform.config import DataSection
from brgsa_platform.store.reader import encoded_volume
from brgsa_platform.training.order import Ints, epoch_batches

if TYPE_CHECKING:
    from brgsa_platform.store.store import Store
    from brgsa_platform.training.volume_cache import Decoded

# Of a task's block: large beside the 13 ms that a task costs Ray, and Ray Data neither joins nor cuts what is below 128 MiB.
BLOCK_BYTES = 96 * 2**20
# Ray Data plans all tasks of a stream before the first runs, 1 ms each: an archive's 39 epochs would start after minutes.
TASKS_A_STREAM = 500
REFUSAL = "refusal"  # column of a block that stands for a UserError in its task


@dataclass(frozen=True)
class Rows:
    """The volumes of one split of a store, N of them, and where each lies.

    Attributes:
        volume_ids: ids in store order.
        scans: int64 code (N,) of each volume's scan; volumes of one scan share it.
        patients: int64 code (N,) of each volume's patient.
        labels: float32 (N, P) for the store's P label names: 1 present, 0 absent, NaN unknown.
        shards: shard files; shard, group: index (N,) into them and row group (N,) within.
    """

    volume_ids: list[str]
    scans: Ints
    patients: Ints
    labels: npt.NDArray[np.float32]
    shards: list[str]
    shard: Ints
    group: Ints

    def __len__(self) -> int:
        return len(self.volume_ids)

    def take(self, rows: Ints) -> Rows:
        """Some of the rows, in the order given."""
        return Rows(
            [self.volume_ids[row] for row in rows],
            self.scans[rows],
            self.patients[rows],
            self.labels[rows],
            self.shards,
            self.shard[rows],
            self.group[rows],
        )


def split_rows(store: Store, split: str) -> Rows:
    """The rows of one split.

    Raises:
        UserError: the store has no volume in that split; names those that there are.
    """
    index = store.index(["volume_id", "scan_id", "patient_id", "split", "labels", "shard", "row_group"])
    splits = np.array(index["split"].to_pylist())
    chosen = np.flatnonzero(splits == split)
    if not len(chosen):
        raise UserError(f"{store.path} has no volume in the split {split!r}; it has: {', '.join(sorted(set(splits)))}.")
    picked = index.take(chosen)
    records = picked["labels"].to_pylist()
    labels = np.array([[(r or {}).get(name) for name in store.labels] for r in records], dtype=np.float32)
    return Rows(
        volume_ids=picked["volume_id"].to_pylist(),
        scans=_codes(picked["scan_id"].to_pylist()),
        patients=_codes(picked["patient_id"].to_pylist()),
        labels=labels.reshape(len(chosen), len(store.labels)),
        shards=store.shards(),
        shard=picked["shard"].to_numpy().astype(np.int64),
        group=picked["row_group"].to_numpy().astype(np.int64),
    )


RARE_BELOW = 0.03  # of the training scans


def rare_labels(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which of the labels (P,) are rare: present in less than 3 % of the scans where they are known.

    A scan counts once, however many reconstructions it has.
    """
    first = np.unique(rows.scans, return_index=True)[1]
    labels = rows.labels[first]
    known = np.maximum(np.sum(~np.isnan(labels), axis=0), 1)
    rare: npt.NDArray[np.bool_] = np.nansum(labels, axis=0) / known < RARE_BELOW
    return rare


def _codes(names: Sequence[str]) -> Ints:
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class VolumeReader:
    """Rows of a split to crops of their volumes, augmented or, without `augmentation`, from the middle."""

    shards: Sequence[str]
    shard: Ints = field(repr=False)
    group: Ints = field(repr=False)
    crop: Shape
    augmentation: Augmentation | None = None
    decoded: Decoded | None = None

    @classmethod
    def of(
        cls, rows: Rows, crop: Shape, augmentation: Augmentation | None = None, decoded: Decoded | None = None
    ) -> VolumeReader:
        return cls(rows.shards, rows.shard, rows.group, crop, augmentation, decoded)

    def volume(self, row: int, memory: Volume16 | None = None) -> Volume16:
        """int16 HU (x, y, z) of a row, decoded beforehand (then read-only), or here, into `memory` where it fits."""
        shard, group = int(self.shard[row]), int(self.group[row])
        if self.decoded is not None:
            return self.decoded.volume(shard, group)
        return decode(encoded_volume(self.shards[shard], group), memory)

    def read(self, rows: Ints, epoch: int) -> Volume16:
        """int16 HU (n, x, y, z) of n rows; seed, epoch and row decide what augmentation makes of one."""
        crops = np.empty((len(rows), *self.crop), dtype=np.int16)
        volume: Volume16 | None = None  # decoded into the memory of the one before it
        for crop, row in zip(crops, rows.tolist(), strict=True):
            volume = self.volume(row, volume)
            if self.augmentation is None:
                crop[...] = centre_crop(volume, self.crop)
            else:
                self.augmentation.place(volume, crop, epoch, row)
        return crops


@dataclass(frozen=True)
class Part:
    """What one task reads: rows, all of one batch, and their epoch."""

    rows: Ints
    epoch: int


@dataclass(frozen=True)
class Tasks:
    """Task numbers to blocks, on a Ray Data CPU task."""

    reader: VolumeReader
    parts: Sequence[Part] = field(repr=False)

    def __call__(self, batch: dict[str, Ints]) -> Iterator[dict[str, Any]]:
        for task in batch["id"].tolist():
            part = self.parts[task]
            try:
                block = {"row": part.rows, "ct": self.reader.read(part.rows, part.epoch)}
            except UserError as error:
                # Raised, it would come as a traceback of Ray Data's, with advice of its own in the message.
                block = {REFUSAL: np.array([pickle.dumps(error)], dtype=object)}
            yield block


@dataclass(frozen=True)
class Batch:
    """A worker's part of a global batch.

    Attributes:
        rows: (b,) row numbers.
        blocks: int16 HU, (n, x, y, z) each, together b volumes in the order of `rows`; may be read-only.
    """

    rows: Ints
    blocks: list[Volume16]

    @property
    def ct(self) -> Volume16:
        """All volumes (b, x, y, z) in one array; a copy where there are several blocks."""
        return self.blocks[0] if len(self.blocks) == 1 else np.concatenate(self.blocks)


def training_batches(
    rows: Rows,
    crop: Shape,
    data: DataSection,
    *,
    batch_size: int,
    epochs: range,
    seed: int,
    skip: int = 0,
    rank: int = 0,
    world: int = 1,
    decoded: Decoded | None = None,
) -> Generator[Batch, None, None]:
    """This worker's batches of the given epochs, one after the other; each epoch has `order.steps_per_epoch` of them.

    Args:
        batch_size: global batch; a worker's part is `batch_size // world`.
        skip: steps of the first epoch that are done already.
    """

    def parts() -> Iterator[Part]:
        for epoch in epochs:
            # Made when the stream gets there: an epoch of 50,000 volumes costs 0.1 s, and only its own order is held.
            batches = epoch_batches(rows.shard, rows.scans, batch_size, seed, epoch, data.shuffle_buffer)
            for batch in batches[skip if epoch == epochs.start else 0 :]:
                yield Part(np.split(batch, world)[rank], epoch)

    specs = tuple(spec.model_dump() for spec in data.transforms)
    reader = VolumeReader.of(rows, crop, Augmentation(seed, data.flip, data.rotate, specs), decoded)
    yield from _stream(reader, parts(), data, world)


def evaluation_batches(
    rows: Rows,
    crop: Shape,
    *,
    batch_size: int,
    data: DataSection | None = None,
    rank: int = 0,
    world: int = 1,
    decoded: Decoded | None = None,
) -> Iterator[dict[str, Any]]:
    """Centre crops of a split in store order, worker `rank` of `world` having every world-th; the last batch may be small.

    Yields:
        `row` (b,) row numbers and `ct` (b, x, y, z) int16 HU, which may be read-only.
    """
    mine = np.arange(rank, len(rows), world)
    parts = (Part(mine[start : start + batch_size], 0) for start in range(0, len(mine), batch_size))
    for batch in _stream(VolumeReader.of(rows, crop, decoded=decoded), parts, data or DataSection(), world):
        yield {"row": batch.rows, "ct": batch.ct}


def _stream(reader: VolumeReader, batches: Iterable[Part], data: DataSection, world: int) -> Iterator[Batch]:
    """The batches through Ray Data, one stream after the other, each of so many batches that it is planned in half a second."""
    if reader.decoded is not None:
        yield from _direct(reader, batches)
        return
    per_task = max(1, BLOCK_BYTES // (2 * math.prod(reader.crop)))
    source = iter(batches)
    while cut := [_cut(batch, per_task) for batch in _up_to(TASKS_A_STREAM, source, per_task)]:
        blocks = _blocks(Tasks(reader, [part for parts in cut for part in parts]), data, world)
        for parts in cut:
            got = list(islice(blocks, len(parts)))
            yield Batch(np.concatenate([block["row"] for block in got]), [block["ct"] for block in got])


def _direct(reader: VolumeReader, batches: Iterable[Part]) -> Iterator[Batch]:
    """The batches of decoded volumes, made in this process, each while the one before it is at work."""

    def read(part: Part) -> Batch:
        return Batch(part.rows, [reader.read(part.rows, part.epoch)])

    with ThreadPoolExecutor(1) as pool:
        source = iter(batches)
        ahead = [pool.submit(read, part) for part in islice(source, 1)]
        while ahead:
            batch = ahead.pop().result()
            ahead = [pool.submit(read, part) for part in islice(source, 1)]
            yield batch


def _cut(batch: Part, per_task: int) -> list[Part]:
    pieces = np.array_split(batch.rows, -(-len(batch.rows) // per_task))
    return [Part(rows, batch.epoch) for rows in pieces]


def _up_to(tasks: int, batches: Iterator[Part], per_task: int) -> Iterator[Part]:
    while tasks > 0 and (batch := next(batches, None)) is not None:
        tasks -= -(-len(batch.rows) // per_task)
        yield batch


def _blocks(tasks: Tasks, data: DataSection, world: int) -> Iterator[dict[str, Any]]:
    import ray

    from brgsa_platform.runtime.session import set_data_context

    set_data_context()
    number = len(tasks.parts)
    dataset = ray.data.range(number, override_num_blocks=number).map_batches(tasks, batch_size=None)
    options = dataset.context.execution_options
    options.preserve_order = True
    # Every training worker runs a stream of its own, so each gets its part of what the streams together may use.
    options.resource_limits = options.resource_limits.copy(
        cpu=max(1.0, data_cpus(data, world) / world),
        object_store_memory=data.object_store_share * ray.cluster_resources().get("object_store_memory", 0) / world,
    )
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2):
        if REFUSAL in block:
            raise pickle.loads(block[REFUSAL][0])
        yield block


def data_cpus(data: DataSection, workers: int) -> float:
    """CPUs that all data tasks together may use: as configured, or the data nodes', or what `workers` workers leave free."""
    from brgsa_platform.runtime.session import cluster_cpus, nodes_for

    return data.cpus or (cluster_cpus("data") if nodes_for("data") else cluster_cpus() - workers)
