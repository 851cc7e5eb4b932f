"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sharedray import SharedRay

# Two test processes share the machine's cores, each with its Ray's; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and the processes that they start inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The longest files, which start first, for two run at a time. Before them comes what has a Ray of its own, where none runs yet;
# it needs nothing that the next one makes.
LONGEST = (
    "store/test_object_store.py",
    "end_to_end/test_search.py",
    "end_to_end/test_readme.py",
    "end_to_end/test_ablation.py",
    "end_to_end/test_demo.py",
)
# Then what uses the same Ray as those, and the room with the longest of the other files: at the end one process waits for the
# other's last file.
LONG = ("end_to_end", "training")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses this process's Ray bears Ray's mark. The longest files come first."""
    for item in items:
        if "shared_ray" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    folder = item.path.parent.name
    name = f"{folder}/{item.path.name}"
    if name in LONGEST:
        return LONGEST.index(name)
    return len(LONGEST) + (LONG.index(folder) if folder in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """Libraries and tests stay to the end: the garbage collector need not walk through all of them again and again."""
    gc.freeze()


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
