"""A registered checkpoint: what stands in MLflow's registry, and that others can load and serve it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from calibrated import calibrate
from refusals import refused
from tiny_models import LABELS, PROMPTS, save_noise, save_tiny
from typer.testing import CliRunner

from brgsa_platform.cli.main import app
from brgsa_platform.evaluation.calibration.probabilities import FILE
from brgsa_platform.serving.predict import predict
from brgsa_platform.serving.register import register
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection
from brgsa_platform.tracking.lineage import KeptModel

pytestmark = pytest.mark.slow

EVALUATION = {
    "split": "test", "data": "f1n6erpr1nt", "protocol": "honest", "threshold_source": "validation", "resamples": 50,
    "cluster": "scan", "notes": ["One is rare."],
    "macro": {"abnormalities": 1, "auroc": {"value": 0.71, "low": 0.65, "high": 0.77}},
    "abnormalities": {
        "Lung nodule": {"positives": 7, "supervised": False, "auroc": {"value": 0.71, "low": 0.65, "high": 0.77}},
        "Cardiomegaly": {"positives": 0, "supervised": True, "auroc": {"value": None, "low": None, "high": None}},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Registered:
    """A run of one checkpoint in MLflow, registered twice; its scan lies beside it."""

    checkpoint: Path
    run_id: str
    uri: str
    scan: Path
    said: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("registered")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        checkpoint = save_tiny(folder / "run" / "checkpoints" / "epoch-0001", supervised=["Cardiomegaly"])
        (checkpoint.parent / "best.json").write_text(json.dumps({"checkpoint": "epoch-0001"}))
        (checkpoint / "optimizer.pt").write_bytes(b"a training's")
        with tracking.run("train") as run:
            run.log_metrics({"val/auroc": 0.7}, 1)
            run.close()
            run.log_models([KeptModel("run-epoch-0001", 1, True)])
        (folder / "run" / "run.json").write_text(json.dumps({"mlflow_run_id": run.run_id}))
        register(folder / "run", "chest")
        (checkpoint / "evaluation-test.json").write_text(json.dumps(EVALUATION))
        (checkpoint / "scores-test.parquet").write_bytes(b"volume ids")
        calibrate(checkpoint, Pleural_effusion=(1e6, 1.0))
        done = CliRunner().invoke(app, ["register", str(folder / "run"), "--name", "chest"])
        assert done.exit_code == 0, done.output
        yield Registered(checkpoint, run.run_id, uri, save_noise(folder / "scan.nii.gz"), done.output)


@pytest.fixture(scope="module")
def model(made: Registered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The champion as somebody else gets it: a folder."""
    api = connection.client()
    version = api.get_model_version_by_alias("chest", "champion")
    location = api.get_logged_model(version.source.removeprefix("models:/")).artifact_location.removeprefix("file://")
    return Path(shutil.copytree(location, tmp_path_factory.mktemp("elsewhere") / "model"))


def test_the_newest_version_is_the_champion_and_links_to_its_run(made: Registered) -> None:
    api = connection.client()
    versions = {int(one.version): one for one in api.search_model_versions("name = 'chest'")}
    assert set(versions) == {1, 2}
    champion = api.get_model_version_by_alias("chest", "champion")
    assert int(champion.version) == 2
    assert {one.run_id for one in versions.values()} == {made.run_id}
    models = {number: api.get_logged_model(one.source.removeprefix("models:/")) for number, one in versions.items()}
    for number, model in models.items():
        assert [one["version"] for one in json.loads(model.tags["mlflow.modelVersions"])] == [str(number)]
        assert (model.name, model.source_run_id) == ("run-epoch-0001", made.run_id)
        assert {metric.key: metric.value for metric in model.metrics} == {"val/auroc": 0.7}
    # What stands under a version is not written again.
    assert models[1].model_id != models[2].model_id
    folders = [Path(model.artifact_location.removeprefix("file://")) for model in (models[1], models[2])]
    assert "not been evaluated" in (folders[0] / "MODEL_CARD.md").read_text()
    assert api.get_run(made.run_id).data.tags["brgsa.registered"] == "chest/2"
    assert "models:/chest@champion" in made.said


