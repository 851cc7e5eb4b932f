"""A run's folder: one training at a time, of one configuration, that goes on where a kill has left it."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from brgsa.errors import UserError
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import query
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.driver import TrainOptions, TrainResult, train
from brgsa_platform.training.run_folder import claimed, default_out, previous_run, write_run

pytestmark = pytest.mark.ray

SETTINGS = [
    "data={style: report, unit: volume, shuffle_buffer: 20}",
    "model.vision.volume=[16, 16, 8]",
    "train={epochs: 2, batch_size: 8, threads: 1, workers: 0}",
]


def config(*more: str) -> RunConfig:
    return load_config("paper-smoke", overrides=[*SETTINGS, *more])


class Killed(BaseException):
    """What a test does to a training instead of killing its process."""


def test_a_second_training_is_refused(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with claimed(out):
        begun = len(query.find())
        with refused("folder-in-use", field=str(out)) as error:
            train(pairs, config(), out=out, options=TrainOptions(quiet=True))
        assert error.value.value[:2] == (socket.gethostname(), os.getpid())
        assert len(query.find()) == begun
        assert not (out / "run.json").exists()
    assert not out.exists()  # nothing was begun in it


def test_a_trial_waits_for_its_predecessor_to_end(tmp_path: Path) -> None:
    out, entered, leave = tmp_path / "run", threading.Event(), threading.Event()

    def predecessor() -> None:
        with claimed(out):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=predecessor)
    thread.start()
    assert entered.wait(60)
    threading.Timer(1.0, leave.set).start()
    with claimed(out, wait_s=300):
        (out / "something").touch()
    thread.join()
    assert out.is_dir()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("run-folder-not-writable", field="--out"), claimed(tmp_path / "file" / "run"):
        pytest.fail("it was claimed")


@pytest.mark.parametrize(
    ("before", "after", "code", "field"),
    [
        (["optim.schedule=cosine"], ["optim.schedule=cosine", "train.epochs=3"], "epochs-of-a-cosine", "train.epochs"),
        (["optim.lr=0.01"], ["optim.lr=0.02", "train.epochs=3"], "run-of-other-configuration", "optim.lr"),
    ],
)
def test_a_run_that_must_not_go_on_so(
    pairs: Path, tmp_path: Path, before: list[str], after: list[str], code: str, field: str
) -> None:
    store = Store.open(pairs)
    write_run(tmp_path, store, config(*before), "an id")
    with refused(code, field=field):
        previous_run(tmp_path, store, config(*after))


def test_a_run_from_before_a_key(pairs: Path, tmp_path: Path) -> None:
    """It had what is now the key's default; with another value the run is another one. No name of a folder changes."""
    store = Store.open(pairs)
    write_run(tmp_path, store, config(), "an id")
    run = json.loads((tmp_path / "run.json").read_text())
    del run["config"]["loss"]["contrast"], run["config"]["optim"]["rates"], run["config"]["train"]["log_every"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert previous_run(tmp_path, store, config()) is None  # MLflow does not have it
    with refused("run-of-other-configuration", field="loss.contrast", value="sigmoid"):
        previous_run(tmp_path, store, config("loss.contrast=sigmoid"))
    with refused("run-of-other-configuration", field="optim.rates.text", value=0.5):
        previous_run(tmp_path, store, config("optim.rates.text=0.5"))
    name = default_out(store, config(), None)
    assert default_out(store, config("loss.contrast=info_nce"), None) == name
    assert default_out(store, config("loss.contrast=sigmoid"), None) != name


def test_a_run_that_goes_on_for_longer(pairs: Path, tmp_path: Path) -> None:
    store = Store.open(pairs)
    with tracking.run("train") as run:
        write_run(tmp_path, store, config(), run.run_id)
    assert previous_run(tmp_path, store, config("train.epochs=3", "train.threads=2")) == run.run_id
    assert previous_run(tmp_path / "empty", store, config()) is None


def test_the_best_epoch_is_the_checkpoints(tmp_path: Path) -> None:
    history = [{"epoch": epoch, "score": score} for epoch, score in enumerate((math.nan, 0.4, math.nan, 0.4, 0.1), 1)]
    assert TrainResult(tmp_path, tmp_path, "id", history).best["epoch"] == 4
    assert TrainResult(tmp_path, tmp_path, "id", history[:1]).best["epoch"] == 1


def test_killed_between_a_checkpoint_and_the_pointer_to_the_best(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run of one epoch, which has nothing more to train when it is started again."""
    out = tmp_path / "run"

    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_checkpoints, "keep_best", killed)
        with pytest.raises(Killed):
            train(pairs, config("train.epochs=1"), out=out, options=TrainOptions(quiet=True))
    assert [epoch for epoch, _ in run_checkpoints.whole(out)] == [1]
    with pytest.raises(UserError):
        run_checkpoints.resolve(out)
    result = train(pairs, config("train.epochs=1"), out=out, options=TrainOptions(quiet=True))
    assert result.checkpoint == run_checkpoints.folder_of(out, 1) == run_checkpoints.resolve(out)


@pytest.mark.parametrize("epochs", [1, 2])
def test_killed_between_a_checkpoint_and_its_report(pairs: Path, tmp_path: Path, epochs: int) -> None:
    """Every epoch is reported in the end, also of a run that has nothing more to train."""
    out, settings = tmp_path / "run", config(f"train.epochs={epochs}")

    def killed(metrics: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(pairs, settings, out=out, options=TrainOptions(on_epoch=killed, quiet=True))
    reported: list[dict[str, Any]] = []
    result = train(pairs, settings, out=out, options=TrainOptions(on_epoch=reported.append, quiet=True))
    assert [metrics["epoch"] for metrics in reported] == list(range(1, epochs + 1))
    assert [{**metrics, "score": -metrics["val/loss"]} for metrics in reported] == result.history
    assert (
        json.loads((run_checkpoints.folder_of(out, epochs) / "training.json").read_text())["history"] == result.history
    )
