"""Searches for real: pruning, two goals, faults in the middle, and what they leave behind."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commandline import brgsa, quiet
from objectstore import Door
from patience import Patience, until
from privacy import told_of_patients
from servers import mlflow_server
from sharedray import SharedRay

import tune_spaces
from brgsa import files
from brgsa.checkpoint import load
from brgsa.errors import UserError
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.search import report
from brgsa_platform.search import study as studies
from brgsa_platform.search.driver import tune
from brgsa_platform.search.repeats.confirm import confirm
from brgsa_platform.search.result import SearchResult, log_checkpoints
from brgsa_platform.search.spec import SearchMethod, SearchOptions, SearchSpec, read_spec, trial_name, write_spec
from brgsa_platform.search.trials import trial_folder
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import connection
from brgsa_platform.training import run_checkpoints

pytestmark = pytest.mark.ray

SPACE = """
model.bank.size: {kind: categorical, choices: [16, 1000000000000], why: the second is 128 TB}
optim.lr: {kind: float, low: 1.0e-4, high: 1.0e+30, log: true, why: from a usual one to one without any number left}
"""
GOOD, BAD = {"model.bank.size": 16, "optim.lr": 1e-2}, {"optim.lr": 1e-1}
# Those that fail come last: each costs its process.
POINTS = [GOOD, {**GOOD, **BAD}, {**GOOD, "model.bank.size": 10**12}, {**GOOD, "optim.lr": 1e30}]


def smoke(*settings: str) -> RunConfig:
    # The base lies outside the space, so no trial comes before the points.
    return load_config("demo-smoke", overrides=["model.bank.size=32", "optim.warmup_steps=0", *settings])


def children(run_id: str, uri: str | None = None) -> dict[str, Any]:
    """The trials' MLflow runs of a search, by name."""
    api = connection.client(uri)
    experiment = api.get_experiment_by_name(connection.experiment_name())
    runs = api.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'")
    return {run.info.run_name: run for run in runs}


