"""The tables over a store's shards, `index.parquet` and `quarantine.parquet`, written when all shards of a batch are there."""

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

# Shards read at a time. An object store answers each request in some 50 ms; on a disk more readers only take more memory.
READERS_REMOTE, READERS_LOCAL = 8, 1

INDEX = pa.schema(
    [f for f in SCHEMA if f.name != "ct"] + [pa.field("shard", pa.int32()), pa.field("row_group", pa.int32())]
)


def commit_batch(store: Folder, meta: Meta) -> Meta:
    """Add the shards of the incomplete batches to index and quarantine table, then mark these batches complete in store.json.

    Returns:
        store.json as it is now. It is written last: until then the batches do not count.

    Raises:
        OSError: the store cannot be read or written.
    """
    committed = sum(len(batch.shards) for batch in meta.batches if batch.complete)
    names = meta.shards
    rows, refused = _read_shards(store, names, committed)
    index = pa.concat_tables([_committed_rows(store, committed), *rows])
    earlier = quarantined(store) if committed else []
    with store.written_aside(QUARANTINE_FILE) as aside:
        pq.write_table(_quarantine_table([*earlier, *refused], index), aside)
    with store.written_aside(INDEX_FILE) as aside:
        pq.write_table(index, aside, compression="zstd")
    sizes = store.sizes("volumes")
    complete = replace(
        meta,
        labels=_labels(index),
        batches=tuple(replace(batch, complete=True) for batch in meta.batches),
        sizes={name: sizes[name] for name in names},
        fingerprint=fingerprint(meta.settings, index["volume_id"].to_pylist(), index["checksum"].to_pylist()),
    )
    store.write(META_FILE, complete.to_json())
    return complete


def quarantined(store: Folder) -> list[dict[str, str]]:
    """The rows of the quarantine table (`volume_id`, `source`, `stage`, `reason`); none where there is no table."""
    if not store.exists(QUARANTINE_FILE):
        return []
    with store.open(QUARANTINE_FILE) as file:
        rows: list[dict[str, str]] = pq.read_table(file).to_pylist()
    return rows


def _read_shards(store: Folder, names: Sequence[str], first: int) -> tuple[list[pa.Table], list[dict[str, str]]]:
    """From the shards `names[first:]`: a table of index rows each, and all rows for the quarantine table."""

    def read(number: int) -> tuple[pa.Table, list[dict[str, str]]]:
        with store.open(f"volumes/{names[number]}") as file:
            shard = pq.ParquetFile(file)
            rows = read_rows(shard)
            places = [pa.array([number] * len(rows), pa.int32()), pa.array(range(len(rows)), pa.int32())]
            return pa.Table.from_arrays([*rows.columns, *places], schema=INDEX), read_refused(shard)

    with ThreadPoolExecutor(READERS_REMOTE if store.remote else READERS_LOCAL) as pool:
        shards = list(pool.map(read, range(first, len(names))))
    return [rows for rows, _ in shards], [row for _, refused in shards for row in refused]


def _committed_rows(store: Folder, shards: int) -> pa.Table:
    """The index's rows of the first `shards` shards."""
    if not shards:
        return INDEX.empty_table()
    with store.open(INDEX_FILE) as file:
        index = pq.read_table(file)
    return index.filter(pc.less(index["shard"], shards))


def _quarantine_table(refused: Sequence[dict[str, str]], index: pa.Table) -> pa.Table:
    """The quarantine table, sorted by volume id.

    Args:
        refused: rows, oldest first. Of a volume that was tried again the last row counts, and none if it is in the index now.
    """
    usable = set(index["volume_id"].to_pylist())
    rows = {row["volume_id"]: row for row in refused}
    return pa.Table.from_pylist([rows[name] for name in sorted(rows) if name not in usable], schema=QUARANTINE)


def _labels(index: pa.Table) -> tuple[str, ...]:
    """The labels that some volume has, in their published order; CT-RATE's where no volume has any."""
    labels = index["labels"].combine_chunks()
    present = [name for name in LABELS if pc.struct_field(labels, name).null_count < len(labels)]
    return tuple(present) or tuple(CT_RATE)
