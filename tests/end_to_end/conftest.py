"""A small phantom on its way: made once, shared by the slow tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from brgsa.phantom import write_tree
from brgsa.volumes import Geometry
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.summaries.summarize import summarize

SCANS = 60


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with phantom, store and tracking store; MLFLOW_TRACKING_URI points into it, Ray runs."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlruns-brgsa' / 'mlflow.db'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        # Two training workers, their data tasks and a trial around them; logical CPUs, so that it runs on two cores.
        with ray_session(num_cpus=5):
            write_tree(folder / "phantom", SCANS, 3, workers=2)
            geometry = Geometry(spacing=(5.625, 5.625, 7.5), shape=(64, 64, 32), antialias=True)
            prepare(folder / "phantom", "ct-rate", folder / "store", PrepareOptions(geometry, validation_fraction=0.25))
            summarize(folder / "store", ["positives"])
            yield folder
