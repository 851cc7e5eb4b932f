"""The study behind a search, without Ray: what is drawn, what is pruned, when it ends, what survives a kill."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.search import study as studies
from brgsa_platform.search.points import parse_points
from brgsa_platform.search.searcher import Limits, Search

SPACE = """
model.bank.size: {kind: int, low: 64, high: 8192, log: true, why: a}
loss.temperature: {kind: float, low: 0.01, high: 0.5, log: true, why: a}
optim.schedule: {kind: categorical, choices: [constant, cosine], why: a}
optim.warmup_steps: {kind: int, low: 1, high: 50, why: a, when: {optim.schedule: [cosine]}}
optim.clip: {value: 0.5, why: a}
"""


@pytest.fixture
def space(tmp_path: Path) -> list[tune_spaces.Parameter]:
    (tmp_path / "space.yaml").write_text(SPACE)
    return tune_spaces.load([str(tmp_path / "space.yaml")])


def make(
    folder: Path,
    space: list[tune_spaces.Parameter],
    limits: Limits,
    sampler: str = "random",
    pruner: str = "none",
    seed: int = 3,
    goals: tuple[str, ...] = ("auroc",),
) -> Search:
    study = studies.open_study(
        "s",
        folder,
        storage=None,
        goals=goals,
        sampler=studies.make_sampler(sampler, seed, space),
        pruner=pruner,
        epochs=9,
    )
    return Search(study, space, goals, limits, lambda n: studies.make_sampler(sampler, seed, space, n), 9)


def objective(values: dict[str, Any]) -> float:
    return (
        0.9 - 0.1 * abs(math.log10(values["loss.temperature"] / 0.1)) - 0.02 * math.log2(values["model.bank.size"] / 64)
    )


def run(search: Search, score: Callable[[dict[str, Any], int], float], epochs: int = 3) -> list[dict[str, Any]]:
    """Run trials one after the other until the search says that it is over."""
    drawn = []
    while (trial := search.next(f"t{len(drawn)}")) is not None:
        name = f"t{len(drawn)}"
        drawn.append(trial)
        for epoch in range(1, epochs + 1):
            found = {goal: score(trial["values"], epoch) for goal in search.goals}
            if search.epoch(name, {"epoch": epoch, **found}):
                break
        search.finished(name)
    return drawn


@pytest.mark.parametrize("sampler", [name for name in studies.SAMPLERS if name != "grid"])
def test_every_sampler_draws_valid_points_and_the_same_ones_for_a_seed(
    tmp_path: Path, space: list[tune_spaces.Parameter], sampler: str
) -> None:
    found = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        found.append(
            run(make(tmp_path / folder, space, Limits(trials=13), sampler), lambda values, epoch: objective(values))
        )
    assert found[0] == found[1]
    assert len(found[0]) == 13
    for trial in found[0]:
        values = trial["values"]
        assert 64 <= values["model.bank.size"] <= 8192
        assert 0.01 <= values["loss.temperature"] <= 0.5
        assert values["optim.clip"] == 0.5
        assert ("optim.warmup_steps" in values) == (values["optim.schedule"] == "cosine")
    assert len({trial["values"]["loss.temperature"] for trial in found[0]}) > 8


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(
        "loss.temperature: {kind: float, low: 0.01, high: 0.16, log: true, why: a}\n"
        "model.bank.size: {kind: int, low: 1, high: 3, why: a}\n"
        "data.style: {kind: categorical, choices: [report, findings], why: a}\n"
    )
    space = tune_spaces.load([str(tmp_path / "g.yaml")])
    assert studies.grid_values(space[0]) == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16])
    assert studies.grid_values(space[1]) == [1, 2, 3]
    drawn = run(make(tmp_path, space, Limits(trials=30), "grid"), lambda values, epoch: 0.5, epochs=1)
    assert len({tuple(t["values"].values()) for t in drawn}) == len(drawn) == 5 * 3 * 2


def test_a_resumed_search_draws_what_an_undisturbed_one_does(
    tmp_path: Path, space: list[tune_spaces.Parameter]
) -> None:
    for folder in ("cut", "whole"):
        (tmp_path / folder).mkdir()
    whole = run(make(tmp_path / "whole", space, Limits(trials=14), "tpe"), lambda values, epoch: objective(values))
    cut = make(tmp_path / "cut", space, Limits(trials=14), "tpe")
    first = []
    for i in range(6):
        trial = cut.next(f"t{i}")
        assert trial is not None
        first.append(trial)
        cut.epoch(f"t{i}", {"epoch": 1, "auroc": objective(trial["values"])})
        if i < 5:
            cut.finished(f"t{i}")
    # The driver dies here: number 5 was running. Another process opens the same journal.
    again = make(tmp_path / "cut", space, Limits(trials=14), "tpe")
    rest = run(again, lambda values, epoch: objective(values))
    assert rest[0] == first[5], "the trial that was running is run again under its number"
    assert [*first[:5], *rest] == whole
    assert {t.state for t in again.study.get_trials()} == {TrialState.COMPLETE}


def test_a_trial_counts_by_its_best_epoch(tmp_path: Path, space: list[tune_spaces.Parameter]) -> None:
    search = make(tmp_path, space, Limits(trials=1))
    run(search, lambda values, epoch: [0.5, 0.8, 0.6][epoch - 1])
    trial = search.study.trials[0]
    assert (trial.value, trial.user_attrs["best_epoch"], trial.user_attrs["epochs"]) == (0.8, 2, 3)
    assert trial.intermediate_values == {1: 0.5, 2: 0.8, 3: 0.8}  # what it is pruned by
    assert trial.user_attrs["scores"] == [0.5, 0.8, 0.6]


@pytest.mark.parametrize("pruner", ["asha", "median", "hyperband"])
def test_pruners_stop_the_bad_and_keep_the_good(
    tmp_path: Path, space: list[tune_spaces.Parameter], pruner: str
) -> None:
    search = make(tmp_path, space, Limits(trials=30), pruner=pruner)
    run(search, lambda values, epoch: objective(values) + 0.001 * epoch, epochs=9)
    trials = search.study.get_trials()
    pruned = [t for t in trials if t.state == TrialState.PRUNED]
    assert len(pruned) >= 8
    words = {
        "asha": "not in the best third at epoch",
        "median": "below the median at epoch",
        "hyperband": "its bracket at",
    }
    assert all(words[pruner] in t.user_attrs["reason"] and t.user_attrs["epochs"] < 9 for t in pruned)
    best = max(trials, key=lambda t: objective({**t.params}))
    assert best.state == TrialState.COMPLETE
    assert search.epochs_spent() < 30 * 9 * 0.8


def test_the_ends_of_a_search(tmp_path: Path, space: list[tune_spaces.Parameter]) -> None:
    folders = iter(range(10))

    def search(limits: Limits) -> Search:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        return make(folder, space, limits)

    assert len(run(search(Limits(trials=4)), lambda values, epoch: 0.5)) == 4
    by_epochs = search(Limits(epochs=7))
    assert len(run(by_epochs, lambda values, epoch: 0.5)) == 3
    assert by_epochs.epochs_spent() == 7
    assert by_epochs.over() == "the epochs are spent"
    assert by_epochs.study.trials[-1].user_attrs["reason"] == "the epochs are spent"
    scores = iter([0.5, 0.9, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])
    stuck = search(Limits(trials=8, patience=3))
    assert len(run(stuck, lambda values, epoch: next(scores), epochs=1)) == 5
    assert stuck.over() == "the best has not moved for 3 trials"
    timed = search(Limits(trials=8, seconds=0.0))
    assert run(timed, lambda values, epoch: 0.5) == []


def test_failures_are_recorded_with_their_reason(tmp_path: Path, space: list[tune_spaces.Parameter]) -> None:
    search = make(tmp_path, space, Limits(trials=4))
    assert search.next("a") is not None
    search.epoch("a", {"epoch": 1, "auroc": 0.7})
    search.failed("a", "out of memory")
    assert search.next("b") is not None
    search.finished("b")
    assert search.next("c") is not None
    search.epoch("c", {"epoch": 1, "auroc": math.nan})
    search.finished("c")
    assert search.next("d") is not None
    search.epoch("d", {"epoch": 1, "auroc": 0.6})
    search.finished("d")
    assert [t.state.name for t in search.study.trials] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert search.study.trials[0].user_attrs["reason"] == "out of memory"
    assert "without an epoch" in search.study.trials[1].user_attrs["reason"]
    assert search.study.best_value == 0.6


def test_two_goals_make_a_pareto_set(tmp_path: Path, space: list[tune_spaces.Parameter]) -> None:
    search = make(tmp_path, space, Limits(trials=12), "nsga2", goals=("common", "rare"))
    while (trial := search.next("t")) is not None:
        share = math.log(trial["values"]["loss.temperature"] / 0.01) / math.log(50)
        search.epoch("t", {"epoch": 1, "common": share, "rare": 1 - share})
        search.finished("t")
    assert len(search.study.best_trials) == 12, "each is better than each other in one goal"


def test_choices_that_do_not_go_together() -> None:
    for choice, words in (
        (("tpee", "none", 1), "no sampler 'tpee': choose one of tpe"),
        (("tpe", "ashes", 1), "no pruner 'ashes'"),
        (("tpe", "asha", 2), "cannot prune trials of two goals"),
        (("cmaes", "none", 2), "one goal only"),
    ):
        with pytest.raises(UserError, match=words):
            studies.check_choice(*choice)


def test_points_lie_in_the_space_or_are_refused(space: list[tune_spaces.Parameter]) -> None:
    (inside,) = parse_points(["model.bank.size=128,loss.temperature=0.1,optim.schedule=constant"])
    point = studies.point_in(space, inside)
    assert point == {"model.bank.size": 128, "loss.temperature": 0.1, "optim.schedule": "constant"}
    assert studies.point_in(space, {**inside, "loss.temperature": 0.9}) is None
    assert studies.point_in(space, {**inside, "optim.schedule": "cosine"}) is None, "it lacks the warm-up"
    for wrong in ("a", "=1", "a=[1"):
        with pytest.raises(UserError, match=r"--point|form field=value"):
            parse_points([wrong])


def test_a_storage_that_cannot_be_opened(tmp_path: Path, space: list[tune_spaces.Parameter]) -> None:
    with pytest.raises(UserError, match=r"storage of the search s cannot be opened .*correct --storage"):
        studies.open_study(
            "s",
            tmp_path,
            storage=f"sqlite:///{tmp_path}/absent/x.db",
            goals=("auroc",),
            sampler=optuna.samplers.RandomSampler(),
            pruner="none",
            epochs=1,
        )
