"""The batches of training and evaluation, by each loader: what is read, in which order, by which worker, from which step on."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from patience import until
from refusals import refused

from brgsa.errors import UserError
from brgsa.volumes import decode, encode
from brgsa.volumes.augment import Augmentation, centre_crop
from brgsa.volumes.codec import MAGIC
from brgsa_platform.config import DataSection, load_config
from brgsa_platform.loading import loaders
from brgsa_platform.loading.batches import BatchSource, evaluation_batches, split_index, training_batches
from brgsa_platform.loading.order import Items, epoch_batches
from brgsa_platform.store.reader import encoded_volume
from brgsa_platform.store.store import Store
from brgsa_platform.training.driver import check_fit, train
from brgsa_platform.training.resources import room_for

pytestmark = pytest.mark.ray

CROP = (16, 16, 8)
BATCH = 6
STEPS = 8  # of 48 volumes
SEED = 5
EPOCHS = range(1, 3)
AUGMENTED = {"flip": [0.5, 0.5, 0.5], "rotate": 0.5, "shuffle_buffer": 10}


@pytest.fixture(scope="module", params=["ray", "torch"])
def source(pairs: Path, request: pytest.FixtureRequest) -> BatchSource:
    """The training split, loaded by either loader."""
    data = DataSection.model_validate({"loader": request.param, "cpus": 2, **AUGMENTED})
    return BatchSource(split_index(Store.open(pairs), "train"), CROP, data)


def volumes_of(source: BatchSource) -> Items:
    return Items.volumes(source.index.scans)


def scans_of(source: BatchSource) -> Items:
    """Of 24 scans with two reconstructions each, one a scan in each epoch: four steps."""
    scans = source.index.scans
    return Items(scans, np.arange(scans.max() + 1), drawn=True)


units = pytest.mark.parametrize("items_of", [volumes_of, scans_of])


def batches(source: BatchSource, skip: int = 0, items_of: Callable[..., Items] = volumes_of) -> list[loaders.Batch]:
    items = items_of(source)
    return list(training_batches(source, items, batch_size=BATCH, epochs=EPOCHS, seed=SEED, skip=skip))


def expected(source: BatchSource, items_of: Callable[..., Items] = volumes_of) -> list[loaders.Batch]:
    """What the batches must be, row by row from the shards themselves."""
    index, data = source.index, source.data
    augmentation = Augmentation(SEED, data.flip, data.rotate)
    found = []
    for epoch in EPOCHS:
        for rows in epoch_batches(index.shard, items_of(source), BATCH, SEED, epoch, data.shuffle_buffer):
            crops = np.empty((BATCH, *CROP), np.int16)
            for crop, row in zip(crops, rows.tolist(), strict=True):
                augmentation.place(stored_volume(source, row), crop, epoch, row)
            found.append(loaders.Batch(rows, [crops]))
    return found


def stored_volume(source: BatchSource, row: int) -> np.ndarray:
    index = source.index
    return decode(encoded_volume(index.shards[index.shard[row]], int(index.row_group[row])))


def assert_same(some: list[loaders.Batch], others: list[loaders.Batch]) -> None:
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.ct, other.ct)


@units
def test_batches_are_the_order_cropped_and_augmented(source: BatchSource, items_of: Callable[..., Items]) -> None:
    random_numbers = torch.get_rng_state()
    whole = expected(source, items_of)
    assert len(whole) == (2 * STEPS if items_of is volumes_of else STEPS)
    assert_same(batches(source, items_of=items_of), whole)
    assert_same(batches(source, 3, items_of), whole[3:])  # as a run goes on that stood in mid-epoch
    assert torch.equal(torch.get_rng_state(), random_numbers)


@units
def test_workers_share_each_global_batch(source: BatchSource, items_of: Callable[..., Items]) -> None:
    parts = [batches(replace(source, rank=rank, world=2), items_of=items_of) for rank in range(2)]
    joined = [
        loaders.Batch(np.concatenate([p.rows for p in shares]), [block for p in shares for block in p.blocks])
        for shares in zip(*parts, strict=True)
    ]
    assert_same(joined, expected(source, items_of))


def test_a_batch_comes_in_blocks_and_streams_follow_each_other(
    source: BatchSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "BLOCK_BYTES", 4 * 2 * 16 * 16 * 8)  # four volumes
    monkeypatch.setattr(loaders, "TASKS_A_STREAM", 9)
    found = batches(source)
    assert [[len(block) for block in batch.blocks] for batch in found] == [[3, 3]] * len(found)
    assert not any(block.flags.owndata for batch in found for block in batch.blocks)  # views of shared memory
    assert_same(found, expected(source))


def test_evaluation_is_every_centre_crop_once_in_store_order(source: BatchSource) -> None:
    for world in (1, 3):
        found = [
            batch
            for rank in range(world)
            for batch in evaluation_batches(replace(source, rank=rank, world=world), batch_size=5)
        ]
        order = np.concatenate([batch.rows for batch in found])
        np.testing.assert_array_equal(order, np.concatenate([np.arange(rank, 48, world) for rank in range(world)]))
        for batch in found:
            for row, crop in zip(batch.rows.tolist(), batch.ct, strict=True):
                np.testing.assert_array_equal(crop, centre_crop(stored_volume(source, row), CROP))


@pytest.mark.parametrize("damage", ["file", "frame"])
def test_a_damaged_shard_is_named_in_one_sentence(
    source: BatchSource, pairs: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(pairs, tmp_path / "store")
    index = split_index(Store.open(tmp_path / "store"), "train")
    shard = index.shards[index.shard[20]]
    content = Path(shard).read_bytes()
    if damage == "file":
        Path(shard).write_bytes(content[:1000])
    else:  # the Parquet file stays whole
        start = content.index(MAGIC) + 40
        Path(shard).write_bytes(content[:start] + b"\xff" * 50 + content[start + 50 :])
    broken = replace(source, index=index)
    for stream in (
        training_batches(broken, volumes_of(broken), batch_size=BATCH, epochs=EPOCHS, seed=0),
        evaluation_batches(broken, batch_size=5),
    ):
        with refused("shard-damaged", field=shard) as error:
            list(stream)
        assert type(error.value) is UserError  # not one that Ray has made of it, whose text is a traceback
        assert not loader_processes()


def test_a_killed_loader_process_ends_the_stream(pairs: Path) -> None:
    data = DataSection(loader="torch", cpus=2)
    source = BatchSource(split_index(Store.open(pairs), "train"), CROP, data)
    stream = training_batches(source, volumes_of(source), batch_size=BATCH, epochs=range(300), seed=0)
    next(stream)
    (victim, *_) = loader_processes()
    victim.send_signal(signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"data\.loader=ray"):
        deque(stream, maxlen=0)
    assert not loader_processes()


def test_processes_of_a_loader_stay_from_stream_to_stream(pairs: Path) -> None:
    """Also after a stream that was left in its middle; closed, they end, and a dead one is told."""
    source = BatchSource(split_index(Store.open(pairs), "train"), CROP, DataSection(loader="torch", cpus=1))
    expected = [batch.rows.tolist() for batch in evaluation_batches(source, batch_size=5)]
    assert not loader_processes()
    with contextlib.closing(source.loader()) as loader:
        first = [batch.rows.tolist() for batch in evaluation_batches(source, batch_size=5, loader=loader)]
        (process,) = loader_processes()
        with contextlib.closing(evaluation_batches(source, batch_size=5, loader=loader)) as left:
            next(left)
        again = [batch.rows.tolist() for batch in evaluation_batches(source, batch_size=5, loader=loader)]
        assert first == again == expected
        assert loader_processes() == [process]
        process.kill()
        with pytest.raises(RuntimeError, match=r"data\.loader=ray"):
            deque(evaluation_batches(source, batch_size=5, loader=loader), maxlen=0)
    assert not loader_processes()


def loader_processes() -> list[psutil.Process]:
    """Those that a torch DataLoader of this process has at work."""
    return [psutil.Process(child.pid) for child in multiprocessing.active_children() if child.pid is not None]


def test_loader_processes_do_not_outlive_a_killed_training(pairs: Path) -> None:
    program = f"""
        import multiprocessing, time
        from brgsa_platform.config import DataSection
        from brgsa_platform.store.store import Store
        from brgsa_platform.loading.batches import BatchSource, split_index, training_batches
        from brgsa_platform.loading.order import Items

        if __name__ == "__main__":
            index = split_index(Store.open({str(pairs)!r}), "train")
            source = BatchSource(index, {CROP}, DataSection(loader="torch", cpus=2))
            items = Items.volumes(index.scans)
            stream = training_batches(source, items, batch_size={BATCH}, epochs=range(9), seed=0)
            next(stream)
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        children = [psutil.Process(int(pid)) for pid in training.stdout.readline().split()]
        server = children[0].parent()
        training.kill()
    assert len(children) == 2
    assert server is not None
    until(lambda: not any(lives(process) for process in (*children, server)))


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("data", "world", "processes"),
    [({"cpus": 8}, 2, 4), ({"cpus": 3}, 2, 1), ({"cpus": 0.5}, 1, 1), ({}, 1, 3), ({}, 4, 3)],
)
def test_processes_of_a_torch_loader(four_threads: None, data: dict[str, Any], world: int, processes: int) -> None:
    assert loaders.loader_processes(DataSection.model_validate(data), world) == processes


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_a_small_share_of_the_object_store_is_slow_not_stuck(pairs: Path) -> None:
    source = BatchSource(split_index(Store.open(pairs), "train"), CROP, DataSection(object_store_share=1e-9))
    order = epoch_batches(source.index.shard, volumes_of(source), BATCH, SEED, 1, 4096)
    np.testing.assert_array_equal([batch.rows for batch in batches(source)][:STEPS], order)


