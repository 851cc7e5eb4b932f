"""What a search takes over from earlier searches and from trainings that MLflow holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from searches import make_spec

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.config import load_config
from brgsa_platform.search import study as studies
from brgsa_platform.search import warm_start
from brgsa_platform.search.spec import SearchMethod, SearchSpec, write_spec
from brgsa_platform.tracking import client as tracking

pytestmark = pytest.mark.slow

TWO = ("common", "rare")


def spec(*spaces: str, goals: tuple[str, ...] = TWO, data: str = "store-1") -> SearchSpec:
    return make_spec(tune_spaces.load(spaces), goals=goals, data=data)


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


def test_a_training_counts_by_its_best_epoch_in_the_first_goal(tmp_path: Path) -> None:
    training("first", "model.bank.size=200", "loss.temperature=0.07", "data.style=findings", "optim.betas=[0.5,0.999]")
    inside = spec("cmki")
    (known,) = warm_start.learn(["first"], tmp_path, inside)
    assert known.values == {"model.bank.size": 200, "loss.temperature": 0.07, "data.style": "findings"}
    assert known.reached == [0.8, 0.6]
    study = studies.open_study("new", inside, studies.open_storage(tmp_path, inside))
    warm_start.begin(study, inside, [], [known])
    base, trial = study.get_trials()
    assert (trial.values, trial.user_attrs, trial.state.name) == ([0.8, 0.6], {"from": "first"}, "COMPLETE")
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
    assert [known.source for known in warm_start.learn(["search"], tmp_path, new)] == ["search"]
    assert warm_start.learn(["mlflow"], tmp_path, replace(new, data="store-3")) == []
    one_goal = replace(new, method=SearchMethod())
    assert warm_start.learn(["mlflow"], tmp_path, one_goal) == []  # they did not measure it


def test_another_search_s_complete_trials_with_what_its_space_fixes(tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.yaml"
    fixed.write_text("data.style: {value: findings, why: a test}\n")
    other = spec("cmki-small", goals=("auroc",))
    wide = [p for p in other.parameters if p.field != "data.style"]
    other = replace(other, parameters=[*wide, *tune_spaces.load([str(fixed)])])
    folder = tmp_path / "searches" / "other"
    folder.mkdir(parents=True)
    write_spec(folder, other)
    study = studies.open_study("other", other, studies.open_storage(folder, other))
    for state, value in ((TrialState.COMPLETE, 0.8), (TrialState.FAIL, None)):
        trial = study.ask()
        drawn = studies.draw(trial, other.parameters)
        study.tell(trial, value, state=state)
        if value is not None:
            values = drawn
    point = {"model.bank.size": 64, "loss.temperature": 0.2}
    warm_start.add(study, warm_start.EarlierTraining("earlier still", point, [0.9]), other.parameters)
    new = spec("cmki-small", goals=("auroc",))
    (known,) = warm_start.learn(["other"], folder.parent, new)
    assert (known.source, known.values, known.reached) == ("other", values, [0.8])
    assert known.values["data.style"] == "findings"
    for changed, code in (({"data": "store-2"}, "other-data"), ({"method": SearchMethod(goals=TWO)}, "other-goals")):
        with pytest.raises(UserError) as error:
            warm_start.learn(["other"], folder.parent, replace(new, **changed))
        assert (error.value.code, error.value.field, error.value.value) == (code, "--warm-from", "other")


def test_what_tells_nothing_is_refused_by_name(tmp_path: Path) -> None:
    training("abroad", data="store-2")
    training("hot", "loss.temperature=0.9")
    for name, code in (("hot", "nothing-learnt"), ("abroad", "other-data")):
        with pytest.raises(UserError) as error:
            warm_start.learn([name], tmp_path, spec("cmki"))
        assert (error.value.code, error.value.field, error.value.value) == (code, "--warm-from", name)
    with pytest.raises(UserError, match="'nothing'"):
        warm_start.learn(["nothing"], tmp_path, spec("cmki"))
