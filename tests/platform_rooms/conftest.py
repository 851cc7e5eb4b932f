"""Ray, a tracking store and a small prepared store for the tests of a module; a search in MLflow, and `brgsa ui` on it."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
from searches import make_search

from brgsa.volumes import Geometry
from brgsa_platform.runtime import session
from brgsa_platform.store.prepare import PrepareOptions, prepare

REPORTS = {
    "a1": "There is a nodule of 7 mm in the right upper lobe. No pleural effusion.",
    "a2": "There is a nodule of 7 mm in the right upper lobe. No pleural effusion.",
    "b1": "Bilateral pleural effusion is observed. Heart size is increased.",
    "c1": "No mass or infiltrate was detected in both lungs. Mr Secretname feels well.",
}


@pytest.fixture(scope="module")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray on two logical CPUs, and MLFLOW_TRACKING_URI on a fresh SQLite file."""
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch, session.ray_session(num_cpus=2):
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        yield


@pytest.fixture(scope="module")
def store(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four volumes of three scans, one more in quarantine."""
    folder = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(0)
    rows = [["absent.nii.gz", "Lost.", "secretpatient-z", "train", 0]]
    for number, (name, report) in enumerate(REPORTS.items()):
        hu = rng.integers(-1000, 600, (24, 22, 12)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(hu, np.diag([-4.0, -4.0, 8.0, 1.0])), folder / f"{name}.nii.gz")
        split = ("train", "train", "validation", "test")[number]
        rows.append([f"{name}.nii.gz", report, f"secretpatient-{name[0]}", split, int(name[0] == "b")])
    with (folder / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["volume", "report", "patient_id", "split", "Pleural effusion"], *rows])
    prepare(folder / "scans.csv", "manifest", folder / "store", PrepareOptions(Geometry((4.0, 4.0, 8.0), (20, 20, 10))))
    return folder / "store"


@pytest.fixture(scope="module")
def pairs(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 training scans with two reconstructions each, and four validation scans; summaries of them."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    rows = []
    for scan in range(28):
        ill = scan % 2
        for reconstruction in range(2):
            hu = rng.integers(-1000, 600, (20, 20, 10)).astype(np.int16)
            hu[: 8 * ill] = 300
            name = f"s{scan}r{reconstruction}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(hu, np.diag([-4.0, -4.0, 8.0, 1.0])), folder / name)
            report = f"There is {'a' if ill else 'no'} pleural effusion. The heart is of size {scan}."
            split = "train" if scan < 24 else "validation"
            rows.append([name, report, f"s{scan}", f"p{scan}", split, ill])
    with (folder / "scans.csv").open("w", newline="") as file:
        columns = ["volume", "report", "scan_id", "patient_id", "split", "Pleural effusion"]
        csv.writer(file).writerows([columns, *rows])
    prepare(folder / "scans.csv", "manifest", folder / "store", PrepareOptions(Geometry((4.0, 4.0, 8.0), (20, 20, 10))))
    return folder / "store"


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
