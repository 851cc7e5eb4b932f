"""A store's volumes decoded once into Ray's object store, for all trials of a search."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brgsa.errors import UserError
from brgsa.volumes.augment import Volume16
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import nodes_for
from brgsa_platform.store.reader import decoded_volume
from brgsa_platform.store.store import Store

OBJECT_STORE_SHARE = 0.5  # that decoded volumes may fill; the rest is for what trains
DECODED_BLOCK_BYTES = 64 * 2**20
CACHED_SPLITS = ("train", "validation")

Position = tuple[int, int]


@dataclass(frozen=True)
class VolumeCache:
    """Where each decoded volume lies.

    Attributes:
        blocks: references to int16 HU arrays (n, x, y, z); whoever keeps this keeps them in memory.
        positions: (shard number, row group) → (block, index within).
    """

    blocks: Sequence[Any] = field(repr=False)
    positions: Mapping[Position, Position] = field(repr=False)

    def volume(self, shard: int, row_group: int) -> Volume16:
        """A volume (x, y, z), int16 HU, as a read-only view of the object store."""
        block, index = self.positions[shard, row_group]
        volume: Volume16 = _fetched(self.blocks[block])[index]
        return volume


@functools.lru_cache(maxsize=4096)
def _fetched(reference: Any) -> Volume16:
    import ray

    array: Volume16 = ray.get(reference)
    return array


def decode_once(store: Store) -> VolumeCache | None:
    """Decode the training and validation volumes of a store; None where a node has no room for all of them.

    Then each trial streams and decodes them itself, as a training does. Needs a Ray session.

    Raises:
        UserError: a shard is missing or damaged.
    """
    import ray

    index = store.index(["split", "shard", "row_group"]).to_pylist()
    wanted = [(row["shard"], row["row_group"]) for row in index if row["split"] in CACHED_SPLITS]
    volume_bytes = 2 * int(np.prod(store.geometry.shape))
    if not fits_on_every_node(len(wanted) * volume_bytes):
        return None
    blocks = _blocks_of(wanted, max(1, DECODED_BLOCK_BYTES // volume_bytes))
    task = ray.remote(num_cpus=1, num_returns=2, label_selector=nodes_for("data"))(_decode_block)
    shards = store.shards()
    started = [task.remote(shards[shard], row_groups) for shard, row_groups in blocks]
    with progress(len(wanted), "decode volumes once for all trials") as advance:
        for (_, refused), (_, row_groups) in zip(started, blocks, strict=True):
            refusal = ray.get(refused)
            if refusal is not None:
                raise refusal
            advance(len(row_groups))
    positions = {
        (shard, row_group): (block, position)
        for block, (shard, row_groups) in enumerate(blocks)
        for position, row_group in enumerate(row_groups)
    }
    return VolumeCache([volumes for volumes, _ in started], positions)


def fits_on_every_node(total_bytes: int) -> bool:
    """Whether every node that decodes or trains has room for so many bytes of decoded volumes; needs a Ray session.

    A trial reads all volumes in each epoch and its node keeps a copy of each, so the smallest object store decides, not
    the cluster's sum. The answer is no where nodes of a role have still to be started.
    """
    import ray

    rooms = [smallest_object_store(ray.nodes(), nodes_for(role)) for role in ("data", "training")]
    return total_bytes <= OBJECT_STORE_SHARE * min(rooms)


def smallest_object_store(nodes: Iterable[Mapping[str, Any]], selector: Mapping[str, str]) -> float:
    """Bytes of the smallest object store among the nodes that a label selector picks; 0 where it picks none.

    Args:
        nodes: as `ray.nodes()` gives them. Those without a CPU (a cluster's head, as a rule) run no task and do not count.
    """
    stores = [
        float(node["Resources"].get("object_store_memory", 0))
        for node in nodes
        if node["Alive"] and node["Resources"].get("CPU") and selector.items() <= node["Labels"].items()
    ]
    return min(stores, default=0.0)


def _blocks_of(wanted: Iterable[Position], a_block: int) -> list[tuple[int, list[int]]]:
    """Shard and row groups of each block: at most `a_block` volumes of one shard."""
    by_shard: dict[int, list[int]] = defaultdict(list)
    for shard, row_group in wanted:
        by_shard[shard].append(row_group)
    return [
        (shard, row_groups[start : start + a_block])
        for shard, row_groups in by_shard.items()
        for start in range(0, len(row_groups), a_block)
    ]


def _decode_block(shard: str, row_groups: Sequence[int]) -> tuple[Volume16 | None, UserError | None]:
    """The volumes (n, x, y, z), or why they cannot be read: as a value, a refusal crosses processes unharmed."""
    try:
        return np.stack([decoded_volume(shard, row_group) for row_group in row_groups]), None
    except UserError as error:
        return None, error
