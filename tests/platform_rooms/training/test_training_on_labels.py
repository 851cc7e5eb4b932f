"""A training on labels, and that every result of it says so."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from labelled_runs import NAME, config
from safetensors.torch import load_file

from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.tracking import query
from brgsa_platform.training.driver import TrainOptions, train

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
