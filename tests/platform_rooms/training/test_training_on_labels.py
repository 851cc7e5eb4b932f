"""A training on labels, and that every result of it says so."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from labelled_runs import NAME, config
from safetensors.torch import load_file

from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.evaluation.result import EvaluationResult
from brgsa_platform.tracking import connection, query
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.driver import TrainOptions, TrainResult, train

pytestmark = pytest.mark.ray


def tags_of(run_id: str) -> dict[str, str]:
    (record,) = query.find(f"attributes.run_id = '{run_id}'")
    return record.tags


def test_every_result_says_what_was_supervised(pairs: Path, tmp_path: Path) -> None:
    settings = config("loss={contrast: sigmoid, bias: -2, learn_temperature: true, learn_bias: true}")
    trained = train(pairs, settings, out=tmp_path / "run", options=TrainOptions(quiet=True))
    run = json.loads((trained.checkpoint / "run.json").read_text())
    assert run["supervised"] == [NAME]
    metrics = trained.history[-1]
    assert metrics["train/supervised"] > 0
    weights = load_file(trained.checkpoint / "model.safetensors")
    assert metrics["train/temperature"] == pytest.approx(float(weights["scale.log_temperature"].exp()))
    assert metrics["train/bias"] == pytest.approx(float(weights["scale.bias"]))
    three_steps = 3 * settings.optim.lr  # about the rate each, as Adam's are
    assert 0 < abs(math.log(metrics["train/temperature"] / 0.1)) < 1.2 * three_steps
    assert 0 < abs(metrics["train/bias"] + 2) < 1.2 * three_steps
    assert "val/auroc_unsupervised" not in metrics  # there is no other abnormality
    assert tags_of(trained.run_id)["brgsa.supervised"] == NAME

    result = evaluate(
        trained.checkpoint, pairs, "validation", EvaluateOptions(resamples=5), out=tmp_path / "evaluation"
    )
    assert [row.supervised for row in result.abnormalities] == [True]
    tree = json.loads(Path(result.files["json"]).read_text())
    assert tree["supervised"] == [NAME]
    assert tree["unsupervised"]["abnormalities"] == 0
    assert tags_of(result.run_id)["brgsa.supervised"] == NAME
    check_what_mlflow_shows(trained, result)


def check_what_mlflow_shows(trained: TrainResult, result: EvaluationResult) -> None:
    """Data, models and descriptions of a training and of the evaluation of its best checkpoint."""
    api = connection.client()
    training, evaluation = (api.get_run(run_id) for run_id in (trained.run_id, result.run_id))
    data = {one.dataset.name: one.dataset for one in training.inputs.dataset_inputs}
    assert set(data) == {"store:train", "store:validation"}
    assert {one.digest for one in data.values()} == {training.data.tags["brgsa.data"]}
    assert [one.dataset.name for one in evaluation.inputs.dataset_inputs] == ["store:validation"]
    models = api.search_logged_models([training.info.experiment_id], f"source_run_id = '{trained.run_id}'")
    kept = {f"run-{folder.name}" for _, folder in run_checkpoints.whole(trained.out)}
    assert {model.name for model in models} == kept
    (best,) = [model for model in models if model.tags["brgsa.best"] == "true"]
    figures = {metric.key: metric.value for metric in best.metrics}
    assert figures["val/auroc"] == pytest.approx(trained.best["val/auroc"])
    assert figures["auroc/macro"] == pytest.approx(result.means["macro"]["auroc"].value)
    told = training.data.tags["mlflow.note.content"]
    assert f"{len(trained.history)} of {len(trained.history)} epochs" in told
    assert "not zero-shot" in told
    assert trained.best["epoch"] == int(best.name[-4:])
    assert "Mean AUROC" in evaluation.data.tags["mlflow.note.content"]
