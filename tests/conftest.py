"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sharedray import SharedRay

# Two test processes share the machine's cores, each with its Ray's; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses this process's Ray bears Ray's mark. What needs a Ray of its own comes last, so that none starts again."""
    for item in items:
        if "shared_ray" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    items.sort(key=lambda item: "ray_of_its_own" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real reports, labels and CT volumes beside the project; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED}")
    return SHARED


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: small models gain nothing from more, which wait for each other where tests share the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[SharedRay]:
    """What starts this process's Ray; `ray_session` and `place` use it."""
    shared = SharedRay()
    yield shared
    shared.stop()


@pytest.fixture(scope="module")
def ray_of_its_own(shared_ray: SharedRay) -> None:
    """No Ray runs in this process when the module begins: it starts one, whose workers get the module's environment."""
    shared_ray.stop()


@pytest.fixture
def another_ray() -> Iterator[None]:
    """A second Ray on the machine: Ray Train's own cleaner of placement groups does not work then."""
    code = "import ray, sys; ray.init(address='local', num_cpus=1); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_ADDRESS": ""},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        while b"up" not in process.stdout.readline():
            assert process.poll() is None
        yield
        process.stdin.close()
