"""Volumes decoded once for all trials: the same batches as the loaders', or none where they do not fit."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from brgsa.errors import UserError
from brgsa.volumes import decode
from brgsa_platform.config import DataSection
from brgsa_platform.loading import volume_cache
from brgsa_platform.loading.batches import BatchSource, evaluation_batches, split_index, training_batches
from brgsa_platform.loading.order import Items
from brgsa_platform.store.store import Store

pytestmark = pytest.mark.ray

CROP = (16, 16, 8)


def test_decoded_volumes_make_the_loaders_batches(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(pairs)
    monkeypatch.setattr(
        volume_cache, "DECODED_BLOCK_BYTES", 3 * 2 * 20 * 20 * 10
    )  # several volumes a block, several blocks
    cache = volume_cache.decode_once(store)
    assert cache is not None
    index = store.index(["split", "shard", "row_group"]).to_pylist()
    assert len(cache.positions) == sum(row["split"] != "test" for row in index)
    for row in index[::7]:
        position = row["shard"], row["row_group"]
        np.testing.assert_array_equal(cache.volume(*position), decode(store.encoded(*position)))

    source = BatchSource(split_index(store, "train"), CROP, DataSection.model_validate({"flip": 0.5}))
    settings: dict[str, Any] = {"batch_size": 8, "epochs": range(2), "seed": 1, "skip": 2}
    items = Items.volumes(source.index.scans)
    loaded = list(training_batches(source, items, **settings))
    cached = list(training_batches(replace(source, cache=cache), items, **settings))
    loaded += evaluation_batches(source, batch_size=10)
    cached += evaluation_batches(replace(source, cache=cache), batch_size=10)
    assert len(loaded) == len(cached) > 8
    for one, other in zip(loaded, cached, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.ct, other.ct)


def test_what_does_not_fit_is_left_to_the_loaders(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_cache, "OBJECT_STORE_SHARE", 0.0)
    assert volume_cache.decode_once(Store.open(pairs)) is None


def test_a_damaged_shard_is_named_before_any_trial(pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    os.truncate(store.shards()[1], 1000)
    with refused("shard-damaged", field=store.shards()[1]) as error:
        volume_cache.decode_once(store)
    assert type(error.value) is UserError


def node(gib: float, cpus: int = 8, role: str = "", alive: bool = True) -> dict[str, Any]:
    labels = {"ray.io/node-id": "1", **({"brgsa.io/role": role} if role else {})}
    return {"Alive": alive, "Labels": labels, "Resources": {"CPU": cpus, "object_store_memory": gib * 2**30}}


def test_the_smallest_node_that_works_decides() -> None:
    nodes = [node(1, cpus=0), node(40), node(10), node(2, alive=False)]  # a head, two workers, one that is gone
    assert volume_cache.smallest_object_store(nodes, {}) == 10 * 2**30
    nodes = [node(1, cpus=0), node(5, role="data"), node(40, role="training"), node(20, role="training")]
    assert volume_cache.smallest_object_store(nodes, {"brgsa.io/role": "training"}) == 20 * 2**30
    assert volume_cache.smallest_object_store(nodes[:2], {"brgsa.io/role": "training"}) == 0  # still to be started


def test_half_of_an_object_store_may_be_filled(ray_session: None) -> None:
    import ray

    room = int(ray.cluster_resources()["object_store_memory"] // 2)  # of the one node here
    assert volume_cache.fits_on_every_node(room)
    assert not volume_cache.fits_on_every_node(room + 2)
