"""Searches for real: pruning, two workers a trial, two goals, faults in the middle, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from objectstore import Door
from servers import mlflow_server

from brgsa.checkpoint import load
from brgsa.errors import UserError
from brgsa_platform.config import load_config
from brgsa_platform.runtime import files
from brgsa_platform.search.driver import SearchResult, resume, tune
from brgsa_platform.search.spec import SearchOptions
from brgsa_platform.tracking import connection
from brgsa_platform.training import run_checkpoints

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def smoke(*settings: str) -> Any:
    return load_config("demo-smoke", overrides=["train.threads=1", *settings])


def children(run_id: str) -> list[Any]:
    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    return list(api.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'"))


def wait(what: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 240) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        if process.poll() is not None:
            pytest.fail(f"the search ended early: {process.stdout.read() if process.stdout else ''}")
        time.sleep(0.02)
    pytest.fail("waited too long")


def start(place: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`brgsa tune` as a user runs it, in a process group and a Ray of its own."""
    command = [sys.executable, "-m", "brgsa_platform.cli", "tune", "--out", str(place / "searches"), *arguments]
    return subprocess.Popen(
        command,
        env={**os.environ, "RAY_ADDRESS": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def pid_of(folder: Path, number: int, epoch: int) -> int | None:
    """The process of a trial that has so many epochs behind it."""
    run = folder / "trials" / f"trial-{number:04d}"
    newest = run_checkpoints.latest(run) if run.is_dir() else None
    if newest is None or not newest.name.endswith(f"{epoch:04d}"):
        return None
    try:
        return int(files.read_json(run / "progress.json")["pid"])
    except UserError:
        return None


@pytest.fixture(scope="module")
def pruned(place: Path) -> SearchResult:
    """Trials under ASHA, one at a time."""
    options = SearchOptions(trials=6, concurrent=1)
    out = place / "searches"
    return tune(
        place / "store", smoke("train.epochs=3"), ["cmki-small"], options, name="pruned", out=out, pruner="asha"
    )


def free_cpus() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0))


def nothing_is_held() -> None:
    """All CPUs are free and no placement group is left, within half a minute."""
    import ray

    end = time.monotonic() + 30
    while free_cpus() < ray.cluster_resources()["CPU"] and time.monotonic() < end:
        time.sleep(0.2)
    assert free_cpus() == ray.cluster_resources()["CPU"]
    table = ray.util.placement_group_table()
    assert [group for group in table.values() if group["state"] != "REMOVED"] == []


def test_pruned_trials_leave_nothing_behind(pruned: SearchResult) -> None:
    states = [row["state"] for row in pruned.trials]
    assert states.count("pruned") >= 1
    assert states.count("complete") >= 1
    nothing_is_held()


@pytest.mark.usefixtures("another_ray")
def test_pruned_trials_of_two_workers_leave_nothing_behind(place: Path) -> None:
    config = smoke("train.workers=2", "train.epochs=2")
    found = tune(
        place / "store", config, ["cmki-small"], SearchOptions(trials=3), name="two-workers", out=place / "searches",
        pruner="asha",
    )  # fmt: skip
    assert [(row["state"], row["epochs"]) for row in found.trials] == [("complete", 2), ("complete", 2), ("pruned", 1)]
    nothing_is_held()


def test_a_trial_out_of_memory_does_not_end_the_search(place: Path, tmp_path: Path) -> None:
    space = tmp_path / "huge.yaml"
    space.write_text("model.bank.size: {kind: categorical, choices: [32, 1000000000000], why: the second is 128 TB}\n")
    found = tune(
        place / "store", smoke(), [str(space)], SearchOptions(trials=2), name="huge", out=place / "searches",
        sampler="grid",
    )  # fmt: skip
    reasons = {row["model.bank.size"]: (row["state"], row["reason"]) for row in found.trials}
    assert reasons == {32: ("complete", ""), 1000000000000: ("failed", "out of memory")}


