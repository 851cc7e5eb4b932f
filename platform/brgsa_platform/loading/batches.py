"""A store's split to training batches: which volumes, in which order, for which training worker, from which step on.

Which volume comes when is decided beforehand (`order`), so a run is repeatable and a resumed one starts its stream at the very
step where the last one stood. A store holds one volume a row group: reading in any order costs no more than in file order.
`loaders` reads, crops and augments the volumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from brgsa.errors import UserError
from brgsa.volumes.augment import Augmentation, Shape
from brgsa_platform.config import DataSection
from brgsa_platform.loading.loaders import Batches, BatchSlice, Loader, VolumeReader, load_batches
from brgsa_platform.loading.order import Ints, Items, epoch_batches

if TYPE_CHECKING:
    from brgsa_platform.loading.volume_cache import VolumeCache
    from brgsa_platform.store.store import Store

RARE_BELOW = 0.03  # of the training scans


@dataclass(frozen=True)
class SplitIndex:
    """The volumes of one split of a store, N of them, and where each lies. A row number is a position in it.

    Attributes:
        volume_ids: ids in store order.
        scans: int64 code (N,) of each volume's scan; volumes of one scan share it.
        patients: int64 code (N,) of each volume's patient.
        labels: float32 (N, P) for the store's P label names: 1 present, 0 absent, NaN unknown.
        shards: shard files, by path or URL.
        shard, row_group: int64 (N,), the place of each volume: index into `shards`, and row group within.
    """

    volume_ids: list[str]
    scans: Ints
    patients: Ints
    labels: npt.NDArray[np.float32]
    shards: list[str]
    shard: Ints
    row_group: Ints

    def __len__(self) -> int:
        return len(self.volume_ids)

    def take(self, rows: Ints) -> SplitIndex:
        """Some of the rows, in the order given."""
        return SplitIndex(
            [self.volume_ids[row] for row in rows],
            self.scans[rows],
            self.patients[rows],
            self.labels[rows],
            self.shards,
            self.shard[rows],
            self.row_group[rows],
        )


def split_index(store: Store, split: str, style: str | None = None) -> SplitIndex:
    """The volumes of one split; of a style, those that have a text in it: a report that was not understood has no summary.

    Raises:
        UserError: the store has no volume in that split, or none with a text ("empty-split"); the style has not been
            computed (see `Store.texts`).
    """
    index = store.index(["volume_id", "scan_id", "patient_id", "split", "labels", "shard", "row_group"])
    splits = np.array(index["split"].to_pylist())
    chosen = np.flatnonzero(splits == split)
    if not len(chosen):
        raise UserError(
            f"{store.path} has no volume in the split {split!r}; it has: {', '.join(sorted(set(splits)))}.",
            code="empty-split",
            field="split",
            value=split,
        )
    if style is not None:
        texts, ids = store.texts(style), index["volume_id"].to_pylist()
        chosen = np.array([row for row in chosen if texts[ids[row]].strip()], dtype=np.int64)
        if not len(chosen):
            raise UserError(
                f"No volume of the split {split!r} of {store.path} has a text of style {style!r}: "
                "its reports were not understood.",
                code="empty-split",
                field="data.style",
                value=style,
            )
    picked = index.take(chosen)
    records = picked["labels"].to_pylist()
    labels = np.array([[(r or {}).get(name) for name in store.labels] for r in records], dtype=np.float32)
    return SplitIndex(
        volume_ids=picked["volume_id"].to_pylist(),
        scans=_codes(picked["scan_id"].to_pylist()),
        patients=_codes(picked["patient_id"].to_pylist()),
        labels=labels.reshape(len(chosen), len(store.labels)),
        shards=store.shards(),
        shard=picked["shard"].to_numpy().astype(np.int64),
        row_group=picked["row_group"].to_numpy().astype(np.int64),
    )


def _codes(names: Sequence[str]) -> Ints:
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def rare_labels(index: SplitIndex) -> npt.NDArray[np.bool_]:
    """Which of the labels (P,) are rare: present in less than 3 % of the scans where they are known.

    A scan counts once, however many reconstructions it has.
    """
    first = np.unique(index.scans, return_index=True)[1]
    labels = index.labels[first]
    known = np.maximum(np.sum(~np.isnan(labels), axis=0), 1)
    rare: npt.NDArray[np.bool_] = np.nansum(labels, axis=0) / known < RARE_BELOW
    return rare


@dataclass(frozen=True)
class BatchSource:
    """What batches are made of, and for which of the training workers that share them.

    Attributes:
        index: the split's volumes.
        crop: voxels (x, y, z) of a crop.
        data: shuffling, augmentation, and how volumes are loaded.
        rank, world: number of this worker, and of all.
        cache: the store's volumes, where they have been decoded beforehand.
    """

    index: SplitIndex
    crop: Shape
    data: DataSection = field(default_factory=DataSection)
    rank: int = 0
    world: int = 1
    cache: VolumeCache | None = None

    def reader(self, augmentation: Augmentation | None = None) -> VolumeReader:
        """What reads rows of the index."""
        index = self.index
        return VolumeReader(index.shards, index.shard, index.row_group, self.crop, augmentation, self.cache)

    def loader(self) -> Loader:
        """What `evaluation_batches` may use again and again, to be closed."""
        return Loader(self.reader(), self.data, self.world)


def training_batches(
    source: BatchSource, items: Items, *, batch_size: int, epochs: range, seed: int, skip: int = 0
) -> Batches:
    """This worker's batches of the given epochs, one after the other; each epoch has `order.steps_per_epoch` of them.

    Args:
        items: what an epoch is made of (see `items.items_of`).
        batch_size: global batch; a worker's part is `batch_size // world`.
        skip: steps of the first epoch that are done already.

    Raises:
        UserError: the split cannot fill a batch, or a shard is missing or damaged.
    """
    index, data = source.index, source.data

    def slices() -> Iterator[BatchSlice]:
        for epoch in epochs:
            # An epoch's order is computed when the stream reaches it (0.1 s for 50,000 volumes), so only one is in memory.
            batches = epoch_batches(index.shard, items, batch_size, seed, epoch, data.shuffle_buffer)
            for batch in batches[skip if epoch == epochs.start else 0 :]:
                yield BatchSlice(np.split(batch, source.world)[source.rank], epoch)

    transforms = tuple(spec.model_dump() for spec in data.transforms)
    augmentation = Augmentation(seed, data.flip, data.rotate, transforms)
    return load_batches(source.reader(augmentation), slices(), data, source.world)


def evaluation_batches(source: BatchSource, *, batch_size: int, loader: Loader | None = None) -> Batches:
    """Volumes of a split or their centre crops, in store order.

    Worker `rank` of `world` has every world-th; the last batch may be small.

    Args:
        batch_size: volumes of this worker.
        loader: the source's, which the caller closes; by default one for this stream.

    Raises:
        UserError: a shard is missing or damaged.
    """
    mine = np.arange(source.rank, len(source.index), source.world)
    slices = (BatchSlice(mine[start : start + batch_size], 0) for start in range(0, len(mine), batch_size))
    if loader is not None:
        return loader.batches(slices)
    return load_batches(source.reader(), slices, source.data, source.world)
