"""The loop around a training step: what stops it, and how the bank begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from refusals import refused

from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading.batches import BatchSource, evaluation_batches
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection
from brgsa_platform.training.driver import TrainOptions, check_fit, checkpoint_record, train
from brgsa_platform.training.encoding import encode_split, encode_texts
from brgsa_platform.training.loop import Trainer, TrainingTask
from brgsa_platform.training.run_folder import make_tokenizer, write_run
from brgsa_platform.training.workers import ALONE

pytestmark = pytest.mark.ray

SETTINGS = [
    "data={style: report, shuffle_buffer: 20}",
    "model.vision={name: cnn3d, volume: [16, 16, 8], width: 4, norm: batch}",
    "train={epochs: 1, batch_size: 8, threads: 1}",
]


def config(*more: str) -> RunConfig:
    return load_config("paper-smoke", overrides=[*SETTINGS, *more])


@pytest.mark.parametrize("workers", [0, 1])
def test_training_names_a_damaged_shard(pairs: Path, tmp_path: Path, workers: int) -> None:
    """In this process and in Ray Train's worker: the sentence, not the traceback of the task that read it."""
    shutil.copytree(pairs, tmp_path / "store")
    for shard in Store.open(tmp_path / "store").shards():
        Path(shard).write_bytes(Path(shard).read_bytes()[:300])
    with refused("shard-damaged") as error:
        settings = config(f"train.workers={workers}")
        train(tmp_path / "store", settings, out=tmp_path / "run", options=TrainOptions(quiet=True))
    assert str(tmp_path / "store") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_crop_larger_than_the_volumes(pairs: Path) -> None:
    with refused("crop-too-large", field="model.vision.volume", value=(32, 16, 8)):
        check_fit(Store.open(pairs), config("model.vision.volume=[32, 16, 8]"))


def test_a_loss_that_is_no_number(pairs: Path, tmp_path: Path) -> None:
    settings = config("train.workers=0", "optim.lr=1e30", "train.epochs=3")
    with refused("loss-not-finite", field="optim.lr", value=1e30):
        train(pairs, settings, out=tmp_path / "run", options=TrainOptions(quiet=True))


def trainer(pairs: Path, out: Path, *more: str) -> Trainer:
    """A training that is set up and has not begun."""
    store, settings = Store.open(pairs), config(*more)
    out.mkdir()
    with tracking.run("train") as run:
        write_run(out, store, settings, run.run_id)
    make_tokenizer(out, store, settings)
    record = checkpoint_record(store, settings)
    task = TrainingTask(settings.to_dict(), store.path, str(out), record, connection.tracking_uri(), run.run_id)
    return Trainer(task, ALONE)


def test_k_means_starts_from_a_sample_of_the_split_in_evaluation_mode(pairs: Path, tmp_path: Path) -> None:
    """A bank of one vector is the mean of one volume's embedding and its text's."""
    drawn = set()
    for seed in range(4):
        begun = trainer(pairs, tmp_path / str(seed), "model.bank={init: kmeans, size: 1}", f"train.seed={seed}")
        model, crop = begun.model, begun.config.model.vision.volume
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
        begun.initialise_bank()
        assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
        batches = evaluation_batches(BatchSource(begun.rows, crop), batch_size=5)
        volumes = encode_split(model, begun.rows, batches).embeddings.plain
        means = (volumes + encode_texts(model, begun.texts.written).plain) / 2
        assert model.bank is not None
        distances = (means - model.bank.vectors).norm(dim=1)
        assert distances.min() < 1e-4 < distances.median()
        drawn.add(int(distances.argmin()))
    assert len(drawn) > 1
