"""The stream of training batches through Ray Data: what is read, in which order, by which worker, from which step on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brgsa.errors import UserError
from brgsa.volumes import decode, encode
from brgsa.volumes.augment import Augmentation, centre_crop
from brgsa_platform.config import DataSection, load_config
from brgsa_platform.store.store import Store
from brgsa_platform.training import batches as datasets
from brgsa_platform.training.driver import check_fit, train
from brgsa_platform.training.order import epoch_batches
from brgsa_platform.training.resources import check_resources

pytestmark = pytest.mark.ray

CROP = (16, 16, 8)
BATCH = 6
STEPS = 8  # of 48 volumes


@pytest.fixture(scope="module")
def rows(pairs: Path) -> datasets.Rows:
    return datasets.split_rows(Store.open(pairs), "train")


def batches(rows: datasets.Rows, data: DataSection | None = None, **settings: int) -> list[datasets.Batch]:
    some = {"batch_size": BATCH, "seed": 5, **settings}
    return list(datasets.training_batches(rows, CROP, data or DataSection(), epochs=range(1, 3), **some))  # type: ignore[arg-type]


def test_a_cell_is_the_stored_volume(pairs: Path, rows: datasets.Rows) -> None:
    for row in (0, 17, 47):
        shard, group = rows.shards[rows.shard[row]], int(rows.group[row])
        stored = pq.read_table(shard)
        place = stored["volume_id"].to_pylist().index(rows.volume_ids[row])
        assert bytes(datasets.encoded_volume(shard, group)) == stored["ct"][place].as_py()


@pytest.mark.parametrize(
    "settings", [{}, {"use_dictionary": False}, {"compression": "zstd"}, {"data_page_version": "2.0"}]
)
def test_a_cell_is_found_however_parquet_wrote_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    cells = [encode(np.full((6, 5, 4), value, np.int16)) for value in range(3)]
    table = pa.table({"report": ["a", "b", "c"], "ct": pa.array(cells, pa.large_binary())})
    pq.write_table(table, tmp_path / "part.parquet", row_group_size=1, **{"compression": "none", **settings})
    for group, cell in enumerate(cells):
        assert bytes(datasets.encoded_volume(str(tmp_path / "part.parquet"), group)) == cell


def test_the_stream_is_the_order_cropped_and_augmented(rows: datasets.Rows) -> None:
    data = DataSection.model_validate({"flip": [0.5, 0.5, 0.5], "rotate": 0.5, "shuffle_buffer": 10})
    got = batches(rows, data)
    expected = [epoch_batches(rows.shard, rows.scans, BATCH, 5, epoch, 10) for epoch in (1, 2)]
    np.testing.assert_array_equal([batch.rows for batch in got], np.concatenate(expected))
    for step in (0, STEPS - 1, STEPS, 2 * STEPS - 1):
        assert got[step].ct.dtype == np.int16
        for row, crop in zip(got[step].rows, got[step].ct, strict=True):
            volume = decode(datasets.encoded_volume(rows.shards[rows.shard[row]], int(rows.group[row])))
            out = np.empty(CROP, np.int16)
            Augmentation(5, data.flip, data.rotate).place(volume, out, 1 + step // STEPS, int(row))
            np.testing.assert_array_equal(crop, out)


def test_workers_share_each_global_batch(rows: datasets.Rows) -> None:
    alone = batches(rows)
    parts = [batches(rows, rank=rank, world=2) for rank in range(2)]
    for one, *shares in zip(alone, *parts, strict=True):
        np.testing.assert_array_equal(one.rows, np.concatenate([share.rows for share in shares]))
        np.testing.assert_array_equal(one.ct, np.concatenate([share.ct for share in shares]))


def test_a_stream_starts_in_mid_epoch(rows: datasets.Rows) -> None:
    whole, rest = batches(rows), batches(rows, skip=5)
    assert len(rest) == 2 * STEPS - 5
    for one, other in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.ct, other.ct)


def test_blocks_and_streams_may_be_small(rows: datasets.Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batches(rows)
    monkeypatch.setattr(datasets, "BLOCK_BYTES", 4 * 2 * 16 * 16 * 8)  # four volumes
    monkeypatch.setattr(datasets, "TASKS_A_STREAM", 9)
    for one, other in zip(whole, batches(rows), strict=True):
        assert [len(block) for block in other.blocks] == [3, 3]  # no block holds parts of two batches
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.ct, other.ct)


def test_blocks_are_views_of_the_object_store(rows: datasets.Rows) -> None:
    stream = datasets.training_batches(rows, CROP, DataSection(), batch_size=6, epochs=range(1), seed=0)
    for batch in itertools.islice(stream, 3):
        assert not batch.blocks[0].flags.writeable
        assert not batch.blocks[0].flags.owndata


def test_a_small_share_of_the_object_store_is_slow_not_stuck(rows: datasets.Rows) -> None:
    small = batches(rows, DataSection(object_store_share=1e-9))
    np.testing.assert_array_equal([batch.rows for batch in small], [batch.rows for batch in batches(rows)])


def test_evaluation_is_every_centre_crop_once_in_store_order(rows: datasets.Rows) -> None:
    for world in (1, 3):
        found = [
            batch
            for rank in range(world)
            for batch in datasets.evaluation_batches(rows, CROP, batch_size=5, rank=rank, world=world)
        ]
        order = np.concatenate([batch["row"] for batch in found])
        assert sorted(order.tolist()) == list(range(48))
        if world == 1:
            assert order.tolist() == list(range(48))
        for row, crop in zip(found[1]["row"], found[1]["ct"], strict=True):
            volume = decode(datasets.encoded_volume(rows.shards[rows.shard[row]], int(rows.group[row])))
            np.testing.assert_array_equal(crop, centre_crop(volume, CROP))


def test_a_split_with_too_few_scans_is_refused(pairs: Path, tmp_path: Path) -> None:
    settings = ["data.style=report", "model.vision.volume=[16, 16, 8]", "train.workers=0"]
    config = load_config("paper-smoke", overrides=[*settings, "train.batch_size=26"])  # 48 volumes, but 24 scans
    with pytest.raises(UserError, match=r"has 24 scans, fewer than train\.batch_size=26 .*lower train\.batch_size"):
        train(pairs, config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_transform_that_monai_lacks_is_refused(pairs: Path) -> None:
    wrong = {"data": {"transforms": [{"name": "RandGaussianSmoth"}]}}
    settings = ["data.style=report", "model.vision.volume=[16, 16, 8]", "train.batch_size=4"]
    with pytest.raises(UserError, match="did you mean RandGaussianSmooth"):
        check_fit(Store.open(pairs), load_config("paper-smoke", overrides=settings, base=wrong))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.workers=2"], r"train\.workers=2 needs 4 CPUs .* and the cluster has 2: lower train\.workers"),
        (["data.cpus=2"], r"data\.cpus=2 must be between 1, .* and the 1 CPUs that they leave free"),
        (["data.cpus=0.5"], r"data\.cpus=0\.5 must be between 1"),
    ],
)
def test_a_cluster_without_room_for_data_is_refused(ray_session: None, settings: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_resources(load_config("demo-smoke", overrides=settings))
    check_resources(load_config("demo-smoke", overrides=["train.workers=1", "data.cpus=1"]))