def test_a_user_who_names_no_store_registers_in_the_default_one(
    made: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    done = CliRunner().invoke(app, ["register", str(made.checkpoint), "--name", "chest"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["mlruns-brgsa"]
    uri = f"sqlite:///{tmp_path / 'mlruns-brgsa' / 'mlflow.db'}"
    assert f"MLFLOW_TRACKING_URI={uri} mlflow models serve" in done.output
    assert connection.client(uri).get_model_version_by_alias("chest", "champion").version in (1, "1")
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_card_tells_data_figures_and_limits(made: Registered, model: Path) -> None:
    api = connection.client()
    first, second = (api.get_model_version("chest", number).description for number in ("1", "2"))
    assert (model / "MODEL_CARD.md").read_text() == second
    for card in (first, second):
        assert "Not a medical device" in card
        assert "f1n6erpr1nt" in card
        assert all(label in card for label in LABELS)
    assert "not been evaluated" in first
    assert "| Lung nodule | 7 | 0.710 | 0.650 to 0.770 |" in second
    assert "| Cardiomegaly (supervised) | 0 | - | - |" in second
    assert "protocol `honest`" in second
    assert "One is rare." in second


def test_it_holds_what_scoring_needs_and_no_more(made: Registered, model: Path) -> None:
    names = {path.name for path in (model / "data").rglob("*")}
    assert {"model.safetensors", "run.json"} <= names
    assert not names & {"optimizer.pt", "scores-test.parquet", "evaluation-test.json"}
    assert {path.name for path in (model / "code").iterdir()} == {"brgsa", "brgsa_platform", "tune_spaces"}
    assert not list((model / "code").rglob("__pycache__"))
    described = (model / "MLmodel").read_text()
    for told in ("scan", "prompts", "percentile"):
        assert told in described
    for file in model.rglob("*"):
        if file.is_file():
            assert str(made.scan.parent).encode() not in file.read_bytes(), file


ASK = """
import json, sys
sys.modules["ray"] = None  # importing it raises
from mlflow import pyfunc
import pandas as pd
model = pyfunc.load_model(sys.argv[1])
table = model.predict(pd.DataFrame(json.loads(sys.argv[2])))
import brgsa
print(json.dumps([table.to_dict("records"), brgsa.__file__]))
"""


def test_it_answers_without_ray_and_without_a_server(made: Registered, model: Path, tmp_path: Path) -> None:
    rows = [
        {"scan": str(made.scan), "prompts": ["There is a stent.", PROMPTS[1]]},
        {"scan": "/none.nii", "prompts": []},
    ]
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(model), json.dumps(rows)],
        env={**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answered, code = json.loads(done.stdout.splitlines()[-1])
    assert Path(code).is_relative_to(model / "code")
    expected = {row.prompt: row for row in predict(made.checkpoint, made.scan, rows[0]["prompts"]).rows}
    first, second, missing = answered
    for row in (first, second):
        assert row["score"] == pytest.approx(expected[row["prompt"]].score, abs=1e-6)
        assert row["refused"] == ""
    assert first["percentile"] != first["percentile"]  # nobody knows
    assert second["percentile"] == 1.0
    assert second["probability"] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-5)
    assert first["probability"] != first["probability"]
    assert first["no_probability"]
    assert "/none.nii" in missing["refused"]
    assert missing["score"] != missing["score"]


@pytest.mark.slow
def test_mlflow_serves_it(made: Registered, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port)]
    log = tmp_path / "serve.log"
    path = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where MLflow looks for its server's program
    )
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--model-uri", "models:/chest@champion"],
            env={**os.environ, "MLFLOW_TRACKING_URI": made.uri, "PATH": path},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        asked = {"dataframe_split": {"columns": ["scan"], "data": [[str(made.scan)]]}}
        rows = ask(f"http://127.0.0.1:{port}/invocations", asked, server, log)["predictions"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    expected = {row.prompt: row.score for row in predict(made.checkpoint, made.scan).rows}
    assert {row["prompt"]: row["score"] for row in rows} == pytest.approx(expected, abs=1e-6)
    assert [row["percentile"] for row in rows] == [0.75, 1.0, 0.0]
    assert [row["supervised"] for row in rows] == [True, False, False]


def ask(address: str, question: Any, server: subprocess.Popen[bytes], log: Path) -> Any:
    """The server's answer, as soon as it is up."""
    request = urllib.request.Request(address, json.dumps(question).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()) from error
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def test_names_that_mlflow_does_not_take(made: Registered) -> None:
    with refused("model-name", field="--name", value="a/b"):
        register(made.checkpoint, "a/b")


def test_a_damaged_calibration_is_no_gift(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "imported")
    (checkpoint / FILE).write_text("{")
    with refused("calibration-damaged", field=str(checkpoint / FILE)):
        register(checkpoint, "other")


def test_a_checkpoint_without_a_run_in_mlflow(made: Registered, tmp_path: Path) -> None:
    version = register(save_tiny(tmp_path / "imported"), "other")
    assert (version.number, version.run_id) == ("1", None)
