"""The tables over a store's shards, `index.parquet` and `quarantine.parquet`, made when a batch's shards are all there."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from brgsa.labels import CT_RATE
from brgsa_platform.layouts import LABELS
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.store.store import INDEX_FILE, META_FILE, QUARANTINE, QUARANTINE_FILE, SCHEMA, Meta, fingerprint
from brgsa_platform.store.writer import read_refused, read_rows

# Footers read at a time: an object store answers each in some 50 ms; on a disk more would only take more memory.
READERS_FAR, READERS_NEAR = 8, 1

INDEX = pa.schema(
    [f for f in SCHEMA if f.name != "ct"] + [pa.field("shard", pa.int32()), pa.field("row_group", pa.int32())]
)


def count(store: Folder, meta: Meta) -> Meta:
    """Write index and quarantine table with the last batch's shards in them, then store.json with that batch complete.

    Returns:
        store.json as it is now. It is written last: until then the batch does not count.
    """
    done = sum(len(batch.shards) for batch in meta.batches if batch.complete)
    names = meta.shards
    rows, refused = _read(store, names, done)
    index = pa.concat_tables([_counted_rows(store, done), *rows])
    quarantine = _quarantine(store if done else None, refused, index)
    with store.written_aside(QUARANTINE_FILE) as aside:
        pq.write_table(quarantine, aside)
    with store.written_aside(INDEX_FILE) as aside:
        pq.write_table(index, aside, compression="zstd")
    sizes = store.sizes("volumes")
    counted = replace(
        meta,
        labels=_labels(index),
        batches=tuple(replace(batch, complete=True) for batch in meta.batches),
        sizes={name: sizes[name] for name in names},
        fingerprint=fingerprint(meta.settings, index["volume_id"].to_pylist(), index["checksum"].to_pylist()),
    )
    store.write(META_FILE, counted.to_json())
    return counted


def quarantined(store: Folder) -> list[dict[str, str]]:
    """The rows of the quarantine table; none where there is no table."""
    if not store.exists(QUARANTINE_FILE):
        return []
    with store.open(QUARANTINE_FILE) as file:
        rows: list[dict[str, str]] = pq.read_table(file).to_pylist()
    return rows


def _read(store: Folder, names: Sequence[str], first: int) -> tuple[list[pa.Table], list[dict[str, str]]]:
    """The rows of the shards from `first` on, with where each lies, and what was refused while they were written."""

    def one(number: int) -> tuple[pa.Table, list[dict[str, str]]]:
        with store.open(f"volumes/{names[number]}") as file:
            shard = pq.ParquetFile(file)
            rows = read_rows(shard)
            places = [pa.array([number] * len(rows), pa.int32()), pa.array(range(len(rows)), pa.int32())]
            return pa.Table.from_arrays([*rows.columns, *places], schema=INDEX), read_refused(shard)

    with ThreadPoolExecutor(READERS_FAR if store.remote else READERS_NEAR) as pool:
        found = list(pool.map(one, range(first, len(names))))
    return [rows for rows, _ in found], [row for _, refused in found for row in refused]


def _counted_rows(store: Folder, shards: int) -> pa.Table:
    """The index's rows of the first `shards` shards."""
    if not shards:
        return INDEX.empty_table()
    with store.open(INDEX_FILE) as file:
        index = pq.read_table(file)
    return index.filter(pc.less(index["shard"], shards))


def _quarantine(store: Folder | None, refused: Sequence[dict[str, str]], index: pa.Table) -> pa.Table:
    """What is refused now: a volume that was tried again counts as its last trial says."""
    used = set(index["volume_id"].to_pylist())
    rows = {row["volume_id"]: row for row in [*(quarantined(store) if store else []), *refused]}
    return pa.Table.from_pylist([rows[name] for name in sorted(rows) if name not in used], schema=QUARANTINE)


def _labels(index: pa.Table) -> tuple[str, ...]:
    """Labels that some volume has, in their published order; CT-RATE's, all unknown, where no volume has any."""
    labels = index["labels"].combine_chunks()
    present = [name for name in LABELS if pc.struct_field(labels, name).null_count < len(labels)]
    return tuple(present) or tuple(CT_RATE)
