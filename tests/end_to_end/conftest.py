"""A small phantom on its way: made once in a run of the tests, shared by the slow ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from once import made_once
from sharedray import SharedRay

from brgsa.phantom import write_tree
from brgsa.volumes import Geometry
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.summaries.summarize import summarize

SCANS = 60
CPUS = 5  # two training workers, their data tasks and a trial around them; logical ones, so that it runs on two cores


@pytest.fixture(scope="session")
def made_place(tmp_path_factory: pytest.TempPathFactory, shared_ray: SharedRay) -> Path:
    """A folder with phantom, store and tracking store.

    Each test process has a copy of the store, which searches add styles to.
    """
    made = made_once(tmp_path_factory, "place", lambda folder: _make(folder, shared_ray))
    folder = tmp_path_factory.mktemp("place")
    (folder / "phantom").symlink_to(made / "phantom")
    shutil.copytree(made / "store", folder / "store")
    return folder


def _make(folder: Path, shared_ray: SharedRay) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", _tracking_uri(folder))
        shared_ray.start(CPUS)
        write_tree(folder / "phantom", SCANS, 3, workers=1)
        geometry = Geometry(spacing=(5.625, 5.625, 7.5), shape=(64, 64, 32), antialias=True)
        prepare(folder / "phantom", "ct-rate", folder / "store", PrepareOptions(geometry, validation_fraction=0.25))
        summarize(folder / "store", ["positives"])


@pytest.fixture(scope="module")
def place(made_place: Path, shared_ray: SharedRay) -> Iterator[Path]:
    """That folder; MLFLOW_TRACKING_URI points into it, Ray runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", _tracking_uri(made_place))
        shared_ray.start(CPUS)
        yield made_place


def _tracking_uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlruns-brgsa' / 'mlflow.db'}"
