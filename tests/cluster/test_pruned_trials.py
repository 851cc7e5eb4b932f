"""Many trials of two workers, most of them pruned, beside a second Ray on the machine: what is left of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brgsa.phantom import write_tree
from brgsa.volumes import Geometry
from brgsa_platform.config import load_config
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.search.driver import tune
from brgsa_platform.search.spec import SearchMethod, SearchOptions
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.summaries.summarize import summarize

pytestmark = pytest.mark.ray

TRIALS = 12


@pytest.fixture
def another_ray() -> Iterator[None]:
    """A second Ray on the machine: Ray Train's own cleaner of placement groups does not work then."""
    code = "import ray, sys; ray.init(address='local', num_cpus=1); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_ADDRESS": ""},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        while b"up" not in process.stdout.readline():
            assert process.poll() is None
        yield
        process.stdin.close()


@pytest.mark.usefixtures("another_ray")
def test_nothing_is_left_of_many_pruned_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with ray_session(num_cpus=5):  # room for two workers, their data and the trial around them: a leak stops the search
        write_tree(tmp_path / "phantom", 60, 3, workers=2)
        geometry = Geometry(spacing=(5.625, 5.625, 7.5), shape=(64, 64, 32), antialias=True)
        prepare(tmp_path / "phantom", "ct-rate", tmp_path / "store", PrepareOptions(geometry, validation_fraction=0.25))
        summarize(tmp_path / "store", ["positives"])
        config = load_config("demo-smoke", overrides=["train.threads=1", "train.workers=2", "train.epochs=3"])
        options = SearchOptions(trials=TRIALS, checkpoints="none")
        started = time.monotonic()
        found = tune(
            tmp_path / "store", config, ["cmki-small"], options, SearchMethod(pruner="asha"), folder=tmp_path / "many"
        )  # fmt: skip
        states = [row["state"] for row in found.trials]
        print(
            f"\n{TRIALS} trials of two workers, {states.count('pruned')} pruned, in {time.monotonic() - started:.0f} s"
        )  # fmt: skip
        assert states.count("pruned") >= TRIALS // 3
        assert states.count("failed") == 0
        end = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) < 5 and time.monotonic() < end:
            time.sleep(0.2)
        assert ray.available_resources()["CPU"] == 5
        groups = ray.util.placement_group_table().values()
        assert [group for group in groups if group["state"] != "REMOVED"] == []
