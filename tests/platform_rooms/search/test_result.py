"""What a search leaves behind, without any training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from searches import make_spec

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.config import RunConfig, load_config, merge
from brgsa_platform.search import study as studies
from brgsa_platform.search import warm_start
from brgsa_platform.search.result import conclude
from brgsa_platform.search.searcher import Search
from brgsa_platform.search.spec import Limits, SearchSpec
from brgsa_platform.search.warm_start import EarlierTraining
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('tracked') / 'mlflow.db'}")
        yield


def search(folder: Path, spec: SearchSpec | None = None) -> Search:
    """One that has learnt of a training better than all of its trials."""
    spec = spec or make_spec(tune_spaces.load(["cmki-small"]), sampler="random")
    storage = studies.open_storage(folder, spec)
    study = studies.open_study("s", spec, storage)
    point = {"model.bank.size": 64, "loss.temperature": 0.2, "data.style": "findings"}
    warm_start.add(study, EarlierTraining("before", point, [0.99]), spec.parameters)
    return Search(spec, study, storage, Limits(trials=3))


def test_the_best_trial_is_one_of_this_search(tmp_path: Path) -> None:
    ours = search(tmp_path)
    drawn = []
    for name, score in (("a", 0.6), ("b", 0.8), ("c", 0.7)):
        trial = ours.next(name)
        assert trial is not None
        drawn.append(trial)
        ours.epoch(name, {"epoch": 1, "val/auroc": score})
        ours.finished(name)
    with tracking.run("tune", name="s") as run:
        result = conclude(run, tmp_path, ours)
    assert result.best == {"number": drawn[1]["number"], "auroc": 0.8, "values": drawn[1]["values"]}
    assert [row["number"] for row in result.trials] == [trial["number"] for trial in drawn]
    metrics = connection.client().get_run(result.run_id).data.metrics
    assert (metrics["trials"], metrics["best/auroc"]) == (3, 0.8)
    best = load_config(str(result.preset))
    assert best.loss.temperature == drawn[1]["values"]["loss.temperature"]
    assert yaml.safe_load(result.preset.read_text())["train"] == ours.spec.base.to_dict()["train"]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_best_trial_that_learned_from_labels_is_told(tmp_path: Path, weight: float) -> None:
    """Its AUROC counts abnormalities of which it is no zero-shot model."""
    spec = make_spec(tune_spaces.load(["cmki-small"]), sampler="random")
    tree = merge(spec.base.to_dict(), {"loss": {"supervised": weight}})
    ours = search(tmp_path, replace(spec, base=RunConfig.from_tree(tree)))
    assert ours.next("a") is not None
    ours.epoch("a", {"epoch": 1, "val/auroc": 0.7})
    ours.finished("a")
    with tracking.run("tune", name="s") as run:
        result = conclude(run, tmp_path, ours)
    assert result.supervised is (weight > 0)
    assert ("labels" in result.summary()) is (weight > 0)
    assert bool(connection.client().get_run(run.run_id).data.tags["brgsa.supervised"]) is (weight > 0)


def test_no_trial_completed(tmp_path: Path) -> None:
    ours = search(tmp_path)
    for name, reason in (("a", "out of memory"), ("b", "its process was killed")):
        assert ours.next(name) is not None
        ours.failed(name, reason)
    with pytest.raises(UserError) as error, tracking.run("tune", name="s") as run:
        conclude(run, tmp_path, ours)
    assert connection.client().get_run(run.run_id).info.status == "FAILED"
    assert (error.value.code, error.value.value) == ("no-trial-completed", "out of memory")
    assert not (tmp_path / "best.yaml").exists()
