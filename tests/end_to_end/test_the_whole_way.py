"""Scans and reports in, a table of zero-shot diagnoses in MLflow out; every joint is the real one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from privacy import told_of_patients

from brgsa import checkpoint, zeroshot
from brgsa.phantom import ABNORMALITIES, RARE
from brgsa_platform.config import load_config
from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.serving.predict import predict
from brgsa_platform.serving.scorer import ScanOptions
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import connection
from brgsa_platform.training.driver import TrainResult, train

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def trained(place: Path) -> TrainResult:
    config = load_config(
        "demo-smoke", overrides=["train.workers=2", "train.epochs=2", "train.threads=1", "train.keep=1"]
    )
    return train(place / "store", config, out=place / "runs" / "two-workers", preset="demo-smoke")


def test_the_store_holds_each_scan_with_its_labels(place: Path) -> None:
    store = Store.open(place / "store")
    index = store.index(["volume_id", "scan_id", "patient_id", "split", "labels", "summary.positives"]).to_pylist()
    assert {row["split"] for row in index} == {"train", "validation", "test"}
    for key in ("scan_id", "patient_id"):
        splits: dict[str, set[str]] = {}
        for row in index:
            splits.setdefault(row[key], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
    for row in index:
        for name in ABNORMALITIES:
            assert (f"There is {name.lower()}." in row["summary.positives"]) == bool(row["labels"][name])


def test_training_with_two_workers(place: Path, trained: TrainResult) -> None:
    assert [entry["epoch"] for entry in trained.history] == [1, 2]
    assert all(math.isfinite(entry["train/loss"]) and 0 <= entry["val/auroc"] <= 1 for entry in trained.history)
    loaded = checkpoint.load(trained.checkpoint)
    assert loaded.run["data"]["fingerprint"] == Store.open(place / "store").fingerprint
    assert loaded.model.encode_volumes(torch.zeros(1, 1, 60, 60, 30)).plain.shape == (1, 32)
    run = connection.client().get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.bank.size"] == "16"
    assert run.data.tags["brgsa.data"] == loaded.run["data"]["fingerprint"]
    curve = connection.client().get_metric_history(trained.run_id, "val/auroc")
    assert [round(point.value, 6) for point in curve] == [round(entry["val/auroc"], 6) for entry in trained.history]


def test_a_finished_training_is_not_done_again(place: Path, trained: TrainResult) -> None:
    config = load_config("demo-smoke", overrides=["train.workers=2", "train.epochs=2", "train.threads=1"])
    again = train(place / "store", config, out=trained.out, preset="demo-smoke")
    assert again.run_id == trained.run_id
    assert again.history == trained.history


def test_evaluation_ends_as_a_table_in_mlflow(place: Path, trained: TrainResult) -> None:
    result = evaluate(trained.out, place / "store", options=EvaluateOptions(resamples=200), out=place / "evaluation")
    table = json.loads((place / "evaluation" / "evaluation-test.json").read_text())
    assert (place / "evaluation" / "evaluation-test.csv").is_file()
    assert table
    measured = {row.name for row in result.abnormalities if row.measured}
    assert measured >= set(ABNORMALITIES) - set(RARE)
    for row in result.abnormalities:
        if row.measured:
            auroc = row.figures["auroc"]
            assert auroc.low <= auroc.value <= auroc.high
    names = {artifact.path for artifact in connection.client().list_artifacts(result.run_id)}
    assert any(name.endswith(".json") for name in names)
    assert any(name.endswith(".png") for name in names)


def test_one_scan_gets_a_ranked_table(place: Path, trained: TrainResult, tmp_path: Path) -> None:
    scan = next((place / "phantom" / "dataset" / "valid").rglob("*.nii.gz"))
    tables = place / "phantom" / "dataset" / "metadata" / "validation_metadata.csv"
    prediction = predict(trained.checkpoint, scan, options=ScanOptions(tables))
    assert {row.prompt for row in prediction.rows} == set(zeroshot.prompts(Store.open(place / "store").labels))
    shares = [row.percentile for row in prediction.rows]
    assert None not in shares
    assert sorted(shares, reverse=True) == shares
    assert prediction.warnings == []
    # The same scan elsewhere is none of the phantom's: the checkpoint says what it was trained on.
    (warning,) = predict(trained.checkpoint, shutil.copy(scan, tmp_path), options=ScanOptions(tables)).warnings
    assert "synthetic" in warning


def test_no_report_and_no_patient_reaches_mlflow(place: Path, trained: TrainResult) -> None:
    experiment = connection.client().get_experiment_by_name(connection.experiment_name())
    artifacts = Path(experiment.artifact_location.removeprefix("file://"))
    assert told_of_patients(place / "store", artifacts) == []
