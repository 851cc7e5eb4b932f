"""What a search reports: rows, importance, Pareto set, pictures and MLflow tables, from real Optuna studies."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from matplotlib.image import imread
from optuna.trial import TrialState

from brgsa_platform.search import figures as search_figures
from brgsa_platform.search import report as search_report
from brgsa_platform.search.figures import Field
from brgsa_platform.search.study import WARM_START_SOURCE
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("error::UserWarning"),
]

FIELDS = ["loss.temperature", "data.style", "optim.name", "optim.weight_decay", "data.flip"]


def make_study(trials: int = 40, two: bool = False) -> optuna.Study:
    """Temperature decides, flip does nothing, weight_decay is drawn for adamw only; some are pruned, some fail."""
    names = ["val/auroc", "val/auroc_rare"] if two else ["val/auroc"]
    study = optuna.create_study(directions=["maximize"] * len(names), sampler=optuna.samplers.RandomSampler(seed=1))
    study.set_metric_names(names)
    noise = random.Random(0)
    for number in range(trials):
        trial = study.ask()
        temperature = trial.suggest_float("loss.temperature", 0.01, 0.5, log=True)
        trial.suggest_categorical("data.style", ["report", "positives"])
        if trial.suggest_categorical("optim.name", ["adam", "adamw"]) == "adamw":
            trial.suggest_float("optim.weight_decay", 1e-6, 1e-1, log=True)
        flip = trial.suggest_float("data.flip", 0.0, 0.5)
        auroc = 0.9 - 0.1 * abs(math.log10(temperature / 0.1)) + noise.gauss(0, 0.002)
        if number % 10 == 9:
            trial.set_user_attr("reason", "out of memory")
            study.tell(trial, state=TrialState.FAIL)
        elif two:
            trial.set_user_attr("epochs", 6)
            trial.set_user_attr("best_epoch", 4)
            study.tell(trial, [auroc, flip])
        elif number % 5 == 3:
            for epoch, value in ((1, 0.6), (2, math.nan), (3, 0.55)):
                trial.report(value, epoch)
            trial.set_user_attr("reason", "below the median at epoch 3")
            study.tell(trial, state=TrialState.PRUNED)
        else:
            for epoch, below in ((1, 0.2), (2, 0.0), (3, 0.01)):
                trial.report(auroc - below, epoch)
            study.tell(trial, auroc)
    return study


def test_a_row_a_trial_with_its_fields_value_epochs_and_reason() -> None:
    study = make_study(10)
    running = study.ask()
    running.suggest_float("loss.temperature", 0.01, 0.5, log=True)
    running.report(0.7, 1)
    rows = search_report.trial_rows(study)
    assert [row["number"] for row in rows] == list(range(11))
    states = {row["number"]: row["state"] for row in rows}
    assert (states[0], states[3], states[9], states[10]) == ("complete", "pruned", "failed", "running")
    assert set(rows[0]) == {"number", "state", *FIELDS, "val/auroc", "best_epoch", "epochs", "reason", "seconds"}
    assert (rows[0]["val/auroc"], rows[0]["best_epoch"], rows[0]["epochs"]) == (study.trials[0].value, 2, 3)
    assert (rows[3]["val/auroc"], rows[3]["best_epoch"], rows[3]["epochs"]) == (0.6, 1, 3)
    assert rows[3]["reason"] == "below the median at epoch 3"
    assert (rows[9]["val/auroc"], rows[9]["epochs"], rows[9]["reason"]) == (None, 0, "out of memory")
    assert (rows[10]["val/auroc"], rows[10]["seconds"], rows[10]["data.style"]) == (0.7, None, None)
    for row in rows[:10]:
        assert (row["optim.weight_decay"] is None) == (row["optim.name"] == "adam")


def test_what_a_trial_says_of_itself_comes_before_what_its_values_say() -> None:
    (row, *_) = search_report.trial_rows(make_study(1, two=True))
    assert (row["epochs"], row["best_epoch"]) == (6, 4)


def test_importance_finds_what_decides() -> None:
    shares = search_report.importance(make_study(60))
    assert next(iter(shares)) == "loss.temperature"
    assert shares["loss.temperature"] > 0.5
    assert set(shares) == set(FIELDS)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert search_report.importance_note(make_study(60)) == ""
    assert set(search_report.importance(make_study(60, two=True))) == set(FIELDS)


def test_no_importance_where_there_is_none_to_tell() -> None:
    few = make_study(8)
    assert search_report.importance(few) == {}
    assert search_report.importance_note(few) == "importance needs 8 complete trials, and there are 7"
    same = optuna.create_study(direction="maximize")
    same.optimize(lambda trial: trial.suggest_float("loss.temperature", 0.1, 1.0) * 0, n_trials=20)
    assert search_report.importance(same) == {}
    assert "same objective" in search_report.importance_note(same)


def test_pareto_set_of_two_objectives_and_of_one() -> None:
    study = make_study(40, two=True)
    chosen = search_report.pareto(study)
    complete = [row for row in search_report.trial_rows(study) if row["state"] == "complete"]
    beaten = [
        row
        for row in complete
        if any(
            other["val/auroc"] >= row["val/auroc"]
            and other["val/auroc_rare"] >= row["val/auroc_rare"]
            and other is not row
            for other in complete
        )
    ]
    assert {row["number"] for row in chosen} == {r["number"] for r in complete} - {r["number"] for r in beaten}
    assert 1 < len(chosen) < len(complete)
    assert [row["val/auroc"] for row in chosen] == sorted((row["val/auroc"] for row in chosen), reverse=True)
    (best,) = search_report.pareto(one := make_study(20))
    assert best["number"] == one.best_trial.number
    assert search_report.pareto(make_study(0)) == []


@pytest.mark.parametrize("two", [False, True])
def test_files_are_whole_and_nothing_is_left_beside_them(tmp_path: Path, two: bool) -> None:
    study = make_study(20, two)
    written = search_report.write_report(tmp_path, study)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    each = [f"{kind}-val-auroc{goal}" for kind in ("slices", "parallel") for goal in ("", "_rare")]
    pictures = ["history", *(each if two else ["slices", "parallel"])]
    assert {path.name for path in written} == {
        "trials.csv", "importance.csv", "pareto.csv", *(f"{name}.png" for name in pictures),
    }  # fmt: skip
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == [row["state"] for row in search_report.trial_rows(study)]
    assert float(rows[0]["val/auroc"]) == study.trials[0].values[0]
    assert rows[9]["val/auroc"] == ""
    with (tmp_path / "importance.csv").open(newline="") as file:
        shares = {row["field"]: float(row["importance"]) for row in csv.DictReader(file)}
    assert shares == search_report.importance(study)


@pytest.mark.parametrize("trials", [0, 1])
def test_a_search_without_much_to_show_reports_what_there_is(tmp_path: Path, trials: int) -> None:
    written = search_report.write_report(tmp_path, make_study(trials))
    assert all(path.is_file() for path in written)
    assert (tmp_path / "slices.png").is_file() == bool(trials)


def test_an_axis_places_values_by_its_scale() -> None:
    log = Field("loss.temperature", 0.01, 1.0, log=True)
    assert [log.place(v) for v in (0.01, 0.1, 1.0)] == pytest.approx([0, 0.5, 1])
    assert log.ticks() == pytest.approx([0.01, 0.1, 1.0])
    assert Field("data.flip", 0.0, 0.5).place(0.125) == 0.25
    style = Field("data.style", choices=("report", "findings", "positives"))
    assert [style.place(c) for c in style.choices] == [0, 0.5, 1]
    assert style.ticks() == ["report", "findings", "positives"]
    assert Field("seed", 3, 3).place(3) == 0.5


def test_pictures_have_the_scales_of_the_space_and_tell_states_apart() -> None:
    study = make_study(40)
    rows, fields = search_report.trial_rows(study), search_report.searched_fields(study)
    figure = search_figures.slice_figure(rows, fields, "val/auroc")
    panels = {axes.get_xlabel(): axes for axes in figure.axes}
    assert {field for field, axes in panels.items() if axes.get_xscale() == "log"} == {FIELDS[0], "optim.weight_decay"}
    assert set(panels) == set(FIELDS)
    drawn = {line.get_label(): line for line in panels["loss.temperature"].lines}
    assert list(drawn) == ["complete", "pruned", "failed", "best"]
    for state in ("complete", "pruned", "failed"):
        assert len(drawn[state].get_xdata()) == sum(row["state"] == state for row in rows)
    assert drawn["best"].get_ydata()[0] == study.best_value

    parallel = search_figures.parallel_figure(rows, fields, "val/auroc")
    lines = [line for line in parallel.axes[0].lines if len(line.get_xdata()) == len(FIELDS) + 1]
    assert len(lines) == sum(row["state"] in ("complete", "pruned") for row in rows)
    assert lines[-1].get_ydata()[-1] == 1.0  # the best, drawn last, at the top of the objective's axis
    unset = sum(line.get_ydata()[list(panels).index("optim.weight_decay")] < 0 for line in lines)
    assert unset == sum(row["optim.weight_decay"] is None and row["state"] != "failed" for row in rows)

    history = search_figures.history_figure(rows, ["val/auroc"])
    steps = history.axes[0].lines[0]
    assert steps.get_xdata()[-1] == sum(row["epochs"] for row in rows)
    assert steps.get_ydata()[-1] == study.best_value
    assert np.all(np.diff(steps.get_ydata()) >= 0)


def add_warm_start(study: optuna.Study, reached: list[float]) -> None:
    """Three trainings from before the search, better in everything than any trial."""
    like = study.trials[0]
    for _ in range(3):
        study.add_trial(
            optuna.create_trial(
                params=like.params,
                distributions=like.distributions,
                values=reached,
                user_attrs={WARM_START_SOURCE: "earlier"},
            )
        )


@pytest.mark.parametrize("two", [False, True])
def test_a_warm_start_s_trainings_are_told_of_nowhere(two: bool) -> None:
    """Neither in the table, the importance and the Pareto set, nor in the counts."""
    study = make_study(30, two)
    objectives = search_report.objective_names(study)

    def told() -> list[Any]:
        rows = search_report.trial_rows(study)
        return [
            rows, search_report.searched_fields(study), search_report.importance(study), search_report.pareto(study),
            search_report.counts(rows, objectives),
        ]  # fmt: skip

    before = told()
    assert before[-1]["best/auroc"] < 0.99
    add_warm_start(study, [0.99] * len(objectives))
    assert told() == before


def test_a_warm_start_s_trainings_are_in_no_picture(tmp_path: Path) -> None:
    study = make_study(6)
    search_report.write_report(tmp_path, study)
    pictures = {name: imread(tmp_path / name) for name in ("history.png", "slices.png", "parallel.png")}
    add_warm_start(study, [0.99])
    search_report.write_report(tmp_path, study)
    for name, picture in pictures.items():
        np.testing.assert_array_equal(imread(tmp_path / name), picture)


def test_eight_trainings_of_a_warm_start_make_no_importance() -> None:
    study = make_study(8)
    for _ in range(3):
        add_warm_start(study, [0.99])
    assert search_report.importance(study) == {}


def test_the_search_s_run_holds_tables_pictures_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    study = make_study(20)
    folder = tmp_path / "search"
    folder.mkdir()
    tags = search_report.search_tags("demo", "fingerprint", ["cmki", "optim"])
    with tracking.run("tune", name="cmki", tags=tags) as run:
        search_report.log_search(run, study, folder)
        search_report.log_search(run, study, folder)  # as a search does that goes on
    api = connection.client()
    stored_run = api.get_run(run.run_id)
    assert stored_run.data.metrics == {
        "trials": 20.0, "trials/complete": 14.0, "trials/pruned": 4.0, "trials/failed": 2.0, "epochs": 54.0,
        "best/auroc": study.best_value,
    }  # fmt: skip
    assert {"brgsa.preset": "demo", "brgsa.data": "fingerprint", "brgsa.space": "cmki,optim"}.items() <= (
        stored_run.data.tags.items()
    )
    assert {entry["path"] for entry in json.loads(stored_run.data.tags["mlflow.loggedArtifacts"])} == {
        "trials.json", "importance.json",
    }  # fmt: skip
    names = {artifact.path for artifact in api.list_artifacts(run.run_id)}
    assert {"trials.csv", "slices.png", "parallel.png", "history.png", "importance.csv", "pareto.csv"} <= names
    table = json.loads(
        Path(api.download_artifacts(run.run_id, "trials.json", str(tmp_path))).read_text(encoding="utf-8")
    )
    assert len(table["data"]) == 20
    failed = dict(zip(table["columns"], table["data"][9], strict=True))
    assert (failed["state"], failed["val/auroc"], failed["reason"]) == ("failed", None, "out of memory")
    picture = imread(api.download_artifacts(run.run_id, "parallel.png", str(tmp_path)))
    assert picture.shape[1] > picture.shape[0] > 300
