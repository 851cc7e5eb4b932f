"""The loop around a training step: what stops it, and how the bank begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from refusals import refused

from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading.batches import BatchSource, evaluation_batches, split_index
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection, query
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.driver import TrainOptions, check_fit, checkpoint_record, train
from brgsa_platform.training.encoding import encode_split, encode_texts
from brgsa_platform.training.loop import Trainer, TrainingTask
from brgsa_platform.training.run_folder import make_tokenizer, write_run
from brgsa_platform.training.step import UnreadLosses
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
    """It is named, its volumes in the run's folder alone, and no checkpoint holds what it made of the weights."""
    out = tmp_path / "run"
    settings = config("train.workers=0", "optim.lr=1e30", "train.epochs=3", "train.log_every=4")
    with refused("loss-not-finite", field="optim.lr", value=1e30) as caught:
        train(pairs, settings, out=out, options=TrainOptions(quiet=True))
    named = json.loads((out / "not-finite.json").read_text())
    assert 0 < named["step"] < 6  # of the first epoch's six
    assert len(named["volumes"]) == 8
    assert set(named["volumes"]) <= set(split_index(Store.open(pairs), "train").volume_ids)
    assert not any(volume in str(caught.value) for volume in named["volumes"])
    assert run_checkpoints.latest(out) is None


def test_losses_are_read_every_few_steps_and_at_an_epochs_end(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the history does not depend on it."""
    read: list[int] = []
    histories = []
    plain = UnreadLosses.read
    monkeypatch.setattr(UnreadLosses, "read", lambda self: [read.append(len(self)), plain(self)][1])
    for every in (1, 4, 100):
        settings = config("train.workers=0", "train.epochs=2", f"train.log_every={every}")
        result = train(pairs, settings, out=tmp_path / str(every), options=TrainOptions(quiet=True))
        histories.append([{k: v for k, v in entry.items() if k != "train/volumes_per_s"} for entry in result.history])
    assert read == [1] * 12 + [4, 2, 2, 4] + [6, 6]
    assert histories[0] == histories[1] == histories[2]


@pytest.mark.parametrize("found", [True, False])
def test_compiled_where_there_is_a_compiler(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, found: bool
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if found else None)
    vit = "model.vision={name: vit3d, patch: [4, 4, 4], width: 24, depth: 2}"
    begun = trainer(pairs, tmp_path / "run", vit, "train.compile=true", "train.checkpoint_activations=true")
    compiled = [block._compiled_call_impl is not None for block in begun.model.vision.blocks]  # type: ignore[union-attr]
    assert compiled == [found, found]
    assert ("train.compile" in caplog.text) != found
    tags = next(record.tags for record in query.find() if record.run_id == begun.task.run_id)
    assert ("brgsa.compiled" in tags) != found
    assert begun.model.vision.checkpoint_activations


def trainer(pairs: Path, out: Path, *more: str) -> Trainer:
    """A training that is set up and has not begun."""
    store, settings = Store.open(pairs), config(*more)
    out.mkdir()
    with tracking.run("train") as run:
        write_run(out, store, settings, run.run_id)
    make_tokenizer(out, store, settings)
    record = checkpoint_record(store, settings)
    task = TrainingTask(settings, store.path, str(out), record, connection.tracking_uri(), run.run_id)
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
