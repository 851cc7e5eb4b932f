"""Which volume comes when: a shuffle for contrastive learning, a function of seed and epoch alone.

An epoch has one volume of each item (`Items`): a volume, a scan or a text. Shards come in a new order each epoch and a shuffle
buffer mixes their volumes, so that reading stays local; a split that fits into the buffer is simply permuted. The order is then
cut into global batches in which no scan stands twice: two reconstructions share a report and could only be left out as each
other's negatives. A worker takes its part of each global batch, so the number of workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.errors import UserError
from brgsa_platform.loading.random_streams import Purpose, stream

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """The M items of an epoch, made of a split's N rows.

    Attributes:
        of_rows: (N,) the item of each row, from 0 to M - 1.
        apart: (M,) a code of each item; two items of one code never stand in one batch.
        drawn: whether an epoch draws one row of each item; else each row is an item.
    """

    of_rows: Ints
    apart: Ints
    drawn: bool

    @classmethod
    def volumes(cls, scans: Ints) -> Items:
        """Every row is an item, and two rows of a scan are apart; `scans` (N,) is each row's scan."""
        return cls(np.arange(len(scans)), scans, drawn=False)

    def draw(self, rng: np.random.Generator) -> Ints:
        """(M,) a row of each item, each of its rows as likely as the others."""
        if not self.drawn:
            return np.arange(len(self.of_rows))
        rows, starts, counts = self._grouped
        chosen: Ints = rows[starts + rng.integers(counts)]
        return chosen

    @cached_property
    def _grouped(self) -> tuple[Ints, Ints, Ints]:
        """Rows by item, and where in them each item's begin and how many they are."""
        counts = np.bincount(self.of_rows, minlength=len(self.apart))
        return np.argsort(self.of_rows, kind="stable"), np.cumsum(counts) - counts, counts


def steps_per_epoch(scans: npt.NDArray[Any], batch_size: int) -> int:
    """Whole global batches of distinct scans in an epoch: the most that the split can fill.

    Args:
        scans: (N,) each volume's scan.

    Raises:
        UserError: the split has fewer scans than a batch.
    """
    counts = np.unique(scans, return_counts=True)[1]
    if len(counts) < batch_size:
        raise UserError(
            f"The training split has {len(counts)} scans, fewer than train.batch_size={batch_size} (a batch holds no scan "
            "twice): lower train.batch_size.",
            code="batch-too-large",
            field="train.batch_size",
            value=batch_size,
        )
    steps = len(scans) // batch_size
    # T batches of B distinct scans can be filled when the volumes, at most T of each scan, are T·B or more.
    while np.minimum(counts, steps).sum() < steps * batch_size:
        steps -= 1
    return steps


def epoch_batches(shard: Ints, items: Items, batch_size: int, seed: int, epoch: int, buffer: int) -> Ints:
    """(steps, batch_size) row numbers of an epoch's global batches: no item twice, no two of one code in a batch.

    Args:
        shard: (N,) each row's shard.
        buffer: volumes of the shuffle buffer.
    """
    steps = steps_per_epoch(items.apart, batch_size)
    rows = items.draw(stream(Purpose.RECONSTRUCTION, seed, epoch))
    # The order of single volumes is older than the streams by purpose, and stays as it was.
    rng = stream(Purpose.ITEM_ORDER, seed, epoch) if items.drawn else np.random.default_rng([seed, epoch])
    order = shuffled(shard[rows], buffer, rng)
    return rows[np.array(list(_distinct(order, items.apart, batch_size, steps)), dtype=np.int64)]


def apart_batches(codes: Ints, batch_size: int) -> list[Ints]:
    """All of N numbers, in order, in batches of `batch_size` and less in which no code (N,) stands twice.

    Each goes into the first batch that has room and lacks its code: without equal codes they are cut one after the other.
    """
    batches: list[list[int]] = []
    held: list[set[int]] = []
    first = 0  # the batches before it are full
    for number, code in enumerate(codes.tolist()):
        place = first
        while place < len(batches) and (code in held[place] or len(batches[place]) == batch_size):
            place += 1
        if place == len(batches):
            batches.append([])
            held.append(set())
        batches[place].append(number)
        held[place].add(code)
        while first < len(batches) and len(batches[first]) == batch_size:
            first += 1
    return [np.array(batch, dtype=np.int64) for batch in batches]


def shuffled(shard: Ints, buffer: int, rng: np.random.Generator) -> Ints:
    """A permutation of the N rows: whole shards in random order, mixed by a buffer of `buffer` rows."""
    rows = len(shard)
    if rows <= buffer:
        return rng.permutation(rows)
    places = rng.permutation(int(shard.max()) + 1)
    order = np.argsort(places[shard], kind="stable").tolist()
    # Each row that comes in takes the place of one drawn from the buffer; at the end the buffer is emptied at random.
    held, out = order[:buffer], []
    for drawn, row in zip(rng.integers(buffer, size=rows - buffer).tolist(), order[buffer:], strict=True):
        out.append(held[drawn])
        held[drawn] = row
    return np.array(out + rng.permutation(held).tolist(), dtype=np.int64)


def _distinct(order: Ints, scans: Ints, batch_size: int, steps: int) -> Iterator[list[int]]:
    """Cut an order into `steps` batches; a row whose scan stands in the batch already waits for the next one.

    With R batches to go, R·batch_size rows are left and no scan has more than R of them (`_trimmed`), so a scan that has R
    must be in every batch to come. Taking such scans first keeps both true, and every batch can be filled.
    """
    scan = scans.tolist()
    rows = _trimmed(order, scans, batch_size * steps, steps)
    left = np.bincount(scans[rows]).tolist()
    most = max(left)
    coming = iter(rows.tolist())
    waiting: list[int] = []
    for to_go in range(steps, 0, -1):
        if to_go <= most:  # the last few batches
            waiting = sorted((*waiting, *coming), key=lambda row: left[scan[row]] < to_go)
        batch: list[int] = []
        taken: set[int] = set()
        again: list[int] = []
        queue = iter(waiting)
        for row in chain(queue, coming):
            if scan[row] in taken:
                again.append(row)
                continue
            taken.add(scan[row])
            left[scan[row]] -= 1
            batch.append(row)
            if len(batch) == batch_size:
                break
        waiting = [*again, *queue]
        yield batch


def _trimmed(order: Ints, scans: Ints, total: int, most: int) -> Ints:
    """The first `total` rows of an order in which a scan's rows after its first `most` are left out."""
    grouped = np.argsort(scans[order], kind="stable")
    ordered = scans[order][grouped]
    nth = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    kept = np.empty(len(order), dtype=bool)
    kept[grouped] = nth < most
    return order[kept][:total]
