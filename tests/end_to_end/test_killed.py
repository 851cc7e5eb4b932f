"""kill -9 of a training's driver and its workers, as when the machine goes down: it goes on from the last whole checkpoint.

What becomes of a training that loses a worker is told by `platform_rooms/training/test_workers.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commandline import quiet

from brgsa import files
from brgsa_platform.config import load_config
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.driver import TrainOptions, train

pytestmark = [pytest.mark.ray, pytest.mark.long]

EPOCHS = 6
SETTINGS = [f"train.epochs={EPOCHS}", f"train.keep={EPOCHS}", "train.threads=1"]


def made_at(out: Path, epoch: int) -> int:
    return (run_checkpoints.folder_of(out, epoch) / "training.json").stat().st_mtime_ns


def test_a_killed_driver_goes_on_when_started_again(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "brgsa_platform.cli", "train", "--data", str(place / "store")]
    process = subprocess.Popen(
        [*command, "--preset", "demo-smoke", "--out", str(out), *SETTINGS, "train.workers=1"],
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
    output, _ = process.communicate()
    assert quiet(output), output
    assert 2 <= len(run_checkpoints.whole(out)) < EPOCHS
    run_id = files.read_json(out / "run.json")["mlflow_run_id"]
    second_made_at = made_at(out, 2)

    config = load_config("demo-smoke", overrides=[*SETTINGS, "train.workers=0"])  # any number may go on
    result = train(place / "store", config, out=out, preset="demo-smoke", options=TrainOptions(quiet=True))
    assert [entry["epoch"] for entry in result.history] == list(range(1, EPOCHS + 1))
    assert made_at(out, 2) == second_made_at, "epoch 2 was trained again"
    assert result.run_id == run_id
    assert files.read_json(out / "run.json")["mlflow_run_id"] == run_id
    assert not list((out / run_checkpoints.FOLDER).glob(".*")), "something half-written stayed"
