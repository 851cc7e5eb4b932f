"""The tracking store as people address it, and databases that do not open: one sentence, and never a long wait."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from refusals import refused

from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection, databases


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, without a tracking store in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    yield tmp_path
    connection.unchecked_client.cache_clear()


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_variables_count_as_unset(here: Path, monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", empty)
    assert connection.tracking_uri() == f"sqlite:///{here}/mlruns-brgsa/mlflow.db"
    assert connection.experiment_name() == "brgsa"


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("sqlite:///ml.db", "{here}/ml.db"),
        ("sqlite:///below/../ml.db", "{here}/below/../ml.db"),
        (" sqlite:////data/ml.db\n", "/data/ml.db"),
        ("sqlite:///~/ml.db", "{home}/ml.db"),
        ("sqlite:////data/50% off/a#b/ml.db", "/data/50% off/a#b/ml.db"),
    ],
)
def test_an_sqlite_file_is_addressed_by_its_whole_path(
    here: Path, monkeypatch: pytest.MonkeyPatch, given: str, whole: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert connection.tracking_uri() == "sqlite:///" + whole.format(here=here, home=Path.home())


@pytest.mark.parametrize(
    "given", ["http://h:5000", "https://u:p@h/mlflow", "postgresql+psycopg2://h/db", "mysql://h/db"]
)
def test_servers_are_left_as_they_are(given: str) -> None:
    assert databases.store_uri(given) == given


@pytest.mark.parametrize(
    "given",
    ["./mlruns", "mlruns", "file:./mlruns", "file:///data", "databricks", "~/ml.db", "sqlite://", "uc:x", "s3://b"],
)
def test_other_kinds_of_store_are_refused(given: str) -> None:
    with refused("mlflow-kind", field="MLFLOW_TRACKING_URI", value=given):
        databases.store_uri(given)


@pytest.mark.parametrize("folder", ["a?b", "a%20b", "%41"])
def test_a_path_that_would_name_another_file_is_refused(folder: str) -> None:
    with refused("mlflow-path", value=f"/data/{folder}/ml.db"):
        databases.store_uri(f"sqlite:////data/{folder}/ml.db")


@pytest.mark.parametrize("folder", ["a b", "a#b", "50% off", "ä'ö"])
def test_a_folder_with_odd_signs_holds_a_store(here: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/ml.db")
    databases.check_sqlite(here / folder / "ml.db")
    with closing(sqlite3.connect(connection.tracking_uri().removeprefix("sqlite:///"))):
        pass
    assert [file.relative_to(here) for file in here.rglob("*") if file.is_file()] == [Path(folder, "ml.db")]


def test_a_locked_file_is_named_within_seconds(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "SECONDS_TO_UNLOCK", 0.2)
    file = here / "ml.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with refused("mlflow-locked", value=str(file)):
            connection.client(f"sqlite:///{file}")


@pytest.mark.parametrize(
    "content",
    [b"this is a text file and no database at all, however long it may be", b"SQLite format 3\0" + b"x" * 200],
)
def test_a_file_of_another_kind_is_refused_and_stays(here: Path, content: bytes) -> None:
    file = here / "ml.db"
    file.write_bytes(content)
    with refused("mlflow-database", value=str(file)):
        connection.client(f"sqlite:///{file}")
    assert file.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_stays(here: Path) -> None:
    file = here / "ml.db"
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE studies (id INTEGER)")
    with refused("mlflow-database", value=str(file)):
        connection.client(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as other:
        assert [name for (name,) in other.execute("SELECT name FROM sqlite_master")] == ["studies"]


def test_a_database_without_its_driver_or_server_is_refused(here: Path) -> None:
    with refused("mlflow-database", value="postgresql://127.0.0.1:1/db"):
        connection.client("postgresql://user:secret@127.0.0.1:1/db")


MAKE = "from brgsa_platform.tracking import connection; print(connection.experiment_id(connection.client()))"


@pytest.mark.slow
def test_two_verbs_that_start_at_once_make_one_store(here: Path) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{here}/ml.db"}
    command = [sys.executable, "-c", MAKE]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    assert [output for output, _ in outputs] == ["1\n", "1\n"], outputs


@pytest.mark.slow
def test_a_deleted_experiment_is_named_with_its_mend(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///ml.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gone")
    monkeypatch.setenv("MLFLOW_RUN_ID", "of-another-program")
    api = connection.client()
    number = connection.experiment_id(api)
    api.delete_experiment(number)
    with refused("mlflow-experiment-deleted", field="MLFLOW_EXPERIMENT_NAME", value="gone"), tracking.run("train"):
        pass
    api.restore_experiment(number)
    with tracking.run("train") as run:
        assert run.run_id != "of-another-program"


def test_a_proxy_stands_between_us_and_a_server_but_never_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from brgsa_platform.runtime import addresses

    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intern.example")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(connection.Unreachable) as through:
        connection.check("http://mlflow.example:5000")
    assert "http://127.0.0.1:9" in str(through.value)
    assert "secret" not in str(through.value)
    with pytest.raises(connection.Unreachable) as direct:
        connection.check("http://127.0.0.1:1")
    assert "proxy" not in str(direct.value)
    assert addresses.proxy_of("http://intern.example") is None
    assert addresses.proxy_of("http://localhost:5000") is None
