"""Shards to batches: the one place that knows Ray Data's training side.

A training worker runs one Ray Data stream over all its epochs. Which volume comes when is a function of seed, epoch and
rank alone (a permutation of the whole split for each epoch, cut into global batches), so a run is repeatable, each volume
comes once an epoch, and a resumed run starts its stream at the row where the last one stood. A store holds one volume a row
group, so reading in any order costs no more than reading in file order. CPU tasks of Ray Data read, decode, crop and flip;
rows stay int16 until they are on the training device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brgsa.errors import UserError
from brgsa.volumes import decode
from brgsa_platform.store import encoded_volume

if TYPE_CHECKING:
    from brgsa_platform.store import Store

BLOCK_BYTES = 32 * 2**20  # of a block in the object store: small beside a worker's share, large beside a task's cost

Ints = npt.NDArray[np.int64]
Shape = tuple[int, int, int]


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


def _codes(names: Sequence[str]) -> Ints:
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def steps_per_epoch(volumes: int, batch_size: int) -> int:
    """Whole global batches in an epoch; the rest of the permutation waits for the next one.

    Raises:
        UserError: the split does not fill one batch.
    """
    if volumes < batch_size:
        raise UserError(
            f"The training split has {volumes} volumes, fewer than train.batch_size={batch_size}: lower train.batch_size."
        )
    return volumes // batch_size


def epoch_order(volumes: int, batch_size: int, seed: int, epoch: int) -> Ints:
    """(steps, batch_size) row numbers of an epoch's global batches."""
    steps = steps_per_epoch(volumes, batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(volumes)
    return order[: steps * batch_size].reshape(steps, batch_size)


def worker_order(orders: Sequence[Ints], rank: int, world: int) -> Ints:
    """The row numbers of one worker over several epochs: its equal part of each global batch."""
    parts = [np.split(order, world, axis=1)[rank].ravel() for order in orders]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Augmentation:
    """What data workers do to a training volume: random crop (always), and a left-right flip by chance."""

    seed: int
    flip: float = 0.0


@dataclass(frozen=True)
class VolumeReader:
    """Stream positions to volumes, on a Ray Data CPU task: read, decode, crop.

    Attributes:
        order: row number at each position of the stream.
        epochs: epoch at each position; with `augmentation` it seeds the crop, so that a resumed run draws the same.
        crop: voxels (x, y, z) of a crop; centred without `augmentation`.
    """

    shards: Sequence[str]
    shard: Ints = field(repr=False)
    group: Ints = field(repr=False)
    order: Ints = field(repr=False)
    crop: Shape
    augmentation: Augmentation | None = None
    epochs: Ints | None = field(default=None, repr=False)

    def __call__(self, batch: dict[str, Ints]) -> Iterator[dict[str, Any]]:
        rows: list[int] = []
        volumes: list[npt.NDArray[np.int16]] = []
        limit = max(1, BLOCK_BYTES // (2 * int(np.prod(self.crop))))
        for position in batch["id"]:
            row = int(self.order[position])
            volumes.append(self._read(row, int(position)))
            rows.append(row)
            if len(rows) == limit:
                yield {"row": np.array(rows), "ct": np.stack(volumes)}
                rows, volumes = [], []
        if rows:
            yield {"row": np.array(rows), "ct": np.stack(volumes)}

    def _read(self, row: int, position: int) -> npt.NDArray[np.int16]:
        volume = decode(encoded_volume(self.shards[self.shard[row]], int(self.group[row])))
        if self.augmentation is None:
            return centre_crop(volume, self.crop)
        epoch = 0 if self.epochs is None else int(self.epochs[position])
        rng = np.random.default_rng([self.augmentation.seed, epoch, row])
        volume = random_crop(volume, self.crop, rng)
        return volume[::-1] if rng.random() < self.augmentation.flip else volume


def centre_crop(volume: npt.NDArray[np.int16], crop: Shape) -> npt.NDArray[np.int16]:
    """The middle `crop` voxels (x, y, z) of a volume at least that large."""
    starts = [(have - want) // 2 for have, want in zip(volume.shape, crop, strict=True)]
    return volume[tuple(slice(s, s + want) for s, want in zip(starts, crop, strict=True))]


def random_crop(volume: npt.NDArray[np.int16], crop: Shape, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """`crop` voxels (x, y, z) at a random place of a volume at least that large."""
    starts = [int(rng.integers(0, have - want + 1)) for have, want in zip(volume.shape, crop, strict=True)]
    return volume[tuple(slice(s, s + want) for s, want in zip(starts, crop, strict=True))]


def training_batches(
    rows: Rows,
    crop: Shape,
    *,
    batch_size: int,
    epochs: range,
    seed: int,
    flip: float = 0.0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[dict[str, Any]]:
    """This worker's batches of the given epochs, one after the other; each epoch has `steps_per_epoch` of them.

    Args:
        batch_size: global batch; a worker's part is `batch_size // world`.

    Yields:
        `row` (b,) row numbers and `ct` (b, x, y, z) int16 HU.
    """
    orders = [epoch_order(len(rows), batch_size, seed, epoch) for epoch in epochs]
    per_epoch = orders[0].size // world
    reader = VolumeReader(
        shards=rows.shards,
        shard=rows.shard,
        group=rows.group,
        order=worker_order(orders, rank, world),
        crop=crop,
        augmentation=Augmentation(seed, flip),
        epochs=np.repeat(np.array(epochs, dtype=np.int64), per_epoch),
    )
    yield from _stream(reader, batch_size // world, world)


def evaluation_batches(
    rows: Rows, crop: Shape, *, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[dict[str, Any]]:
    """Centre crops of a split in store order, worker `rank` of `world` having every world-th; the last batch may be small."""
    order = np.arange(rank, len(rows), world)
    if len(order):
        reader = VolumeReader(shards=rows.shards, shard=rows.shard, group=rows.group, order=order, crop=crop)
        yield from _stream(reader, batch_size, world)


def _stream(reader: VolumeReader, batch_size: int, world: int) -> Iterator[dict[str, Any]]:
    import ray

    from brgsa_platform.session import cluster_cpus, quiet_data_context

    quiet_data_context()
    total = len(reader.order)
    # A task reads at most a batch, and at most a few blocks' worth: the first batch comes soon, memory stays bounded.
    per_task = max(1, min(batch_size, 4 * BLOCK_BYTES // (2 * int(np.prod(reader.crop)))))
    dataset = ray.data.range(total, override_num_blocks=-(-total // per_task))
    dataset = dataset.map_batches(reader, batch_size=None)
    options = dataset.context.execution_options
    options.preserve_order = True
    # Every worker runs a stream: each may use its share of the CPUs that training leaves free.
    share = max(1.0, (cluster_cpus() - world) / world)
    options.resource_limits = options.resource_limits.copy(cpu=share)
    yield from dataset.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)
