"""What a `brgsa prepare` is going to write, settled before anything is read: which volume goes into which shard.

A store grows by batches. The first run's volumes are the first batch; a later run on a larger archive, or on another one,
adds those that the store does not know yet as a batch of its own, in new shards. A batch's plan is written before its
first shard, so a killed run goes on with the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.volumes import Geometry
from brgsa_platform.layouts import Item
from brgsa_platform.runtime.storage import Folder, short_error
from brgsa_platform.store.store import Batch, Meta

SHARD_BYTES = 256 * 2**20  # of a shard file
COMPRESSED = 0.4  # of a decoded volume's bytes: measured 0.36 to 0.45 on chest CT
LEAST_SHARDS = 16  # where there are as many volumes, so that small stores are prepared in parallel too


@dataclass(frozen=True)
class Work:
    """A batch and its items in order."""

    batch: Batch
    items: Sequence[Item]

    def of(self, shard: str) -> Sequence[Item]:
        """The items of one shard."""
        start = self.batch.shards.index(shard) * self.batch.per_shard
        return self.items[start : start + self.batch.per_shard]


def plan_name(number: int) -> str:
    """Where a batch's plan lies in a store."""
    return f"plans/{number:05d}.parquet"


def new_batch(items: Sequence[Item], layout: str, geometry: Geometry, first: int) -> Batch:
    """The batch that these items make, its first shard's number given."""
    decoded = 2 * geometry.shape[0] * geometry.shape[1] * geometry.shape[2]
    per_shard = max(1, min(int(SHARD_BYTES / (COMPRESSED * decoded)), -(-len(items) // LEAST_SHARDS)))
    return Batch(layout, len(items), per_shard, first)


def digest(item: Item) -> str:
    """Names all that a row is made from, except the scan's own bytes and where the archive lies."""
    about = {key: value for key, value in item.to_dict().items() if key not in ("path", "series")}
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_plan(folder: Folder, number: int, items: Sequence[Item]) -> None:
    """Write a batch's plan: `volume_id` and `digest` of each item, in order."""
    table = pa.table({"volume_id": [i.volume_id for i in items], "digest": [digest(i) for i in items]})
    with folder.written_aside(plan_name(number)) as aside:
        pq.write_table(table, aside, compression="zstd")


def read_plan(folder: Folder, number: int) -> dict[str, str]:
    """volume_id → digest of a batch, in order."""
    try:
        with folder.open(plan_name(number)) as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{folder.at(plan_name(number))} is missing or damaged ({short_error(error)}): prepare the store again "
            "in another folder."
        ) from error
    return dict(zip(table["volume_id"].to_pylist(), table["digest"].to_pylist(), strict=True))


def planned(folder: Folder, meta: Meta) -> dict[str, str]:
    """volume_id → digest of every volume that the store knows, refused ones included; the newest batch's word counts."""
    return {k: v for number in range(len(meta.batches)) for k, v in read_plan(folder, number).items()}


def batch_items(folder: Folder, number: int, meta: Meta, items: Mapping[str, Item]) -> Sequence[Item]:
    """A batch's items out of an archive's, in the plan's order.

    Raises:
        UserError: the archive lacks one of them, or its row is another now.
    """
    found = []
    for volume_id, wanted in read_plan(folder, number).items():
        item = items.get(volume_id)
        if item is None or digest(item) != wanted:
            what = "is missing from" if item is None else "has another row in"
            raise UserError(
                f"Volume {volume_id} of the batch that {folder} is being written from {what} this archive (layout "
                f"{meta.batches[number].layout}): run prepare on the archive as it was, or choose another --out."
            )
        found.append(item)
    return found


def check_unchanged(folder: Folder, items: Iterable[Item], known: Mapping[str, str], refused: Iterable[str]) -> None:
    """Refuse an archive in which a volume that the store holds has other report, labels or metadata now."""
    aside = set(refused)
    changed = [
        i.volume_id
        for i in items
        if i.volume_id in known and i.volume_id not in aside and known[i.volume_id] != digest(i)
    ]
    if changed:
        raise UserError(
            f"{folder} holds {len(changed)} of these volumes with another report, other labels or metadata (the first is "
            f"{changed[0]}): choose another --out."
        )
