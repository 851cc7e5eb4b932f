"""A training that is killed within an epoch and goes on: to the last bit what an undisturbed one makes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.tracking import query
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.driver import TrainOptions, train
from brgsa_platform.training.parallel import stopping

pytestmark = pytest.mark.ray

EPOCHS = 3
# Everything that draws is on: reconstructions, order, crop, flips, turns, intensities, noise, sentences, dropout.
SETTINGS = [
    "data={style: report, flip: [0.5, 0.5, 0.5], rotate: 0.5, scale: 0.1, shift: 20, noise: 30}",
    "data={unit: scan, sentences: 2, drawn: up_to, shuffle_buffer: 20}",
    "model.vision.volume=[16, 16, 8]",
    f"train.epochs={EPOCHS}",
    f"train.keep={EPOCHS}",
    "train.batch_size=2",  # 12 steps an epoch
    "train.threads=1",
    "train.workers=0",
    "optim.schedule=plateau",
    "loss={contrast: sigmoid, bias: -1, learn_temperature: true, learn_bias: true, same_text: positives, supervised: 0.5}",
]
EACH_STEP = "train={checkpoint_minutes: 1e-9, log_every: 1}"


def config(*more: str) -> RunConfig:
    return load_config("paper-smoke", overrides=[*SETTINGS, *more])


def made(out: Path) -> tuple[list[bytes], list[dict[str, Any]]]:
    """Weights and optimiser of each epoch, and what was measured but for the time."""
    files = [
        (folder / name).read_bytes()
        for _, folder in run_checkpoints.whole(out)
        for name in ("model.safetensors", "optimizer.pt")
    ]
    newest = run_checkpoints.latest(out)
    assert newest is not None
    history = json.loads((newest / "training.json").read_text())["history"]
    return files, [{k: v for k, v in entry.items() if k != "train/volumes_per_s"} for entry in history]


@pytest.fixture(scope="module")
def undisturbed(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(pairs, config(), out=out, options=TrainOptions(quiet=True))
    return made(out)


def test_killed_in_mid_epoch(pairs: Path, tmp_path: Path, undisturbed: Any) -> None:
    """By SIGKILL, while Ray Data reads; a torch DataLoader goes on."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "brgsa_platform.cli", "train", "--data", str(pairs), "--preset", "paper-smoke"]
    process = subprocess.Popen(
        [*command, "--out", str(out), *SETTINGS, EACH_STEP, "data.loader=ray"],
        env={**os.environ, "RAY_ADDRESS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        while not (out / "checkpoints").is_dir() or not list((out / "checkpoints").glob("epoch-0001-step-*")):
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.005)
    finally:
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
    process.communicate()

    stood = run_checkpoints.latest(out)
    assert stood is not None
    assert stood.name.startswith("epoch-0001-step-")
    state = json.loads((stood / "training.json").read_text())
    assert state["epoch"] == 1
    assert 12 < state["step"] < 24
    result = train(pairs, config("data.loader=torch"), out=out, options=TrainOptions(quiet=True))
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert made(out) == undisturbed
    assert not list((out / "checkpoints").glob("*step*"))


@pytest.mark.parametrize("step", [13, 24])
def test_sigterm_ends_the_step_and_saves_it(
    pairs: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The first step of an epoch, or its last, whose validation is left to the training that goes on.

    A torch DataLoader reads before, Ray Data after.
    """
    out = tmp_path / "run"
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_LOOKS", 0.0)
    given = stopping.StopSigns.is_given
    asked: list[None] = []

    def sigterm_after_the_step(signs: stopping.StopSigns) -> bool:
        asked.append(None)
        if len(asked) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return given(signs)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopSigns, "is_given", sigterm_after_the_step)
        with pytest.raises(stopping.Terminated):
            train(pairs, config("data.loader=torch"), out=out, options=TrainOptions(quiet=True))
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not (out / stopping.FILE).exists()
    stood = run_checkpoints.latest(out)
    assert stood is not None
    assert stood.name == f"epoch-0001-step-{step:08d}"
    run_id = json.loads((out / "run.json").read_text())["mlflow_run_id"]
    (record,) = query.find(f"attributes.run_id = '{run_id}'")
    assert record.status == "KILLED"
    result = train(pairs, config("data.loader=ray"), out=out, options=TrainOptions(quiet=True))
    assert result.run_id == run_id
    assert made(out) == undisturbed


def test_stopped_between_two_epochs(pairs: Path, tmp_path: Path, undisturbed: Any) -> None:
    out = tmp_path / "run"

    class Stop(Exception):
        pass

    def stop(entry: dict[str, Any]) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(pairs, config(EACH_STEP), out=out, options=TrainOptions(on_epoch=stop, quiet=True))
    assert made(out)[0] == undisturbed[0][:2]
    train(pairs, config(), out=out, options=TrainOptions(quiet=True))
    assert made(out) == undisturbed