def start(*arguments: str, ray_address: str = "") -> subprocess.Popen[str]:
    """`brgsa tune` as a user runs it, in a process group of its own; in a Ray of its own where no address is given."""
    return subprocess.Popen(
        [sys.executable, "-m", "brgsa_platform.cli", "tune", *arguments],
        env={**os.environ, "RAY_ADDRESS": ray_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def epochs_of(folder: Path, number: int) -> int:
    """The whole epochs of a trial."""
    return max((epoch for epoch, _ in run_checkpoints.whole(trial_folder(folder, number))), default=0)


def pid_of(folder: Path, number: int) -> int:
    return int(files.read_json(trial_folder(folder, number) / "progress.json")["pid"])


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("spaces") / "rates.yaml"
    path.write_text(SPACE)
    return str(path)


@contextlib.contextmanager
def away_while_a_trial_ends(door: Door, folder: Path, epochs: int) -> Iterator[None]:
    """The server is away from a trial's first epoch on, until its training has ended and waits to say so."""
    over = threading.Event()

    def lock_and_unlock() -> None:
        for reached, act in ((1, door.lock), (epochs, lambda: None)):
            while epochs_of(folder, 0) < reached and not over.wait(0.02):
                pass
            act()
        over.wait(3.0)
        door.unlock()

    thread = threading.Thread(target=lock_and_unlock)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def door(server_folder: Path) -> Iterator[Door]:
    """A tracking server that can be away."""
    with mlflow_server(server_folder) as port:
        front = Door(port)
        yield front
        front.lock()


def address(door: Door) -> str:
    return f"http://127.0.0.1:{door.port}"


@pytest.fixture(scope="module")
def searched(place: Path, space: str, door: Door) -> SearchResult:
    """One after the other under ASHA: a good trial, one that is not among the best third, and two that fail.

    While the first one ends, the tracking server is away.
    """
    options = SearchOptions(trials=len(POINTS), concurrent=1, points=POINTS)
    folder = place / "searches" / "searched"
    with pytest.MonkeyPatch.context() as patch, away_while_a_trial_ends(door, folder, 2):
        patch.setenv("MLFLOW_TRACKING_URI", address(door))
        return tune(
            place / "store", smoke("train.epochs=2"), [space], options, SearchMethod(pruner="asha"), folder=folder
        )


def nothing_is_held() -> None:
    """All CPUs become free, and no placement group is left."""
    import ray

    def free() -> bool:
        return bool(ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"])

    until(free, 30, pause=0.2)
    table = ray.util.placement_group_table()
    assert [group for group in table.values() if group["state"] != "REMOVED"] == []


def test_each_trial_ends_in_its_own_way_and_nothing_is_left_of_it(searched: SearchResult) -> None:
    rows = searched.trials
    assert [row["optim.lr"] for row in rows] == [point["optim.lr"] for point in POINTS]
    assert [(row["state"], row["epochs"]) for row in rows] == [
        ("complete", 2), ("pruned", 1), ("failed", 0), ("failed", 0)
    ]  # fmt: skip
    assert rows[2]["reason"] == "out of memory"
    assert rows[3]["reason"].startswith("The loss is ")
    nothing_is_held()


def test_what_the_search_tells_mlflow(tmp_path: Path, searched: SearchResult, door: Door) -> None:
    """All of it, though the server was away while the first trial ended."""
    api, runs = connection.client(address(door)), children(searched.run_id, address(door))
    assert set(runs) == {trial_name(row["number"]) for row in searched.trials}
    for row in searched.trials:
        run = runs[trial_name(row["number"])]
        assert run.info.status == {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[row["state"]]
        assert run.data.tags["brgsa.state"] == row["state"]
        assert run.data.tags.get("brgsa.reason", "") == row["reason"]
        assert run.data.params["model.bank.size"] == str(row["model.bank.size"])
        points = api.get_metric_history(run.info.run_id, "val/auroc")
        assert len(points) == len({point.step for point in points}) == row["epochs"]
        if row["epochs"]:
            checkpoint = run_checkpoints.resolve(trial_folder(searched.out, row["number"]))
            assert run.data.tags["brgsa.checkpoint"] == checkpoint.name
            copied = api.download_artifacts(run.info.run_id, "checkpoint", str(tmp_path))
            assert load(copied).model.config == load(checkpoint).model.config
    assert api.get_run(searched.run_id).info.status == "FINISHED"
    assert {artifact.path for artifact in api.list_artifacts(searched.run_id)} >= {
        "trials.json",
        "slices.png",
        "best.yaml",
    }
    with (searched.out / "trials.csv").open() as file:
        assert [int(row["number"]) for row in csv.DictReader(file)] == list(range(len(POINTS)))
    assert load_config(str(searched.preset)).optim.lr == searched.best["values"]["optim.lr"] == 1e-2


def test_no_report_and_no_patient_reaches_mlflow(
    place: Path, searched: SearchResult, door: Door, server_folder: Path
) -> None:
    assert told_of_patients(place / "store", server_folder, address(door)) == []


def test_the_checkpoint_of_a_trial_that_was_killed_before_it_named_its_best(
    searched: SearchResult, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address(door))
    pruned = searched.trials[1]["number"]
    best = trial_folder(searched.out, pruned) / "checkpoints" / "best.json"
    named = files.read_json(best)
    best.unlink()
    log_checkpoints(searched, "all")
    assert files.read_json(best) == named


def test_the_best_is_trained_anew_beside_the_base(
    searched: SearchResult, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address(door))
    found = confirm(searched, SearchOptions(concurrent=1), best=1, seeds=1)
    assert found.seeds == [1]
    assert found.means.keys() == {"base", trial_name(searched.best["number"])}
    written = files.read_json(searched.out / "confirmation" / "confirmation.json")
    assert written["split"] == "validation"
    assert written["confirmed"] == found.confirmed
    assert connection.client().get_run(searched.run_id).data.tags["brgsa.confirmed"] == (
        "yes" if found.confirmed else "no"
    )
    assert found.summary().startswith("Confirmation on 1 new seeds")
    assert confirm(searched, SearchOptions(concurrent=1), best=1, seeds=1) == found


def test_a_trial_trains_in_its_own_process_with_the_threads_of_its_node(searched: SearchResult) -> None:
    for row in searched.trials:
        given = files.read_json(trial_folder(searched.out, row["number"]) / "run.json")["config"]["train"]
        assert (given["workers"], given["threads"]) == (0, min(5, os.cpu_count() or 1))


def test_a_cluster_too_small_is_refused(place: Path, space: str) -> None:
    with pytest.raises(UserError) as error:
        tune(place / "store", smoke("train.workers=8"), [space], folder=place / "searches" / "wide")
    assert (error.value.code, error.value.field, error.value.value) == ("cluster-too-small", "train.workers", 8)


def test_two_goals_and_a_search_that_learns_from_another(place: Path) -> None:
    point = {"model.bank.size": 64, "loss.temperature": 0.07, "data.style": "positives"}
    store, method = Store.open(place / "store"), SearchMethod(goals=("common", "rare"), sampler="nsga2")
    parameters, folder = tune_spaces.load(["cmki-small"]), place / "searches" / "two"
    earlier = SearchSpec(["cmki-small"], parameters, smoke(), store.path, store.fingerprint, None, method)
    folder.mkdir(parents=True)
    write_spec(folder, earlier)
    study = studies.open_study("two", earlier, studies.open_storage(folder, earlier))
    study.enqueue_trial({**point, "model.bank.size": 32})
    trial = study.ask()
    studies.draw(trial, parameters)
    study.tell(trial, reached := [0.97, 0.98])  # more than any trial of one epoch

    options = SearchOptions(trials=1, warm_from=["two"], points=[point])
    found = tune(store.path, smoke(), ["cmki-small"], options, method, folder=place / "searches" / "warm")
    assert [row["state"] for row in found.trials] == ["complete"]
    assert {key: found.trials[0][key] for key in point} == point
    spec = read_spec(found.out)
    assert spec is not None
    study = studies.open_study("warm", spec, studies.open_storage(found.out, spec))
    known = [trial for trial in study.get_trials() if trial.user_attrs.get("from") == "two"]
    assert [(trial.values, trial.params["model.bank.size"]) for trial in known] == [(reached, 32)]
    # Of this search's one trial, whatever those that it learnt from had reached.
    assert [row["number"] for row in report.pareto(study)] == [found.trials[0]["number"]] == [found.best["number"]]


def test_a_killed_trial_and_a_killed_driver(place: Path, shared_ray: SharedRay) -> None:
    # More epochs than pass between a look and the kill that follows it.
    epochs, folder = 16, place / "searches" / "killed"
    arguments = ["--name", "killed", "--data", str(place / "store"), "--space", "cmki-small", "--trials", "2"]
    settings = [
        "--concurrent",
        "1",
        "--preset",
        "demo-smoke",
        f"train.epochs={epochs}",
        "train.threads=1",
        f"train.keep={epochs}",
    ]
    process = start("--out", str(folder.parent), *arguments, *settings, ray_address=shared_ray.address)
    until(lambda: epochs_of(folder, 0) >= 1, 240, process=process, pause=0.02)
    os.kill(pid_of(folder, 0), signal.SIGKILL)
    until(lambda: epochs_of(folder, 1) >= 1, 240, process=process, pause=0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    spec = read_spec(folder)
    assert spec is not None
    (begun,) = (run for name, run in children(spec.parent_run).items() if name == trial_name(1))

    done = brgsa("tune", "--out", folder.parent, "--resume", "killed", "--trials", 3, "--concurrent", 1)
    assert done.status == 0, done.err
    assert "3 trials (2 complete, 1 failed)" in done.out
    study = studies.open_study("killed", spec, studies.open_storage(folder, spec))
    rows = report.trial_rows(study)
    assert [(row["number"], row["state"]) for row in rows] == [(0, "failed"), (1, "complete"), (2, "complete")]
    assert rows[0]["reason"] == "its process was killed"
    newest = run_checkpoints.latest(trial_folder(folder, 1))
    assert newest is not None
    history = files.read_json(newest / "training.json")["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, epochs + 1))
    runs = children(spec.parent_run)
    assert runs[trial_name(1)].info.run_id == begun.info.run_id
    assert [runs[trial_name(row["number"])].info.status for row in rows] == ["FAILED", "FINISHED", "FINISHED"]
    assert connection.client().get_run(spec.parent_run).info.status == "FINISHED"


def test_ctrl_c_ends_at_once_and_leaves_nothing(place: Path) -> None:
    folder = place / "searches" / "interrupted"
    process = start(
        "--out", str(folder.parent), "--name", "interrupted", "--data", str(place / "store"), "--space", "cmki-small",
        "--trials", "2", "--preset", "demo-smoke", "train.epochs=500", "train.threads=1",
    )  # fmt: skip
    until(lambda: epochs_of(folder, 0) >= 1, 240, process=process, pause=0.02)
    trial, below = pid_of(folder, 0), psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    patience = Patience(10)
    output, _ = process.communicate()
    assert not patience.over()
    assert process.returncode == 130, output
    assert quiet(output), output
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below), 10)
    assert not psutil.pid_exists(trial)
    spec = read_spec(folder)
    assert spec is not None
    assert connection.client().get_run(spec.parent_run).info.status == "KILLED"
    assert {run.info.status for run in children(spec.parent_run).values()} == {"KILLED"}
