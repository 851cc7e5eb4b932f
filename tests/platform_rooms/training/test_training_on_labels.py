"""A training on labels, and that every result of it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.tracking import query
from brgsa_platform.training.driver import TrainOptions, train

pytestmark = pytest.mark.ray

NAME = "Pleural effusion"
SETTINGS = [
    "data={style: report, shuffle_buffer: 20}",
    "model.vision={name: cnn3d, volume: [16, 16, 8], width: 4}",
    "train={epochs: 1, batch_size: 8, threads: 1, workers: 0}",
]


def config(*more: str) -> RunConfig:
    return load_config("paper-smoke", overrides=[*SETTINGS, "loss.supervised=0.5", *more])


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
    assert metrics["train/temperature"] != 0.1
    assert metrics["train/bias"] != -2
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
