"""What a search is: what its options refuse, and what its folder keeps of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from searches import make_spec

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.config import load_config
from brgsa_platform.search.spec import (
    Limits,
    SearchMethod,
    SearchOptions,
    SearchSpec,
    check_same,
    read_spec,
    trial_name,
    write_spec,
)
from brgsa_platform.search.study import point_in
from brgsa_platform.search.warm_start import parse_points


@pytest.mark.parametrize(
    ("make", "given", "code", "field"),
    [
        (SearchOptions, {"trials": 0}, "option-value", "--trials"),
        (SearchOptions, {"epochs": 0}, "option-value", "--epochs"),
        (SearchOptions, {"patience": -1}, "option-value", "--patience"),
        (SearchOptions, {"hours": 0.0}, "option-value", "--hours"),
        (SearchOptions, {"concurrent": 0}, "option-value", "--concurrent"),
        (SearchOptions, {"gpu_share": -0.5}, "option-value", "--gpus-per-trial"),
        (SearchOptions, {"checkpoints": "some"}, "option-value", "--checkpoints"),
        (SearchOptions, {"trials": None}, "endless-search", "--trials"),
        (SearchMethod, {"goals": ("auroc", "auroc")}, "option-value", "--goal"),
        (SearchMethod, {"goals": ("auroc", "common", "rare")}, "option-value", "--goal"),
        (SearchMethod, {"goals": ("f1",)}, "option-value", "--goal"),
        (SearchMethod, {"sampler": "tpee"}, "option-value", "--sampler"),
        (SearchMethod, {"pruner": "ashes"}, "option-value", "--pruner"),
        (SearchMethod, {"seed": -1}, "option-value", "--seed"),
        (SearchMethod, {"goals": ("common", "rare"), "pruner": "asha"}, "options-conflict", "--pruner"),
        (SearchMethod, {"goals": ("common", "rare"), "sampler": "cmaes"}, "options-conflict", "--sampler"),
    ],
)
def test_options_that_cannot_be(make: Any, given: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(UserError) as error:
        make(**given)
    assert (error.value.code, error.value.field) == (code, field)
    if code == "option-value":
        assert error.value.value in given.values()


@pytest.mark.parametrize("end", [{"trials": 3}, {"trials": None, "hours": 1.0}, {"trials": None, "epochs": 9}])
def test_patience_alone_does_not_end_a_search_with_two_goals(end: dict[str, Any]) -> None:
    two = SearchMethod(goals=("common", "rare"))
    alone = SearchOptions(trials=None, patience=3)
    with refused("endless-search", field="--patience", value=3):
        alone.check_end(two)
    alone.check_end(SearchMethod())
    SearchOptions(**end, patience=3).check_end(two)


def test_hours_are_seconds_to_the_searcher() -> None:
    assert SearchOptions(trials=None, hours=0.5, patience=3).limits == Limits(seconds=1800, patience=3)


def test_a_search_comes_back_from_its_folder_as_it_was(tmp_path: Path) -> None:
    """Conditions, lists, steps and fixed values among the parameters."""
    parameters = tune_spaces.load(["cmki-small", "optim", "augment", "towers-small"])
    spec = make_spec(parameters, goals=("common", "rare"), sampler="nsga2", seed=7, storage="sqlite:///x.db")
    assert read_spec(tmp_path) is None
    write_spec(tmp_path, spec.with_run("run-1"))
    assert read_spec(tmp_path) == replace(spec, parent_run="run-1")


def test_a_search_s_file_keeps_its_keys(tmp_path: Path) -> None:
    """Searches that began under an earlier state of the platform go on."""
    tree = json.loads(json.dumps(make_spec(tune_spaces.load(["cmki"])).to_json()))
    assert list(tree) == [
        "spaces", "parameters", "base", "store", "data", "preset", "goals", "sampler", "pruner", "seed", "storage",
        "parent_run",
    ]  # fmt: skip
    assert tree["goals"] == ["val/auroc"]
    assert tree["base"] == load_config("demo", overrides=["train.epochs=9"]).to_dict()
    assert tree["parameters"][2]["choices"] == ["report", "findings", "positives", "positives+negatives"]
    del tree["sampler"]
    with pytest.raises(UserError) as error:
        SearchSpec.from_json(tree, "search.json")
    assert (error.value.code, error.value.field) == ("search-file", "search.json")


def test_another_search_is_not_taken_for_the_one_that_began() -> None:
    began = make_spec(tune_spaces.load(["cmki"]), pruner="asha")
    check_same("s", began, began.with_run("run-1"))
    warmer = load_config("demo", overrides=["train.epochs=9", "loss.temperature=0.3"])
    narrower = [replace(p, high=0.4) if p.field == "loss.temperature" else p for p in began.parameters]
    for changed, field, value in (
        ({"method": SearchMethod(sampler="gp", pruner="asha")}, "sampler", "gp"),
        ({"base": warmer}, "loss.temperature", 0.3),
        ({"store": "/t", "data": "y"}, "data", "y"),
        ({"parameters": narrower}, "parameters", None),
    ):
        with pytest.raises(UserError) as error:
            check_same("s", began, replace(began, **changed))
        assert (error.value.code, error.value.field, error.value.value) == ("other-search", field, value)


def test_points_lie_in_the_space_or_are_refused(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        "loss.temperature: {kind: float, low: 0.01, high: 0.5, log: true, why: a}\n"
        "optim.schedule: {kind: categorical, choices: [constant, cosine], why: a}\n"
        "optim.warmup_steps: {kind: int, low: 1, high: 50, why: a, when: {optim.schedule: cosine}}\n"
    )
    space = tune_spaces.load([str(tmp_path / "space.yaml")])
    (inside,) = parse_points(["loss.temperature=0.1,optim.schedule=constant"])
    assert point_in(space, {**inside, "optim.warmup_steps": 9}) == inside
    assert point_in(space, {**inside, "loss.temperature": 0.9}) is None
    assert point_in(space, {**inside, "optim.schedule": "cosine"}) is None, "it lacks the warm-up"
    for wrong in ("a", "=1", "a=[1"):
        with pytest.raises(UserError) as error:
            parse_points([wrong])
        assert (error.value.code, error.value.field, error.value.value) == ("point-form", "--point", wrong)


def test_trial_names_sort_as_they_were_started() -> None:
    assert trial_name(7) == "trial-0007"
    names = [trial_name(n) for n in (2, 10, 100)]
    assert sorted(names) == names
