"""What a search takes over from trainings that MLflow holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.config import load_config
from brgsa_platform.search import study, warm_start
from brgsa_platform.search.spec import SearchSpec
from brgsa_platform.tracking import client as tracking

GOALS = ["val/auroc_common", "val/auroc_rare"]


def spec(*spaces: str, goals: list[str] = GOALS, data: str = "store-1") -> SearchSpec:
    parameters = tune_spaces.load(spaces)
    return SearchSpec(
        spaces=list(spaces), parameters=[json.loads(json.dumps(asdict(p))) for p in parameters],
        base=load_config("demo").to_dict(), store="store", data=data, preset="demo", goals=goals, sampler="tpe",
        pruner="none", seed=0,
    )  # fmt: skip


def training(name: str, *settings: str, data: str = "store-1", verb: str = "train", parent: str | None = None) -> str:
    """A tracked training of three epochs, the second of them the best in common abnormalities."""
    config = load_config("demo", overrides=list(settings))
    with tracking.run(verb, name=name, params=config.to_dict(), tags={"brgsa.data": data}, parent=parent) as run:
        for step, common, rare in ((10, 0.5, 0.9), (20, 0.8, 0.6), (30, 0.7, 0.7)):
            run.log_metrics({"val/auroc_common": common, "val/auroc_rare": rare}, step=step)
        return run.run_id


@pytest.fixture(scope="module", autouse=True)
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('tracked') / 'mlflow.db'}")
        yield


def begun(found: SearchSpec, folder: Path, learnt: list[warm_start.Known]) -> Any:
    made = study.open_study(
        "new", folder, storage=None, goals=["common", "rare"][: len(found.goals)],
        sampler=study.make_sampler("random", 0, found.space()), pruner="none", epochs=3,
    )  # fmt: skip
    warm_start.begin(made, found, [], learnt)
    return made


def test_a_training_counts_by_its_best_epoch_in_the_first_goal(tmp_path: Path) -> None:
    training("first", "model.bank.size=200", "loss.temperature=0.07", "data.style=findings", "optim.betas=[0.5,0.999]")
    inside = spec("cmki")
    (known,) = warm_start.learn(["first"], tmp_path, inside)
    assert known.values == {"model.bank.size": 200, "loss.temperature": 0.07, "data.style": "findings"}
    assert known.reached == [0.8, 0.6]
    (trial, base) = begun(inside, tmp_path, [known]).get_trials()[::-1]
    assert (trial.values, trial.user_attrs["from"], trial.state.name) == ([0.8, 0.6], "first", "COMPLETE")
    assert base.state.name == "WAITING"


def test_a_list_is_known_by_its_text(tmp_path: Path) -> None:
    (tmp_path / "betas.yaml").write_text(
        "optim.betas: {kind: categorical, choices: [[0.5, 0.999], [0.9, 0.98]], why: a test}\n"
        "optim.lr: {kind: float, low: 1.0e-5, high: 1.0, log: true, why: a test}\n"
    )
    training("listed", "optim.betas=[0.5,0.999]", "optim.lr=0.00005")
    (known,) = warm_start.learn(["listed"], tmp_path, spec(str(tmp_path / "betas.yaml")))
    assert known.values == {"optim.betas": "[0.5, 0.999]", "optim.lr": 5e-05}


def test_all_that_is_tracked_on_this_data(tmp_path: Path) -> None:
    here = "store-4"
    training("here", data=here)
    training("elsewhere", data="store-5")
    training("outside", "loss.temperature=0.9", data=here)
    with tracking.run("tune", name="search", tags={"brgsa.data": here}) as search:
        training("trial-0000", "model.bank.size=64", verb="trial", parent=search.run_id, data=here)
    with pytest.raises(RuntimeError), tracking.run("train", name="failed", tags={"brgsa.data": here}):
        raise RuntimeError
    new = spec("cmki", data=here)
    sizes = [known.values["model.bank.size"] for known in warm_start.learn(["mlflow"], tmp_path, new)]
    assert sizes == [128, 64]
    assert [known.whence for known in warm_start.learn(["search"], tmp_path, new)] == ["search"]
    assert warm_start.learn(["mlflow"], tmp_path, replace(new, data="store-3")) == []
    one_goal = replace(new, goals=["val/auroc"])
    assert warm_start.learn(["mlflow"], tmp_path, one_goal) == []  # they did not measure it


def test_what_tells_nothing_is_refused_by_name(tmp_path: Path) -> None:
    training("abroad", data="store-2")
    training("hot", "loss.temperature=0.9")
    for name, words in (
        ("hot", "None of the 1 finished trainings of hot lies in this space"),
        ("abroad", "The run abroad was not on this data"),
        ("nothing", "There is no run 'nothing' in experiment brgsa"),
    ):
        with pytest.raises(UserError, match=words):
            warm_start.learn([name], tmp_path, spec("cmki"))
