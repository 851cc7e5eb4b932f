"""kill -9 of a training worker and of the driver: both go on from the last whole checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from brgsa_platform.runtime import files
from brgsa_platform.training import run_checkpoints

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

EPOCHS = 12


def start(place: Path, out: Path) -> subprocess.Popen[str]:
    """`brgsa train` as a user runs it, in a process group of its own."""
    settings = [f"train.epochs={EPOCHS}", f"train.keep={EPOCHS}", "train.threads=1", "train.workers=1"]
    command = [sys.executable, "-m", "brgsa_platform.cli", "train", "--data", str(place / "store")]
    return subprocess.Popen(
        [*command, "--preset", "demo-smoke", "--out", str(out), *settings],
        env={**os.environ, "RAY_ADDRESS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait(what: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 180) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        if process.poll() is not None:
            pytest.fail(f"the training ended early: {process.stdout.read() if process.stdout else ''}")
        time.sleep(0.02)
    pytest.fail("waited too long")


def worker_of(out: Path) -> int:
    return int(files.read_json(out / "progress.json")["pid"])


def history(out: Path) -> list[int]:
    newest = run_checkpoints.latest(out)
    assert newest is not None
    return [entry["epoch"] for entry in json.loads((newest / "training.json").read_text())["history"]]


def test_a_killed_worker_goes_on_by_itself(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(place, out)
    wait(lambda: len(run_checkpoints.whole(out)) >= 2, process)
    kept = (run_checkpoints.folder_of(out, 1) / "training.json").stat().st_mtime_ns
    pid = worker_of(out)
    os.kill(pid, signal.SIGKILL)
    before = len(run_checkpoints.whole(out))
    assert before < EPOCHS, "the training was over before its worker was killed"
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert history(out) == list(range(1, EPOCHS + 1))
    assert (run_checkpoints.folder_of(out, 1) / "training.json").stat().st_mtime_ns == kept, "epoch 1 was trained again"


def test_a_killed_driver_goes_on_when_started_again(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(place, out)
    wait(lambda: len(run_checkpoints.whole(out)) >= 2, process)
    everyone = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in everyone:  # the whole machine goes down at once
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=60)
    done = [epoch for epoch, _ in run_checkpoints.whole(out)]
    assert 2 <= len(done) < EPOCHS
    run_id = files.read_json(out / "run.json")["mlflow_run_id"]
    kept = (run_checkpoints.folder_of(out, 2) / "training.json").stat().st_mtime_ns

    again = start(place, out)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert history(out) == list(range(1, EPOCHS + 1))
    assert (run_checkpoints.folder_of(out, 2) / "training.json").stat().st_mtime_ns == kept, "epoch 2 was trained again"
    assert files.read_json(out / "run.json")["mlflow_run_id"] == run_id
    assert not list((out / run_checkpoints.FOLDER).glob(".*")), "something half-written stayed"