def test_what_the_search_tells_mlflow(tmp_path: Path, pruned: SearchResult) -> None:
    runs = {run.info.run_name: run for run in children(pruned.run_id)}
    assert set(runs) == {f"trial-{row['number']:04d}" for row in pruned.trials}
    for row in pruned.trials:
        run = runs[f"trial-{row['number']:04d}"]
        assert run.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[row["state"]]
        assert run.data.tags["brgsa.state"] == row["state"]
        assert run.data.tags["brgsa.space"] == "cmki-small"
        assert run.data.params["model.bank.size"] == str(row["model.bank.size"])
        points = connection.client().get_metric_history(run.info.run_id, "val/auroc")
        assert len(points) == len({point.step for point in points}) == row["epochs"]
        run_folder = pruned.out / "trials" / f"trial-{row['number']:04d}"
        assert run.data.tags["brgsa.checkpoint"] == run_checkpoints.resolve(run_folder).name
        copied = connection.client().download_artifacts(run.info.run_id, "checkpoint", str(tmp_path))
        assert load(copied).model.config == load(run_checkpoints.resolve(run_folder)).model.config
    best = pruned.out / "trials" / f"trial-{pruned.best['number']:04d}"
    assert run_checkpoints.resolve(best).is_dir()
    assert load_config(str(pruned.preset)).model.bank.size == pruned.best["values"]["model.bank.size"]


def test_two_goals_and_a_search_that_learns_from_another(place: Path) -> None:
    from brgsa_platform.search import report as search_report
    from brgsa_platform.search.study import make_sampler, open_study

    options = SearchOptions(
        trials=3, points=[{"model.bank.size": 32, "loss.temperature": 0.07, "data.style": "findings"}]
    )
    out = place / "searches"
    first = tune(
        place / "store",
        smoke(),
        ["cmki-small"],
        options,
        name="pareto",
        out=out,
        goals=["common", "rare"],
        sampler="nsga2",
    )
    assert [row["state"] for row in first.trials] == ["complete"] * 3
    assert first.trials[0]["model.bank.size"] == 32
    more = SearchOptions(trials=1, warm_from=["pareto"])
    second = tune(place / "store", smoke(), ["cmki-small"], more, name="warm", out=out, goals=["common", "rare"])
    assert [row["number"] for row in second.trials] == [0]  # then come those that were known
    study = open_study(
        "warm", second.out, storage=None, goals=["auroc_common", "auroc_rare"], sampler=make_sampler("tpe", 0, []),
        pruner="none", epochs=1,
    )  # fmt: skip
    assert [trial.user_attrs.get("from") for trial in study.get_trials()] == [None] + ["pareto"] * 3
    assert 1 <= len(search_report.pareto(study)) <= 4
    again = resume("warm", SearchOptions(trials=2), out=out)
    assert [row["number"] for row in again.trials] == [0, 4]
    assert again.run_id == second.run_id
    with pytest.raises(UserError, match=r"search warm is over cmki-small .*not over cmki"):
        resume("warm", SearchOptions(trials=3), out=out, spaces=["cmki"])
    with pytest.raises(UserError, match=r"--warm-from say how a search begins, and warm has begun"):
        resume("warm", more, out=out)
    with pytest.raises(UserError, match=r"no search cold"):
        resume("cold", out=out)


def test_a_name_that_is_taken_shows_both_spaces(place: Path, pruned: SearchResult) -> None:
    with pytest.raises(UserError, match=r"pruned .*over cmki-small .*would be over cmki .*--resume pruned"):
        tune(place / "store", smoke(), ["cmki"], name="pruned", out=place / "searches")


def test_a_cluster_too_small_is_refused_with_the_numbers(place: Path) -> None:
    with pytest.raises(UserError, match=r"train\.workers=8 needs 16\.5 CPUs and 0 GPUs, and the cluster has 5 and 0"):
        tune(place / "store", smoke("train.workers=8"), ["cmki-small"], name="wide", out=place / "searches")


