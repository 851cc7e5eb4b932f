"""The work of `brgsa prepare`: write the shards of planned batches with Ray Data, one task per shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from brgsa.errors import UserError
from brgsa_platform.layouts import Item
from brgsa_platform.runtime.progress import following, progress
from brgsa_platform.runtime.session import set_data_context
from brgsa_platform.store.index import commit_batch
from brgsa_platform.store.ingest_log import IngestLogHandle
from brgsa_platform.store.plan import PlannedBatch
from brgsa_platform.store.store import Meta
from brgsa_platform.store.writer import ShardWriter, is_whole


def write_batches(writer: ShardWriter, meta: Meta, batches: Mapping[int, PlannedBatch], workers: int | None) -> Meta:
    """Write the shards that some batches of a store lack, and commit the batches.

    Args:
        meta: store.json, which names the batches already.
        batches: number → batch.
        workers: volumes read at a time; None: as many as there are CPUs.

    Returns:
        store.json as it is now.

    Raises:
        UserError: the store cannot be written ("store-unwritable").
    """
    for number, planned in batches.items():
        lacking = [
            name
            for name in planned.batch.shards
            if not is_whole(writer.store, name, len(planned.items_of(name)), meta.sizes.get(name))
        ]
        if lacking:
            volumes = sum(len(planned.items_of(name)) for name in lacking)
            with progress(volumes, "prepare: volumes") as advance:
                _write_shards(writer, planned, lacking, workers, advance)
        if planned.batch.complete:  # its shards were damaged: commit it and all after it again
            committed = tuple(replace(b, complete=b.complete and i < number) for i, b in enumerate(meta.batches))
            meta = replace(meta, batches=committed)
    return commit_batch(writer.store, meta)


def _write_shards(
    writer: ShardWriter,
    planned: PlannedBatch,
    shards: Sequence[str],
    workers: int | None,
    advance: Callable[..., None],
) -> None:
    """Write these shards of a batch, a Ray Data task each."""
    import ray

    set_data_context()
    log = IngestLogHandle.start()
    # Put the items into the object store once, as Arrow text, so that each task copies only its own rows.
    items = ray.put(pa.array([json.dumps(item.to_dict(), default=str) for item in planned.items], pa.large_string()))
    size = planned.batch.per_shard
    tasks = [{"shard": name, "start": planned.batch.shards.index(name) * size, "count": size} for name in shards]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
        _write_shard, fn_kwargs={"writer": writer, "items": [items], "log": log}, concurrency=workers
    )
    with following(lambda: (log.finished(), ""), advance):  # the driver itself waits for whole shards
        for row in dataset.iter_rows():
            if row["error"]:
                raise UserError(
                    f"The store {writer.store} cannot be written ({row['error']}): mend that and run the same command "
                    "again, it goes on where it stopped.",
                    code="store-unwritable",
                    field="--out",
                    value=row["error"],
                )


def _write_shard(
    task: dict[str, Any], writer: ShardWriter, items: Sequence[Any], log: IngestLogHandle
) -> dict[str, Any]:
    """Write the shard of one task. `items` is a list, as Ray passes a reference in a list as it is."""
    import ray

    texts = ray.get(items[0])[task["start"] : task["start"] + task["count"]]
    return {"error": writer(task["shard"], [Item(**json.loads(text)) for text in texts.to_pylist()], log)}
