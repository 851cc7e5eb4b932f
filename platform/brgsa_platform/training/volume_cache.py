"""A store's volumes decoded once into Ray's object store, for all trials of a search."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes import decode
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import nodes_for
from brgsa_platform.store.reader import encoded_volume
from brgsa_platform.store.store import Store

OBJECT_STORE_SHARE = 0.5  # that decoded volumes may fill; the rest is for what trains
BLOCK_BYTES = 64 * 2**20
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Decoded:
    """Where each decoded volume lies.

    Attributes:
        blocks: references to int16 HU arrays (n, x, y, z); who keeps this keeps them in memory.
        places: (shard number, row group) → (block, index within).
    """

    blocks: Sequence[Any] = field(repr=False)
    places: Mapping[tuple[int, int], tuple[int, int]] = field(repr=False)

    def volume(self, shard: int, row_group: int) -> npt.NDArray[np.int16]:
        """A volume (x, y, z), a read-only view of the object store."""
        block, index = self.places[shard, row_group]
        volumes: npt.NDArray[np.int16] = _fetched(self.blocks[block])[index]
        return volumes


@functools.lru_cache(maxsize=4096)
def _fetched(reference: Any) -> npt.NDArray[np.int16]:
    import ray

    array: npt.NDArray[np.int16] = ray.get(reference)
    return array


def decode_once(store: Store) -> Decoded | None:
    """Decode the training and validation volumes of a store; None where a node has no room for all of them.

    Then each trial streams and decodes them itself, as a training does.
    """
    import ray

    index = store.index(["split", "shard", "row_group"]).to_pylist()
    wanted = [(row["shard"], row["row_group"]) for row in index if row["split"] in SPLITS]
    volume_bytes = 2 * int(np.prod(store.geometry.shape))
    if not fits_on_every_node(len(wanted) * volume_bytes):
        return None
    by_shard: dict[int, list[int]] = defaultdict(list)
    for shard, group in wanted:
        by_shard[shard].append(group)
    a_block = max(1, BLOCK_BYTES // volume_bytes)
    parts = [
        (shard, groups[start : start + a_block])
        for shard, groups in by_shard.items()
        for start in range(0, len(groups), a_block)
    ]
    decode_part = ray.remote(num_cpus=1, label_selector=nodes_for("data"))(_decode_part)
    shards = store.shards()
    blocks = [decode_part.remote(shards[shard], groups) for shard, groups in parts]
    with progress(len(wanted), "decode volumes once for all trials") as advance:
        for block, (_, groups) in zip(blocks, parts, strict=True):
            ray.wait([block], fetch_local=False)
            advance(len(groups))
    places = {(shard, group): (i, j) for i, (shard, groups) in enumerate(parts) for j, group in enumerate(groups)}
    return Decoded(blocks, places)


def fits_on_every_node(total_bytes: int) -> bool:
    """Whether every node that decodes or trains has room for so many bytes of decoded volumes; needs a Ray session.

    A trial reads all volumes in each epoch and its node keeps a copy of each, so the smallest object store decides, not
    the cluster's sum. Nodes without a CPU (a cluster's head, as a rule) run no task and do not count. The answer is no
    where nodes of a role have still to be started.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    for role in ("data", "training"):
        wanted = nodes_for(role).items()
        rooms = [
            float(node["Resources"].get("object_store_memory", 0)) for node in nodes if wanted <= node["Labels"].items()
        ]
        if not rooms or total_bytes > OBJECT_STORE_SHARE * min(rooms):
            return False
    return True


def _decode_part(shard: str, groups: Sequence[int]) -> npt.NDArray[np.int16]:
    return np.stack([decode(encoded_volume(shard, group)) for group in groups])
