"""kill -9 of a training worker and of the driver: both go on from the last whole checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from brgsa import files
from brgsa_platform.config import load_config
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.driver import TrainOptions, TrainResult, train

pytestmark = pytest.mark.ray

EPOCHS = 6
SETTINGS = [f"train.epochs={EPOCHS}", f"train.keep={EPOCHS}", "train.threads=1", "train.workers=1"]


def train_here(place: Path, out: Path) -> TrainResult:
    config = load_config("demo-smoke", overrides=SETTINGS)
    return train(place / "store", config, out=out, preset="demo-smoke", options=TrainOptions(quiet=True))


def made_at(out: Path, epoch: int) -> int:
    return (run_checkpoints.folder_of(out, epoch) / "training.json").stat().st_mtime_ns


def test_a_killed_worker_goes_on_by_itself(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    over = threading.Event()
    first_made_at, epochs_before = [], []

    def kill_the_worker() -> None:
        while not over.wait(0.02):
            if len(run_checkpoints.whole(out)) >= 2:
                first_made_at.append(made_at(out, 1))
                os.kill(int(files.read_json(out / "progress.json")["pid"]), signal.SIGKILL)
                epochs_before.append(len(run_checkpoints.whole(out)))
                return

    killer = threading.Thread(target=kill_the_worker)
    killer.start()
    try:
        result = train_here(place, out)
    finally:
        over.set()
        killer.join()
    assert len(epochs_before) == 1
    assert epochs_before[0] < EPOCHS, "the training was over before its worker was killed"
    assert [entry["epoch"] for entry in result.history] == list(range(1, EPOCHS + 1))
    assert made_at(out, 1) == first_made_at[0], "epoch 1 was trained again"


def test_a_killed_driver_goes_on_when_started_again(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "brgsa_platform.cli", "train", "--data", str(place / "store")]
    process = subprocess.Popen(
        [*command, "--preset", "demo-smoke", "--out", str(out), *SETTINGS],
        env={**os.environ, "RAY_ADDRESS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while len(run_checkpoints.whole(out)) < 2:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.02)
    everyone = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in everyone:  # the whole machine goes down at once
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert 2 <= len(run_checkpoints.whole(out)) < EPOCHS
    run_id = files.read_json(out / "run.json")["mlflow_run_id"]
    second_made_at = made_at(out, 2)

    result = train_here(place, out)
    assert [entry["epoch"] for entry in result.history] == list(range(1, EPOCHS + 1))
    assert made_at(out, 2) == second_made_at, "epoch 2 was trained again"
    assert result.run_id == run_id
    assert files.read_json(out / "run.json")["mlflow_run_id"] == run_id
    assert not list((out / run_checkpoints.FOLDER).glob(".*")), "something half-written stayed"
