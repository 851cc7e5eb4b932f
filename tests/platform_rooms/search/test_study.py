"""The study behind a search, without Ray: what is drawn, what is pruned, when it ends, what survives a kill."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from searches import make_spec

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.search import study as studies
from brgsa_platform.search import warm_start
from brgsa_platform.search.searcher import Search
from brgsa_platform.search.spec import SAMPLERS, Limits
from brgsa_platform.search.warm_start import EarlierTraining

pytestmark = pytest.mark.slow

SPACE = """
model.bank.size: {kind: int, low: 64, high: 8192, log: true, why: a}
loss.temperature: {kind: float, low: 0.01, high: 0.5, log: true, why: a}
optim.schedule: {kind: categorical, choices: [constant, cosine], why: a}
optim.warmup_steps: {kind: int, low: 1, high: 50, why: a, when: {optim.schedule: [cosine]}}
optim.clip: {value: 0.5, why: a}
"""
EPOCHS = 9
Space = list[tune_spaces.Parameter]


@pytest.fixture
def space(tmp_path: Path) -> Space:
    (tmp_path / "space.yaml").write_text(SPACE)
    return tune_spaces.load([str(tmp_path / "space.yaml")])


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """A new folder for each search of a test."""

    def made(number: int) -> Path:
        (tmp_path / str(number)).mkdir()
        return tmp_path / str(number)

    return map(made, itertools.count())


def make(
    folder: Path, space: Space, limits: Limits, *, earlier: Sequence[EarlierTraining] = (), **method: Any
) -> Search:
    """A search as the driver opens it, drawn at random where nothing else is given."""
    spec = make_spec(space, EPOCHS, **{"sampler": "random", "seed": 3, **method})
    storage = studies.open_storage(folder, spec)
    study = studies.open_study("s", spec, storage)
    for training in earlier:
        warm_start.add(study, training, space)
    return Search(spec, study, storage, limits)


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
            if search.epoch(name, report(search, epoch, score(trial["values"], epoch))):
                break
        search.finished(name)
    return drawn


def report(search: Search, epoch: int, score: float) -> dict[str, float]:
    return {"epoch": epoch, **dict.fromkeys(search.objectives, score)}


def all_alike(values: dict[str, Any], epoch: int) -> float:
    return 0.5


def by_objective(values: dict[str, Any], epoch: int) -> float:
    return objective(values)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_every_sampler_draws_valid_points_and_the_same_ones_for_a_seed(
    folders: Iterator[Path], space: Space, sampler: str
) -> None:
    first, again = (
        run(make(next(folders), space, Limits(trials=11), sampler=sampler), by_objective, epochs=1) for _ in range(2)
    )
    assert first == again
    assert len(first) == 11
    for trial in first:
        values = trial["values"]
        assert 64 <= values["model.bank.size"] <= 8192
        assert 0.01 <= values["loss.temperature"] <= 0.5
        assert values["optim.clip"] == 0.5
        assert ("optim.warmup_steps" in values) == (values["optim.schedule"] == "cosine")
    assert len({trial["values"]["loss.temperature"] for trial in first}) > 8


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_seed_draws(tmp_path: Path, sampler: str) -> None:
    """NumPy's generators take seeds below 2**32, which the seed of search 4295's first trial is not."""
    (tmp_path / "space.yaml").write_text("loss.temperature: {kind: float, low: 0.01, high: 0.5, why: a}")
    space = tune_spaces.load([str(tmp_path / "space.yaml")])
    for seed in (4295, 2**32, 10**18):
        folder = tmp_path / str(seed)
        folder.mkdir()
        drawn = run(make(folder, space, Limits(trials=2), sampler=sampler, seed=seed), all_alike, epochs=1)
        assert len({trial["values"]["loss.temperature"] for trial in drawn}) == 2


def test_a_seed_draws_what_it_always_has(tmp_path: Path, space: Space) -> None:
    """Searches that have begun go on with the draws of their seed: trial n's is 1000003 times the search's, and n."""
    drawn = run(make(tmp_path, space, Limits(trials=4), seed=3), by_objective, epochs=1)
    for number, trial in enumerate(drawn):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3 * 1_000_003 + number))
        assert studies.draw(study.ask(), space) == trial["values"]


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(
        "loss.temperature: {kind: float, low: 0.01, high: 0.16, log: true, why: a}\n"
        "model.bank.size: {kind: int, low: 1, high: 3, why: a}\n"
        "data.style: {kind: categorical, choices: [report, findings], why: a}\n"
    )
    space = tune_spaces.load([str(tmp_path / "g.yaml")])
    assert studies.grid_values(space[0]) == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16])
    assert studies.grid_values(space[1]) == [1, 2, 3]
    drawn = run(make(tmp_path, space, Limits(trials=31), sampler="grid"), all_alike, epochs=1)
    assert len({tuple(t["values"].values()) for t in drawn}) == len(drawn) == 5 * 3 * 2


def test_a_resumed_search_draws_what_an_undisturbed_one_does(folders: Iterator[Path], space: Space) -> None:
    whole = run(make(next(folders), space, Limits(trials=14), sampler="tpe"), by_objective)
    folder = next(folders)
    cut = make(folder, space, Limits(trials=14), sampler="tpe")
    first = []
    for i in range(6):
        trial = cut.next(f"t{i}")
        assert trial is not None
        first.append(trial)
        cut.epoch(f"t{i}", report(cut, 1, objective(trial["values"])))
        if i < 5:
            cut.finished(f"t{i}")
    # The driver dies here: number 5 was running. Another process opens the same journal.
    again = make(folder, space, Limits(trials=14), sampler="tpe")
    rest = run(again, by_objective)
    assert rest[0] == first[5], "the trial that was running is run again under its number"
    assert [*first[:5], *rest] == whole
    assert {t.state for t in again.study.get_trials()} == {TrialState.COMPLETE}


def test_an_epoch_that_a_resumed_training_reports_again_counts_once(tmp_path: Path, space: Space) -> None:
    cut = make(tmp_path, space, Limits(trials=1))
    assert cut.next("t") is not None
    for epoch, score in ((1, 0.7), (2, 0.6)):
        cut.epoch("t", report(cut, epoch, score))
    again = make(tmp_path, space, Limits(trials=1))
    run(again, lambda values, epoch: [0.7, 0.6, 0.8][epoch - 1])
    (trial,) = again.study.trials
    assert (trial.user_attrs["scores"], trial.user_attrs["epochs"], trial.value) == ([0.7, 0.6, 0.8], 3, 0.8)


def test_a_trial_counts_by_its_best_epoch(tmp_path: Path, space: Space) -> None:
    search = make(tmp_path, space, Limits(trials=1))
    run(search, lambda values, epoch: [0.5, 0.8, 0.6][epoch - 1])
    trial = search.study.trials[0]
    assert (trial.value, trial.user_attrs["best_epoch"], trial.user_attrs["epochs"]) == (0.8, 2, 3)
    assert trial.intermediate_values == {1: 0.5, 2: 0.8, 3: 0.8}  # what it is pruned by
    assert trial.user_attrs["scores"] == [0.5, 0.8, 0.6]


@pytest.mark.parametrize("pruner", ["asha", "median", "hyperband"])
def test_pruners_stop_the_bad_and_keep_the_good(tmp_path: Path, space: Space, pruner: str) -> None:
    search = make(tmp_path, space, Limits(trials=30), pruner=pruner)
    run(search, lambda values, epoch: objective(values) + 0.001 * epoch, epochs=EPOCHS)
    trials = search.study.get_trials()
    pruned = [t for t in trials if t.state == TrialState.PRUNED]
    assert len(pruned) >= 8
    assert all(t.user_attrs["reason"].endswith(f" at epoch {t.user_attrs['epochs']}") for t in pruned)
    assert all(t.user_attrs["epochs"] < EPOCHS for t in pruned)
    best = max(trials, key=lambda t: objective({**t.params}))
    assert best.state == TrialState.COMPLETE
    assert search.epochs_spent() < 30 * EPOCHS * 0.8


def test_the_ends_of_a_search(folders: Iterator[Path], space: Space) -> None:
    assert len(run(make(next(folders), space, Limits(trials=4)), all_alike)) == 4
    by_epochs = make(next(folders), space, Limits(epochs=7))
    assert len(run(by_epochs, all_alike)) == 3
    assert by_epochs.epochs_spent() == 7
    assert by_epochs.ended_because() == by_epochs.study.trials[-1].user_attrs["reason"] == "the epochs are spent"
    scores = iter([0.5, 0.9, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])
    stuck = make(next(folders), space, Limits(trials=8, patience=3))
    assert len(run(stuck, lambda values, epoch: next(scores), epochs=1)) == 5
    assert stuck.ended_because() == "the best has not moved for 3 trials"
    assert run(make(next(folders), space, Limits(trials=8, seconds=0.0)), all_alike) == []


@pytest.mark.parametrize("limits", [Limits(patience=3), Limits(epochs=3)])
def test_a_search_ends_where_every_trial_fails(tmp_path: Path, space: Space, limits: Limits) -> None:
    search = make(tmp_path, space, limits)
    for number in range(3):
        assert search.next(f"t{number}") is not None
        search.failed(f"t{number}", "out of memory")
    assert search.next("t3") is None
    assert search.ended_because()


def test_failed_trials_after_the_best_use_up_the_patience(tmp_path: Path, space: Space) -> None:
    search = make(tmp_path, space, Limits(patience=2))
    assert search.next("good") is not None
    search.epoch("good", report(search, 1, 0.6))
    search.finished("good")
    for name in ("first", "second"):
        assert search.next(name) is not None
        search.failed(name, "out of memory")
    assert search.next("third") is None


EARLIER = [
    EarlierTraining("before", {"model.bank.size": size, "loss.temperature": 0.1, "optim.schedule": "constant"}, [0.99])
    for size in (64, 128, 256, 512, 1024)
]


def test_a_warm_start_counts_for_no_end(tmp_path: Path, space: Space) -> None:
    """Its trainings reached more than any trial here, so they would be the best for ever."""
    scores = iter([0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.7])
    search = make(tmp_path, space, Limits(trials=7, patience=2), earlier=EARLIER)
    assert len(run(search, lambda values, epoch: next(scores), epochs=1)) == 6
    assert search.ended_because() == "the best has not moved for 2 trials"
    assert search.epochs_spent() == 6
    own = studies.own_trials(search.study)
    assert [trial.number for trial in own] == list(range(5, 11))
    best = studies.best_trial(own)
    assert best is not None
    assert best.value == 0.8


def test_the_median_waits_for_four_trials_of_this_search(tmp_path: Path, space: Space) -> None:
    search = make(tmp_path, space, Limits(trials=5), earlier=EARLIER, pruner="median")
    run(
        search, lambda values, epoch: 0.9 - 0.05 * len(studies.own_trials(search.study))
    )  # each worse than those before
    assert [trial.state.name for trial in studies.own_trials(search.study)] == ["COMPLETE"] * 4 + ["PRUNED"]


def test_failures_are_recorded_with_their_reason(tmp_path: Path, space: Space) -> None:
    search = make(tmp_path, space, Limits(trials=5))
    for name, score in (("memory", 0.7), ("no epoch", None), ("nan", math.nan), ("inf", math.inf), ("good", 0.6)):
        assert search.next(name) is not None
        if score is not None:
            search.epoch(name, report(search, 1, score))
        if name == "memory":
            search.failed(name, "out of memory")
        else:
            search.finished(name)
    assert [t.state.name for t in search.study.trials] == ["FAIL"] * 4 + ["COMPLETE"]
    reasons = [t.user_attrs.get("reason", "") for t in search.study.trials]
    assert reasons[0] == "out of memory"
    assert all(reasons[:4])
    assert search.study.best_value == 0.6


def test_two_goals_make_a_pareto_set(tmp_path: Path, space: Space) -> None:
    search = make(tmp_path, space, Limits(trials=12), sampler="nsga2", goals=("common", "rare"))
    while (trial := search.next("t")) is not None:
        share = math.log(trial["values"]["loss.temperature"] / 0.01) / math.log(50)
        search.epoch("t", {"epoch": 1, "val/auroc_common": share, "val/auroc_rare": 1 - share})
        search.finished("t")
    assert len(search.study.best_trials) == 12, "each is better than each other in one goal"


def test_a_storage_that_cannot_be_opened(tmp_path: Path, space: Space) -> None:
    with pytest.raises(UserError) as error:
        make(tmp_path, space, Limits(), storage=f"sqlite:///{tmp_path}/absent/x.db")
    assert (error.value.code, error.value.field) == ("study-storage", "--storage")
