"""`brgsa runs`: list, show, compare and best, on SQLite and through a server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from typer.testing import CliRunner

from brgsa_platform.cli.main import app
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import query, runs

pytestmark = pytest.mark.slow


@pytest.fixture
def ids(searched: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name → run id of a search of four trials, a training and an evaluation; the current folder holds their folders."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", searched.uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(searched.folder)
    run_ids: dict[str, str] = searched.ids
    return run_ids


def brgsa_runs(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["runs", *arguments])
    if done.exception:
        raise done.exception
    return done.output


def brgsa_runs_json(*arguments: str) -> Any:
    return json.loads(brgsa_runs(*arguments, "--json"))


def test_list_has_the_newest_first_and_folds_trials_under_their_search(ids: dict[str, str]) -> None:
    listed = brgsa_runs_json("list")
    assert [(line["verb"], line["name"]) for line in listed] == [
        ("evaluate", "first/epoch-0006 on test"),
        ("train", "first"),
        ("tune", "cmki"),
    ]
    assert listed[2]["trials"] == {"complete": 2, "pruned": 1, "failed": 1}
    assert [line["auroc"] for line in listed] == pytest.approx([0.77, 0.776875, 0.836875])
    assert listed[1]["id"] == ids["first"][:8]

    lines = brgsa_runs("list").splitlines()
    (search,) = (line for line in lines if "cmki" in line)
    assert "finished: 2 complete, 1 pruned, 1 failed" in search
    assert "0.8369" in search
    assert not any("trial-" in line for line in lines)


def test_list_of_a_search_of_a_verb_and_of_a_few(ids: dict[str, str]) -> None:
    trials = brgsa_runs_json("list", "--search", "cmki")
    assert [(line["name"], line["status"]) for line in trials] == [
        ("trial-0003", "failed"), ("trial-0002", "pruned"), ("trial-0001", "complete"), ("trial-0000", "complete"),
    ]  # fmt: skip
    assert brgsa_runs_json("list", "--search", ids["cmki"][:12]) == trials
    assert [line["name"] for line in brgsa_runs_json("list", "--verb", "train")] == ["first"]
    assert len(brgsa_runs_json("list", "--verb", "trial", "--limit", "3")) == 3
    with refused("no-such-run", field="search", value="first"):
        runs.list_runs(search="first")


@pytest.mark.slow
def test_a_server_answers_as_sqlite_does(
    ids: dict[str, str], search_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [brgsa_runs_json("list"), brgsa_runs_json("show", "trial-0001"), brgsa_runs_json("best")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", search_server)
    assert [brgsa_runs_json("list"), brgsa_runs_json("show", "trial-0001"), brgsa_runs_json("best")] == here


def test_show_tells_what_differs_first(ids: dict[str, str]) -> None:
    shown = brgsa_runs_json("show", "trial-0001")
    assert shown["base"] == "search cmki"
    assert shown["search"] == "cmki"
    assert shown["changed"] == {
        "model.bank.size": {"base": "128", "value": "1024"},
        "loss.temperature": {"base": "0.05", "value": "0.12"},
        "data.style": {"base": "positives", "value": "findings"},
    }
    assert shown["metrics"]["val/auroc"] == {
        "last": pytest.approx(0.836875),
        "best": pytest.approx(0.836875),
        "step": 6,
    }
    assert shown["metrics"]["val/loss"]["best"] == pytest.approx(2.5 - 0.836875)
    assert shown["metrics"]["best/auroc"] == {"last": pytest.approx(0.836875)}
    assert shown["tags"]["brgsa.space"] == "cmki"

    training = brgsa_runs_json("show", ids["first"][:10])
    assert training["base"] == "preset demo"
    assert list(training["changed"]) == ["optim.lr"]
    assert training["changed"]["optim.lr"]["value"] == "3e-05"

    search = brgsa_runs("show", "cmki")
    assert "tune cmki: finished: 2 complete, 1 pruned, 1 failed" in search
    for artifact in ("trials.json", "parallel.png", "slices.png"):
        assert artifact in search
    shown = brgsa_runs("show", "trial-0001")
    assert shown.index("model.bank.size") < shown.index("optim.lr")
    assert "of search cmki: complete" in shown


def test_compare_sets_side_by_side_what_differs(ids: dict[str, str]) -> None:
    compared = brgsa_runs_json("compare", "trial-0000", "trial-0001", "first")
    assert compared["params"] == {
        "data.style": ["positives", "findings", "positives"],
        "loss.temperature": ["0.05", "0.12", "0.05"],
        "model.bank.size": ["256", "1024", "128"],
        "optim.lr": [compared["params"]["optim.lr"][0]] * 2 + ["3e-05"],
    }
    assert compared["metrics"]["best/auroc"] == pytest.approx([0.776875, 0.836875, 0.776875])
    table = brgsa_runs("compare", "trial-0000", "trial-0001")
    (line,) = (line for line in table.splitlines() if "loss.temperature" in line)
    assert line.split() == ["loss.temperature", "0.05", "0.12"]
    assert "optim.lr" not in table
    with refused("too-few-runs"):
        brgsa_runs("compare", "trial-0000")


def test_best_names_the_command_that_evaluates_it(ids: dict[str, str]) -> None:
    best = brgsa_runs_json("best")
    assert (best["name"], best["run_id"]) == ("trial-0001", ids["trial-0001"])
    assert best["value"] == pytest.approx(0.836875)
    assert best["evaluate"] == "brgsa evaluate searches/cmki/trials/trial-0001 --data /data/store"
    assert "Next: brgsa evaluate searches/cmki/trials/trial-0001 --data /data/store" in brgsa_runs("best")
    assert brgsa_runs_json("best", "--search", "cmki") == best
    lowest = brgsa_runs_json("best", "--metric", "val/loss")
    assert (lowest["name"], lowest["value"]) == ("trial-0001", pytest.approx(2.5 - 0.836875))
    with refused("no-run-with-metric", value="auroc/rare"):
        runs.best_run("auroc/rare")
    with refused("bad-metric", value="a` DESC"):
        runs.best_run("a` DESC")


def test_best_from_another_folder_leaves_the_places_open(
    ids: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs.best_run()["evaluate"] == "brgsa evaluate RUN_FOLDER --data STORE"


def test_the_commands_of_the_page_run(ids: dict[str, str]) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "search.md"
    commands = re.findall(r"^\$ brgsa runs ([^#\n]+)", page.read_text(), flags=re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"list", "show", "compare", "best"}
    for command in commands:
        assert brgsa_runs(*command.split()).strip()
        assert brgsa_runs_json(*command.split())


def test_what_is_no_run_is_refused(ids: dict[str, str]) -> None:
    for text in ("nobody", "%", "", "0" * 40):
        with refused("no-such-run", value=text):
            runs.show_run(text)


def test_the_beginning_of_several_ids_is_refused_with_the_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    by_letter: dict[str, list[str]] = {}
    while not any(len(alike) == 2 for alike in by_letter.values()):  # after 17 runs at the latest
        with tracking.run("train") as run:
            by_letter.setdefault(run.run_id[0], []).append(run.run_id)
    (letter, alike) = next((letter, alike) for letter, alike in by_letter.items() if len(alike) == 2)
    with refused("ambiguous-run", value=letter) as caught:
        runs.show_run(letter)
    assert all(run_id[:8] in str(caught.value) for run_id in alike)
    assert runs.show_run(alike[0][:20])["run_id"] == alike[0]


def test_names_with_quotes_and_twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    odd = ("o'hara", "100%_[x]", "twin", "twin")
    for name in odd:
        with tracking.run("train", name=name) as run:
            run.log_metrics({"best/auroc": float("nan")})
    assert runs.show_run("o'hara")["name"] == "o'hara"
    assert runs.show_run("100%_[x]")["name"] == "100%_[x]"
    with refused("ambiguous-run", value="twin"):
        runs.show_run("twin")
    with refused("no-run-with-metric", value="best/auroc"):
        runs.best_run()
    assert {line["auroc"] for line in runs.list_runs()} == {None}


def test_a_name_that_mlflow_refuses_loses_no_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with tracking.run("evaluate") as run:
        run.log_metrics({"auroc/macro": 0.7, "auroc/Emphysema (<5 %)": 0.8, "auroc/..": 0.9, "auroc/Cardiomegaly": 0.6})
    kept = runs.show_run(run.run_id)["metrics"]
    assert {name: one["last"] for name, one in kept.items()} == {
        "auroc/macro": 0.7,
        "auroc/Emphysema __5 __": 0.8,
        "auroc/_": 0.9,
        "auroc/Cardiomegaly": 0.6,
    }


def test_a_text_is_added_to_a_run_that_is_there_and_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    assert not tracking.add_text("0" * 32, "text", "report.html")
    assert not database.exists()
    with tracking.run("evaluate") as run:
        pass
    assert tracking.add_text(run.run_id, "text", "report.html")
    assert not tracking.add_text("0" * 32, "text", "report.html")
    assert query.artifacts(run.run_id) == ["report.html"]


def test_a_look_at_nothing_makes_nothing_and_a_refusal_exits_with_2(tmp_path: Path) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}"}

    def brgsa(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "brgsa_platform.cli", "runs", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    listed = brgsa("list")
    assert listed.returncode == 0
    assert "brgsa" in listed.stdout  # the experiment in which there is none
    shown = brgsa("show", "anything")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "anything" in shown.stderr
    assert list(tmp_path.iterdir()) == []