def test_no_trial_completed(place: Path) -> None:
    config = smoke("optim.lr=1e30", "optim.warmup_steps=0")
    with pytest.raises(UserError, match=r"None of the 2 trials of broken completed; the first: The loss is"):
        tune(place / "store", config, ["cmki-small"], SearchOptions(trials=2), name="broken", out=place / "searches")
    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    (run,) = api.search_runs([experiment.experiment_id], "attributes.run_name = 'broken'")
    assert run.info.status == "FAILED"
    assert {(child.info.status, child.data.tags["brgsa.state"]) for child in children(run.info.run_id)} == {
        ("FAILED", "failed")
    }


def test_a_killed_trial_and_a_killed_driver(place: Path) -> None:
    name = "killed"
    folder = place / "searches" / name
    arguments = [
        "--data",
        str(place / "store"),
        "--space",
        "cmki-small",
        "--trials",
        "3",
        "--name",
        name,
        "--seed",
        "4",
    ]
    settings = ["--preset", "demo-smoke", "train.epochs=30", "train.threads=1", "train.keep=30"]
    process = start(place, *arguments, *settings)
    os.kill(wait(lambda: pid_of(folder, 0, 2), process), signal.SIGKILL)
    wait(lambda: pid_of(folder, 1, 3), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    # What a driver's death leaves of its Ray ends by itself; what its trial wrote stays.
    reached = run_checkpoints.latest(folder / "trials" / "trial-0001")
    assert reached is not None
    output = finish(start(place, "--resume", name, "--trials", "3"))
    assert "3 trials (2 complete, 1 failed)" in output
    with (folder / "trials.csv").open() as file:
        rows = file.read()
    assert "its process was killed" in rows
    history = json.loads((run_checkpoints.latest(folder / "trials" / "trial-0001") / "training.json").read_text())[
        "history"
    ]  # type: ignore[operator]
    assert [entry["epoch"] for entry in history] == list(range(1, 31))
    parent = files.read_json(folder / "search.json")["parent_run"]
    assert sorted(run.info.status for run in children(parent)) == ["FAILED", "FINISHED", "FINISHED"]
    assert connection.client().get_run(parent).info.status == "FINISHED"


def test_ctrl_c_ends_at_once_and_leaves_nothing(place: Path) -> None:
    name = "interrupted"
    folder = place / "searches" / name
    process = start(
        place, "--data", str(place / "store"), "--space", "cmki-small", "--trials", "2", "--name", name, "--preset",
        "demo-smoke", "train.epochs=200", "train.threads=1",
    )  # fmt: skip
    trial = wait(lambda: pid_of(folder, 0, 2), process)
    below = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    started = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
    _, left = psutil.wait_procs(below, timeout=10)
    assert [p.pid for p in left] == []
    assert not psutil.pid_exists(trial)
    parent = files.read_json(folder / "search.json")["parent_run"]
    assert connection.client().get_run(parent).info.status == "KILLED"
    assert [run.info.status for run in children(parent)] == ["KILLED"]


def test_mlflow_away_for_half_a_minute(place: Path, tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as port:
        door = Door(port)
        uri = f"http://127.0.0.1:{door.port}"
        name = "outage"
        folder = place / "searches" / name
        process = start(
            place, "--data", str(place / "store"), "--space", "cmki-small", "--trials", "2", "--name", name, "--preset",
            "demo-smoke", "train.epochs=8", "train.threads=1", MLFLOW_TRACKING_URI=uri,
        )  # fmt: skip
        wait(lambda: pid_of(folder, 0, 2), process)
        door.lock()
        opener = threading.Timer(30, door.unlock)
        opener.start()
        output = finish(process)
        assert "2 complete" in output
        api = connection.client(uri)
        parent = files.read_json(folder / "search.json")["parent_run"]
        assert api.get_run(parent).info.status == "FINISHED"
        experiment = api.get_experiment_by_name(connection.experiment_name())
        runs = api.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
        assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
        for run in runs:
            assert len(api.get_metric_history(run.info.run_id, "val/auroc")) == 8
        door.lock()
