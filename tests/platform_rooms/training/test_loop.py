"""The loop around a training step: what stops it, and how the bank begins."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file

from brgsa.model import Embeddings
from brgsa.text import split_sentences
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading.batches import BatchSource, evaluation_batches, split_index
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection, query
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.driver import TrainOptions, check_fit, checkpoint_record, train
from brgsa_platform.training.encoding import encode_split, encode_texts
from brgsa_platform.training.loop import Trainer, TrainingTask
from brgsa_platform.training.monitoring import log
from brgsa_platform.training.monitoring.step_clock import PARTS
from brgsa_platform.training.parallel.workers import ALONE
from brgsa_platform.training.run_folder import make_tokenizer, write_run
from brgsa_platform.training.step import UnreadLosses
from brgsa_platform.training.validation import Validation

pytestmark = pytest.mark.ray

SETTINGS = [
    "data={style: report, unit: volume, shuffle_buffer: 20}",
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
    monkeypatch.setattr(UnreadLosses, "read", lambda self: [steps := plain(self), read.append(len(steps))][0])
    for every in (1, 4, 100):
        settings = config("train.workers=0", "train.epochs=2", f"train.log_every={every}")
        result = train(pairs, settings, out=tmp_path / str(every), options=TrainOptions(quiet=True))
        histories.append([{k: v for k, v in entry.items() if k != "train/volumes_per_s"} for entry in result.history])
    assert read == [1] * 12 + [4, 2, 2, 4] + [6, 6]
    assert histories[0] == histories[1] == histories[2]


def test_what_a_run_tells_while_it_trains(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step's time goes, what the machine does, and how many workers there are."""
    monkeypatch.setattr(log, "SECONDS_BETWEEN_POINTS", 0.0)
    monkeypatch.setattr(log, "SECONDS_BETWEEN_SYSTEM_POINTS", 0.0)
    told = {}
    for is_on in ("true", "false"):
        settings = config("train.workers=0", "train.log_every=4", f"train.system_metrics={is_on}")
        result = train(pairs, settings, out=tmp_path / is_on, options=TrainOptions(quiet=True))
        client = connection.client()
        told[is_on] = client.get_run(result.run_id).data.metrics
        parts = [f"step/{part}_s" for part in PARTS]
        for part in parts:
            history = client.get_metric_history(result.run_id, part)
            assert [point.step for point in history] == [4, 6]  # where losses are read
            assert all(point.value > 0 for point in history)
        assert told[is_on]["train/workers"] == 1
        step_s = settings.train.batch_size / told[is_on]["train/volumes_per_s"]
        assert sum(told[is_on][part] for part in parts) < 20 * step_s
    system = {name for name in told["true"] if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= system
    assert 0 < told["true"]["system/system_memory_usage_percentage"] < 100
    assert told["true"].keys() - told["false"].keys() == system


def test_an_early_stop_survives_what_comes_after(pairs: Path, tmp_path: Path) -> None:
    """The weights stay as they are, so no epoch is better than the first. A run that has stopped is at its end, and goes on
    where it may wait longer.
    """
    still = ["train.workers=0", "train.epochs=9", "optim.lr=1e-30", "model.vision.norm=group"]
    lengths = []
    for stop_after in ("2", "2", "3", "null"):
        settings = config(
            *still, f"train.stop_after={stop_after}", *(["train.epochs=6"] if stop_after == "null" else [])
        )
        lengths.append(len(train(pairs, settings, out=tmp_path / "run", options=TrainOptions(quiet=True)).history))
    assert lengths == [3, 3, 4, 6]


def test_the_best_epoch_is_that_of_the_lowest_loss_or_the_highest_auroc(pairs: Path, tmp_path: Path) -> None:
    for select, name, sign in (("loss", "val/loss", -1), ("auroc", "val/auroc", 1)):
        settings = config("train.workers=0", "train.epochs=4", f"train.select={select}", "optim.lr=3e-3")
        done = train(pairs, settings, out=tmp_path / select, options=TrainOptions(quiet=True))
        values = [sign * entry[name] for entry in done.history]
        assert [entry["score"] for entry in done.history] == values
        assert values[done.best["epoch"] - 1] == max(values)
        assert done.checkpoint == run_checkpoints.folder_of(tmp_path / select, done.best["epoch"])


@pytest.mark.parametrize("volumes", ["whole", "centre"])
def test_validation_sees_what_evaluation_will(pairs: Path, tmp_path: Path, volumes: str) -> None:
    vit = "model.vision={name: vit3d, patch: [4, 4, 2], width: 24, depth: 1}"
    begun = trainer(pairs, tmp_path / "run", vit, f"model.vision.evaluation={volumes}", "train.micro_batch=2")
    seen = []
    begun.model.vision.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    assert begun.validation is not None
    measured = begun._validate()
    assert sum(shape[0] for shape in seen) == len(begun.validation.rows)
    assert max(shape[0] for shape in seen) == 2  # no more at once than training does
    assert {shape[2:] for shape in seen} == {(20, 20, 10) if volumes == "whole" else (16, 16, 8)}
    assert np.isfinite(measured.metrics["val/loss"])


@pytest.mark.parametrize(("unit", "sentences"), [("volume", "null"), ("scan", "1")])
def test_the_validation_loss_written_out(pairs: Path, tmp_path: Path, unit: str, sentences: str) -> None:
    """Each scan once, or each volume; exactly so many sentences of its report, the same ones in every epoch."""
    settings = [f"data.unit={unit}", f"data.sentences={sentences}", "train.batch_size=3"]
    begun = trainer(pairs, tmp_path / "run", *settings)
    validation, store = begun.validation, Store.open(pairs)
    assert validation is not None
    rows = np.concatenate(validation.batches)
    assert len(rows) == {"volume": 8, "scan": 4}[unit]
    assert len(set(validation.rows.scans[rows])) == 4
    for row, text in enumerate(validation.texts):
        written = store.texts("report")[validation.rows.volume_ids[row]]
        assert set(split_sentences(text)) <= set(split_sentences(written))
        assert len(split_sentences(text)) == (2 if sentences == "null" else 1)
    again = Validation.of(store, begun.config)
    assert again is not None
    assert (again.texts, [b.tolist() for b in again.batches]) == (
        validation.texts,
        [b.tolist() for b in validation.batches],
    )
    rng = np.random.default_rng(0)
    v, t = (torch.from_numpy(rng.normal(size=(8, 6)).astype(np.float32)) for _ in range(2))
    found = validation._loss(Embeddings(v, None), Embeddings(t, None), begun.config.loss)
    total = 0.0
    for batch in validation.batches:
        a, b = (x[batch].numpy() / np.linalg.norm(x[batch], axis=1, keepdims=True) for x in (v, t))
        logits = 10 * a @ b.T
        for one in (logits, logits.T):
            total += len(batch) * np.mean(np.log(np.exp(one).sum(1)) - np.diag(one))
    assert found == pytest.approx(total / len(rows), rel=1e-5)


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


def test_towers_start_from_another_run_and_a_resumed_run_does_not_ask_for_it(pairs: Path, tmp_path: Path) -> None:
    """The weights of the other run's best checkpoint, told in the run's folder and as a tag; locked, they stay."""
    other, out = tmp_path / "other", tmp_path / "run"
    first = train(pairs, config("train.workers=0"), out=other, options=TrainOptions(quiet=True))
    begin = [f"model.vision.weights={other}", f"model.text.weights={first.checkpoint}", "optim.lock=[vision]"]
    settings = config("train.workers=0", "train.seed=5", *begin)
    result = train(pairs, settings, out=out, options=TrainOptions(quiet=True))
    theirs, ours = (load_file(run.checkpoint / "model.safetensors") for run in (first, result))
    same = {name for name in ours if torch.equal(ours[name], theirs[name])}
    assert {name for name in ours if name.startswith("vision.")} <= same
    assert not any(name.startswith(("bank", "project", "text.bert.encoder.layer.0.output.dense")) for name in same)
    told = json.loads((out / "weights.json").read_text())
    assert told["vision"]["missing"] == told["text"]["missing"] == []
    tags = next(record.tags for record in query.find() if record.run_id == result.run_id)
    assert {"brgsa.weights.vision", "brgsa.weights.text"} <= tags.keys()
    shutil.rmtree(other)
    again = config("train.workers=0", "train.seed=5", "train.epochs=2", *begin)
    assert len(train(pairs, again, out=out, options=TrainOptions(quiet=True)).history) == 2


def test_weights_that_do_not_fit_stop_a_training(pairs: Path, tmp_path: Path) -> None:
    torch.save({"model": {"blocks.0.norm1.weight": torch.ones(3)}}, tmp_path / "vit.pt")
    settings = config("train.workers=0", f"model.vision.weights={tmp_path / 'vit.pt'}")
    with refused("weights-of-another-architecture", field=str(tmp_path / "vit.pt")):
        train(pairs, settings, out=tmp_path / "run", options=TrainOptions(quiet=True))
    assert run_checkpoints.latest(tmp_path / "run") is None
    assert sys.float_info.min / 4 > 0, "the process's arithmetic is exact again"


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
