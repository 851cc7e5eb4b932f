"""The plan of a `brgsa prepare`: which volume goes into which shard, fixed before any scan is read.

A store grows by batches. The volumes of the first run are the first batch. A later run, on a grown archive or on another
one, adds the volumes that the store does not know yet as a batch of its own, in new shards. A batch's plan is written before
its first shard, so a run that was killed goes on with the same plan.
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
from brgsa_platform.store.store import IngestBatch, Meta

SHARD_BYTES = 256 * 2**20  # aim for a shard file's size
COMPRESSED = 0.4  # encoded bytes per decoded byte of a volume: measured 0.36 to 0.45 on chest CT
LEAST_SHARDS = 16  # of a batch with at least as many volumes, so that small stores too are prepared in parallel


@dataclass(frozen=True)
class PlannedBatch:
    """A batch and its volumes, in the order of the plan."""

    batch: IngestBatch
    items: Sequence[Item]

    def items_of(self, shard: str) -> Sequence[Item]:
        """The volumes of one shard, by the shard's name."""
        start = self.batch.shards.index(shard) * self.batch.per_shard
        return self.items[start : start + self.batch.per_shard]


def plan_file(number: int) -> str:
    """Name of a batch's plan in a store."""
    return f"plans/{number:05d}.parquet"


def new_batch(items: Sequence[Item], layout: str, geometry: Geometry, first: int) -> IngestBatch:
    """The batch of these volumes; its first shard has the number `first`."""
    decoded = 2 * geometry.shape[0] * geometry.shape[1] * geometry.shape[2]
    per_shard = max(1, min(int(SHARD_BYTES / (COMPRESSED * decoded)), -(-len(items) // LEAST_SHARDS)))
    return IngestBatch(layout, len(items), per_shard, first)


def item_digest(item: Item) -> str:
    """Hash (16 hexadecimal digits) of all that a row is made of, except the scan's own bytes and where the archive lies."""
    content = {key: value for key, value in item.to_dict().items() if key not in ("path", "series", "folders")}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_plan(folder: Folder, number: int, items: Sequence[Item]) -> None:
    """Write a batch's plan: `volume_id` and `digest` of each volume, in order."""
    table = pa.table({"volume_id": [i.volume_id for i in items], "digest": [item_digest(i) for i in items]})
    with folder.written_aside(plan_file(number)) as aside:
        pq.write_table(table, aside, compression="zstd")


def read_plan(folder: Folder, number: int) -> dict[str, str]:
    """A batch's plan: volume_id → digest, in order.

    Raises:
        UserError: the file is missing or damaged ("plan-damaged").
    """
    name = plan_file(number)
    try:
        with folder.open(name) as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{folder.at(name)} is missing or damaged ({short_error(error)}): prepare the store again in another folder.",
            code="plan-damaged",
            field=name,
        ) from error
    return dict(zip(table["volume_id"].to_pylist(), table["digest"].to_pylist(), strict=True))


def planned_digests(folder: Folder, meta: Meta) -> dict[str, str]:
    """volume_id → digest of every volume that the store knows, refused ones included; a later batch overrides earlier ones."""
    return {k: v for number in range(len(meta.batches)) for k, v in read_plan(folder, number).items()}


def batch_items(folder: Folder, number: int, meta: Meta, items: Mapping[str, Item]) -> Sequence[Item]:
    """The volumes of a batch in the plan's order, taken from an archive's.

    Args:
        number: of the batch.
        items: volume_id → volume of the archive.

    Raises:
        UserError: the archive lacks a volume of the batch ("volume-missing"), or describes it differently now
            ("volumes-changed").
    """
    batch = []
    for volume_id, digest in read_plan(folder, number).items():
        item = items.get(volume_id)
        if item is None or item_digest(item) != digest:
            problem = "is missing from" if item is None else "has another row in"
            raise UserError(
                f"Volume {volume_id} of the batch that {folder} is being written from {problem} this archive (layout "
                f"{meta.batches[number].layout}): run prepare on the archive as it was, or choose another --out.",
                code="volume-missing" if item is None else "volumes-changed",
                field="--out",
                value=volume_id,
            )
        batch.append(item)
    return batch


def check_unchanged(folder: Folder, items: Iterable[Item], digests: Mapping[str, str], refused: Iterable[str]) -> None:
    """Refuse an archive that gives a stored volume another report, other labels or other metadata than the store holds.

    Args:
        items: the archive's volumes.
        digests: volume_id → digest of the store's volumes.
        refused: volume ids in quarantine, which may change.

    Raises:
        UserError: some have changed ("volumes-changed"); `value` is how many.
    """
    stored = digests.keys() - set(refused)
    changed = [i.volume_id for i in items if i.volume_id in stored and digests[i.volume_id] != item_digest(i)]
    if changed:
        raise UserError(
            f"{folder} holds {len(changed)} of these volumes with another report, other labels or metadata (the first is "
            f"{changed[0]}): choose another --out.",
            code="volumes-changed",
            field="--out",
            value=len(changed),
        )
