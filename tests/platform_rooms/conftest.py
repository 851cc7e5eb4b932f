"""Ray, a tracking store and two small prepared stores; a search in MLflow, with `brgsa ui`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from archives import contents, save_scan, save_table
from once import made_once
from searches import make_search
from sharedray import SharedRay

from brgsa.volumes import Geometry
from brgsa_platform.store.prepare import PrepareOptions, prepare

GEOMETRY = Geometry((4.0, 4.0, 8.0), (20, 20, 10))
REPORTS = {
    "a1": "There is a nodule of 7 mm in the right upper lobe. No pleural effusion.",
    "a2": "There is a nodule of 7 mm in the right upper lobe. No pleural effusion.",
    "b1": "Bilateral pleural effusion is observed. Heart size is increased.",
    "c1": "No mass or infiltrate was detected in both lungs. Mr Secretname feels well.",
}


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking store for all modules that train, prepare or evaluate through `ray_session`."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def ray_session(shared_ray: SharedRay, tracking_uri: str) -> Iterator[None]:
    """Ray on two logical CPUs, and MLFLOW_TRACKING_URI on an SQLite file."""
    with _tracked(tracking_uri):
        shared_ray.start(num_cpus=2)
        yield


@contextmanager
def _tracked(uri: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        yield


@pytest.fixture(scope="module")
def store(ray_session: None, made_store: Path) -> Path:
    """A store of four volumes of three scans, one more in quarantine; to be read, not changed."""
    return made_store


@pytest.fixture(scope="module")
def pairs(ray_session: None, made_pairs: Path) -> Path:
    """A store of 24 training scans with two reconstructions each, and four validation scans; to be read, not changed."""
    return made_pairs


@pytest.fixture(scope="session")
def made_store(shared_ray: SharedRay, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("archive")  # each process its own: its run stands in the process' tracking store
    rng = np.random.default_rng(0)
    rows: list[list[object]] = [["absent.nii.gz", "Lost.", "secretpatient-z", "train", 0]]
    for number, (name, report) in enumerate(REPORTS.items()):
        hu = rng.integers(-1000, 600, (24, 22, 12)).astype(np.int16)
        save_scan(folder / f"{name}.nii.gz", hu)
        split = ("train", "train", "validation", "test")[number]
        rows.append([f"{name}.nii.gz", report, f"secretpatient-{name[0]}", split, int(name[0] == "b")])
    save_table(folder / "scans.csv", ("volume", "report", "patient_id", "split", "Pleural effusion"), rows)
    _prepare(folder, shared_ray, tracking_uri)
    yield from _unchanged(folder / "store")


@pytest.fixture(scope="session")
def made_pairs(shared_ray: SharedRay, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    def make(folder: Path) -> None:
        rng = np.random.default_rng(0)
        rows: list[list[object]] = []
        for scan in range(28):
            ill = scan % 2
            for reconstruction in range(2):
                hu = rng.integers(-1000, 600, (20, 20, 10)).astype(np.int16)
                hu[: 8 * ill] = 300
                name = f"s{scan}r{reconstruction}.nii.gz"
                save_scan(folder / name, hu)
                report = f"There is {'a' if ill else 'no'} pleural effusion. The heart is of size {scan}."
                split = "train" if scan < 24 else "validation"
                rows.append([name, report, f"s{scan}", f"p{scan}", split, ill])
        columns = ("volume", "report", "scan_id", "patient_id", "split", "Pleural effusion")
        save_table(folder / "scans.csv", columns, rows)
        _prepare(folder, shared_ray, tracking_uri)

    yield from _unchanged(made_once(tmp_path_factory, "pairs", make) / "store")


def _prepare(folder: Path, shared_ray: SharedRay, tracking_uri: str) -> None:
    with _tracked(tracking_uri):
        shared_ray.start(num_cpus=2)
        prepare(folder / "scans.csv", "manifest", folder / "store", PrepareOptions(GEOMETRY))


def _unchanged(store: Path) -> Iterator[Path]:
    """Lend the store to the session's tests, and see that none has changed it."""
    made = contents(store)
    yield store
    assert contents(store) == made, f"a test changed {store}, which all modules share"


@dataclass(frozen=True)
class Searched:
    """A search in MLflow: its folder, tracking store, and run name → run id."""

    folder: Path
    uri: str
    ids: dict[str, str]


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """What `make_search` logs, in SQLite."""
    folder = tmp_path_factory.mktemp("searched")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        return Searched(folder, uri, make_search(folder))


@pytest.fixture(scope="session")
def search_server(searched: Searched) -> Iterator[str]:
    """Address of the server that `brgsa ui` starts on that store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", f"from brgsa_platform.tracking.ui import ui; ui(port={port})"]
    log = (searched.folder / "server.log").open("wb")
    server = subprocess.Popen(
        command, cwd=searched.folder, env={**os.environ, "MLFLOW_TRACKING_URI": searched.uri}, stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 240
        while not _answers(address):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)
        log.close()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
