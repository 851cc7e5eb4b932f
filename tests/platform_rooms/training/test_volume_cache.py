"""Volumes decoded once for all trials: the same batches as the stream's, or none where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brgsa.volumes import decode
from brgsa_platform.config import DataSection
from brgsa_platform.store.store import Store
from brgsa_platform.training import batches as datasets
from brgsa_platform.training import volume_cache as decoding

pytestmark = pytest.mark.ray

CROP = (16, 16, 8)


def test_decoded_volumes_make_the_streams_batches(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(pairs)
    monkeypatch.setattr(decoding, "BLOCK_BYTES", 3 * 2 * 20 * 20 * 10)  # several volumes a block, several blocks
    found = decoding.decode_once(store)
    assert found is not None
    index = store.index(["split", "shard", "row_group"]).to_pylist()
    assert len(found.places) == sum(row["split"] != "test" for row in index)
    for row in index[::7]:
        place = row["shard"], row["row_group"]
        np.testing.assert_array_equal(found.volume(*place), decode(store.encoded(*place)))

    rows, data = datasets.split_rows(store, "train"), DataSection.model_validate({"flip": 0.5})
    settings = {"batch_size": 8, "epochs": range(2), "seed": 1, "skip": 2}
    streamed = list(datasets.training_batches(rows, CROP, data, **settings))  # type: ignore[arg-type]
    direct = list(datasets.training_batches(rows, CROP, data, decoded=found, **settings))  # type: ignore[arg-type]
    assert len(streamed) == len(direct) > 4
    for one, other in zip(streamed, direct, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.ct, other.ct)
    for there, here in zip(
        datasets.evaluation_batches(rows, CROP, batch_size=10),
        datasets.evaluation_batches(rows, CROP, batch_size=10, decoded=found),
        strict=True,
    ):
        np.testing.assert_array_equal(there["ct"], here["ct"])


def test_what_does_not_fit_is_left_to_the_stream(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "OBJECT_STORE_SHARE", 0.0)
    assert decoding.decode_once(Store.open(pairs)) is None