@pytest.mark.parametrize(
    "settings", [{}, {"use_dictionary": False}, {"compression": "zstd"}, {"data_page_version": "2.0"}]
)
def test_a_volume_is_found_however_parquet_wrote_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    cells = [encode(np.full((6, 5, 4), value, np.int16)) for value in range(3)]
    table = pa.table({"report": ["a", "b", "c"], "ct": pa.array(cells, pa.large_binary())})
    pq.write_table(table, tmp_path / "part.parquet", row_group_size=1, **{"compression": "none", **settings})
    for group, cell in enumerate(cells):
        assert bytes(encoded_volume(str(tmp_path / "part.parquet"), group)) == cell


def test_a_split_with_too_few_scans_is_refused(pairs: Path, tmp_path: Path) -> None:
    settings = ["data.style=report", "model.vision.volume=[16, 16, 8]", "train.workers=0"]
    config = load_config("paper-smoke", overrides=[*settings, "train.batch_size=26"])  # 48 volumes, but 24 scans
    with refused("batch-too-large", field="train.batch_size", value=26):
        train(pairs, config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_split_with_too_few_texts_is_refused(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All reports are equal, as those of a store of healthy scans may be."""
    store = Store.open(pairs)
    settings = ["data.style=report", "model.vision.volume=[16, 16, 8]", "train.batch_size=8"]
    config = load_config("paper-smoke", overrides=[*settings, "data.unit=text"])
    check_fit(store, config)
    monkeypatch.setattr(Store, "texts", lambda store, style: dict.fromkeys(store._reports, "Normal."))
    with refused("too-few-texts", field="data.unit", value="text"):
        check_fit(store, config)
    check_fit(store, load_config("paper-smoke", overrides=settings))
    with refused("too-few-texts", field="data.distinct_texts", value=True):
        check_fit(store, load_config("paper-smoke", overrides=[*settings, "data.distinct_texts=true"]))


def test_volumes_that_the_patch_does_not_divide_are_refused(pairs: Path) -> None:
    settings = ["data.style=report", "model.vision.volume=[16, 16, 8]", "train.batch_size=8"]
    whole = load_config("paper-smoke", overrides=[*settings, "model.vision.evaluation=whole"])
    with refused("volumes-not-patches", field="model.vision.evaluation", value="whole"):
        check_fit(Store.open(pairs), whole)
    check_fit(Store.open(pairs), load_config(overrides=["model.vision.patch=[4, 4, 2]"], base=whole.to_dict()))


def test_an_early_stop_without_validation_is_refused(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["data.style=report", "model.vision.volume=[16, 16, 8]", "train.batch_size=8"]
    config = load_config("paper-smoke", overrides=[*settings, "train.stop_after=3"])
    store = Store.open(pairs)
    check_fit(store, config)
    index = Store.index

    def train_alone(store: Store, columns: list[str]) -> pa.Table:
        table = index(store, columns)
        return table.filter(pa.array([split == "train" for split in table["split"].to_pylist()]))

    monkeypatch.setattr(Store, "index", train_alone)
    with refused("no-validation", field="train.stop_after", value=3):
        check_fit(store, config)
    check_fit(store, load_config("paper-smoke", overrides=settings))


def test_a_split_that_the_store_lacks_is_refused(pairs: Path) -> None:
    with refused("empty-split", value="test"):
        split_index(Store.open(pairs), "test")


def test_a_transform_that_monai_lacks_is_refused(pairs: Path) -> None:
    wrong = {"data": {"transforms": [{"name": "RandGaussianSmoth"}]}}
    settings = ["data.style=report", "model.vision.volume=[16, 16, 8]", "train.batch_size=4"]
    with pytest.raises(UserError, match="did you mean RandGaussianSmooth"):
        check_fit(Store.open(pairs), load_config("paper-smoke", overrides=settings, base=wrong))


@pytest.mark.parametrize(
    ("settings", "code", "field", "value"),
    [
        (["train.workers=2"], "too-few-cpus", "train.workers", 2),
        (["train.workers=4", "data.loader=torch"], "too-few-cpus", "train.workers", 4),
        (["data.cpus=2"], "data-cpus-out-of-range", "data.cpus", 2.0),
        (["data.cpus=0.5"], "data-cpus-out-of-range", "data.cpus", 0.5),
    ],
)
def test_a_cluster_without_room_for_data_is_refused(
    ray_session: None, settings: list[str], code: str, field: str, value: float
) -> None:
    with refused(code, field=field, value=value):  # two CPUs are there
        room_for(load_config("demo-smoke", overrides=settings))


def test_a_torch_loader_needs_no_cpus_of_rays(ray_session: None) -> None:
    room_for(load_config("demo-smoke", overrides=["train.workers=1", "data.cpus=1"]))
    room_for(load_config("demo-smoke", overrides=["train.workers=2", "data.loader=torch", "data.cpus=4"]))
