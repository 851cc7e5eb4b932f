"""What a run's figures come from, through MLflow's own API on SQLite: data, command, models, description."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from brgsa.errors import UserError
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection, lineage, query
from brgsa_platform.tracking.lineage import Dataset, KeptModel

pytestmark = pytest.mark.slow

TRAIN = Dataset("/data/store", "0123456789abcdef", "train", 24, "training")
VALIDATION = Dataset("/data/store", "0123456789abcdef", "validation", 4, "validation")
REMOTE = Dataset("s3://key:secret@bucket/ct/store", "0123456789abcdef", "test", 8, "evaluation")


@pytest.fixture(autouse=True)
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def logged(run_id: str) -> Any:
    return connection.client().get_run(run_id)


def models_of(run_id: str) -> dict[str, Any]:
    api = connection.client()
    found = api.search_logged_models([logged(run_id).info.experiment_id], f"source_run_id = '{run_id}'")
    return {model.name: model for model in found}


def test_a_run_names_its_data_once_without_credentials() -> None:
    with tracking.run("train", data=[TRAIN, VALIDATION, REMOTE]) as run:
        pass
    with tracking.run("train", data=[TRAIN, VALIDATION, REMOTE], run_id=run.run_id):
        pass
    inputs = logged(run.run_id).inputs.dataset_inputs
    told = {one.dataset.name: one for one in inputs}
    assert len(inputs) == 3
    assert set(told) == {"store:train", "store:validation", "store:test"}
    train = told["store:train"]
    assert (train.dataset.digest, json.loads(train.dataset.profile)) == (TRAIN.fingerprint, {"num_rows": 24})
    assert json.loads(train.dataset.source) == {"uri": "/data/store"}
    assert {tag.key: tag.value for tag in train.tags} == {"mlflow.data.context": "training"}
    assert json.loads(told["store:test"].dataset.source) == {"uri": "s3://bucket/ct/store"}


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/brgsa", "train", "--data", "my store"], "brgsa train --data 'my store'"),
        (["/x/brgsa_platform/cli/__main__.py", "tune"], "brgsa tune"),
        (["brgsa", "--data", "s3://me:secret@host/a?key=hidden", "a.b=http://u:secret@h/x"],
         "brgsa --data s3://host/a a.b=http://h/x"),
        (["studies/study.py", "--patient", "anna"], "study.py"),
    ],
)  # fmt: skip
def test_the_source_is_the_command(argv: list[str], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    with tracking.run("tune") as search:
        pass
    assert logged(search.run_id).data.tags["mlflow.source.name"] == command
    monkeypatch.setattr(sys, "argv", ["/ray/default_worker.py", "--password=x"])
    with tracking.run("trial", parent=search.run_id) as trial:
        pass
    assert logged(trial.run_id).data.tags["mlflow.source.name"] == command


def test_models_are_the_kept_checkpoints_with_their_own_figures() -> None:
    def kept(*epochs: int) -> list[KeptModel]:
        return [
            KeptModel(lineage.model_name("my.run", f"epoch-{n:04d}"), 10 * n, n == 2, {"optim": {"lr": n}})
            for n in epochs
        ]

    with tracking.run("train", data=[TRAIN, VALIDATION]) as run:
        for epoch in (1, 2, 3):
            run.log_metrics({"val/auroc": 0.5 + epoch / 10, "train/loss": 1 / epoch}, 10 * epoch)
        run.log_metrics({"step/loss": 7.0}, 20)
        run.close()
        run.log_models(kept(1, 2))
    first = models_of(run.run_id)
    assert set(first) == {"my-run-epoch-0001", "my-run-epoch-0002"}
    with tracking.run("train", data=[TRAIN, VALIDATION], run_id=run.run_id) as again:
        again.log_models(kept(2, 3))
    models = models_of(run.run_id)
    assert set(models) == {"my-run-epoch-0002", "my-run-epoch-0003"}
    best = models["my-run-epoch-0002"]
    assert best.model_id == first["my-run-epoch-0002"].model_id
    assert (best.status, best.tags["brgsa.best"], best.params) == ("READY", "true", {"optim.lr": "2"})
    figures = {metric.key: metric for metric in best.metrics}
    assert {key: metric.value for key, metric in figures.items()} == {"val/auroc": 0.7, "train/loss": 0.5}
    assert figures["val/auroc"].dataset_name == "store:validation"
    assert figures["train/loss"].dataset_name == "store:train"
    assert models["my-run-epoch-0003"].tags["brgsa.best"] == "false"
    # The run's own curve has each point once.
    assert query.metric_history(run.run_id, "val/auroc") == [(10, 0.6), (20, 0.7), (30, 0.8)]
    outputs = {output.model_id: output.step for output in logged(run.run_id).outputs.model_outputs}
    assert outputs[best.model_id] == 20

    # A registered one stays, though its run no longer keeps it.
    api = connection.client()
    api.set_logged_model_tags(models["my-run-epoch-0003"].model_id, {"mlflow.modelVersions": "[]"})
    with tracking.run("train", data=[TRAIN, VALIDATION], run_id=run.run_id) as again:
        again.log_models(kept(2))
    assert set(models_of(run.run_id)) == set(models)

    # An evaluation's figures are the model's as well, on the data that they were measured on.
    model = tracking.find_model(run.run_id, "my-run-epoch-0002")
    with tracking.run("evaluate", data=[REMOTE], model=model) as evaluation:
        evaluation.log_metrics({"auroc/macro": 0.65})
    (figure,) = [m for m in models_of(run.run_id)["my-run-epoch-0002"].metrics if m.key == "auroc/macro"]
    assert (figure.value, figure.dataset_name, figure.run_id) == (0.65, "store:test", evaluation.run_id)
    assert [m.model_id for m in logged(evaluation.run_id).inputs.model_inputs] == [model]
    assert tracking.find_model(run.run_id, "my-run-epoch-0009") is None
    assert tracking.find_model("0" * 32, "my-run-epoch-0002") is None


def test_models_behind_the_first_page_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "MODELS_AT_ONCE", 2)
    with tracking.run("train") as run:
        run.log_models([KeptModel(f"m{n}", n, False) for n in range(5)])
    ids = {name: model.model_id for name, model in models_of(run.run_id).items()}
    assert {f"m{n}": tracking.find_model(run.run_id, f"m{n}") for n in range(5)} == ids


def test_a_description_tells_a_failure_and_keeps_what_a_person_wrote() -> None:
    def note(run_id: str) -> str:
        return str(logged(run_id).data.tags["mlflow.note.content"])

    def lose(runs: list[tracking.Run]) -> None:
        with tracking.run("train") as run:
            runs.append(run)
            run.describe("Begun.")
            run.describe("Trained.")
            raise UserError("The scan of Anna is lost.", code="scan-lost")

    runs: list[tracking.Run] = []
    with refused("scan-lost"):
        lose(runs)
    (run,) = runs
    assert note(run.run_id) == "Trained.\n\n**Failed**: scan-lost."
    with tracking.run("train", run_id=run.run_id) as again:
        again.describe("Again.")
        assert note(run.run_id) == "Again."
        connection.client().set_tag(run.run_id, "mlflow.note.content", "A person's words.")
        again.describe("At its end.")
    assert note(run.run_id) == "A person's words."


def test_a_server_that_knows_no_models_loses_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*args: object, **more: object) -> None:
        raise RuntimeError("no such endpoint")

    api = connection.client()
    for name in ("create_logged_model", "search_logged_models", "log_inputs"):
        monkeypatch.setattr(type(api), name, unknown)
    with caplog.at_level(logging.WARNING), tracking.run("train", data=[TRAIN]) as run:
        run.log_models([KeptModel("a", 1, True)])
    assert logged(run.run_id).info.status == "FINISHED"
    assert tracking.find_model(run.run_id, "a") is None
    assert [record.args[0] for record in caplog.records if record.args and "take the" in record.msg] == [
        "data",
        "models",
    ]


def test_a_server_that_stays_away_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(*args: object, **more: object) -> None:
        asked.append(args)
        raise connection.Unreachable("It does not answer.", code="mlflow-away")

    with tracking.run("train") as run:
        monkeypatch.setattr(type(connection.client()), "search_logged_models", away)
        run.log_models([KeptModel("a", 1, True)])
        run.log_models([KeptModel("a", 1, True)])
        run.describe("It is not said.")
    assert len(asked) == 1
    assert "mlflow.note.content" not in logged(run.run_id).data.tags
