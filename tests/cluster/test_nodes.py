"""A head, two data nodes and two training nodes, each in a network of its own: who does what, and what a lost node costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import Node, Nodes, cluster

from brgsa import files
from brgsa.phantom import write_tree
from brgsa_platform.training import run_checkpoints

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(os.getuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and `ip`"),
]

EPOCHS = 12
DATA, TRAINING = ("data1", "data2"), ("train1", "train2")
TRAIN = (
    "--preset", "demo-smoke", f"train.epochs={EPOCHS}", "train.threads=1", f"train.keep={EPOCHS}",
    "train.max_failures=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    layout = [
        Node("head", "10.77.0.10", 0),
        *(Node(name, f"10.77.0.{11 + i}", 2, "data") for i, name in enumerate(DATA)),
        *(Node(name, f"10.77.0.{21 + i}", 2, "training") for i, name in enumerate(TRAINING)),
    ]
    with cluster(layout) as found:
        yield found


@pytest.fixture(scope="module")
def store(nodes: Nodes) -> Path:
    """Made on the cluster: where its tasks were at work stands in `seen`."""
    write_tree(nodes.folder / "phantom", 60, 3, workers=2)
    store = nodes.folder / "store"
    process = nodes.brgsa(
        "prepare", str(nodes.folder / "phantom"), "--layout", "ct-rate", "--out", str(store), "--spacing", "5.625",
        "5.625", "7.5", "--shape", "64", "64", "32", "--antialias", "--validation-fraction", "0.25",
    )  # fmt: skip
    finish(nodes, process)
    finish(nodes, nodes.brgsa("summarize", str(store), "--style", "positives"))
    return store


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, store: Path) -> Path:
    """A training that nothing happens to; asserts who did what meanwhile."""
    process = nodes.brgsa("train", "--data", str(store), "--out", str(nodes.folder / "calm"), *TRAIN)
    data, training = set(), set()
    while process.poll() is None:
        data |= nodes.places("MapBatches")
        training |= nodes.places("RayTrainWorker")
        time.sleep(0.05)
    finish(nodes, process)
    assert data
    assert data <= set(DATA)
    assert training
    assert training <= set(TRAINING)
    return nodes.folder / "calm"


def finish(nodes: Nodes, process: subprocess.Popen[str]) -> None:
    assert process.wait(timeout=600) == 0, (nodes.folder / "driver.log").read_text()[-4000:]


def wait(process: subprocess.Popen[str], what: Callable[[], Any]) -> Any:
    end = time.monotonic() + 300
    while not (found := what()):
        assert process.poll() is None, "the training ended too early"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


def reached(run: Path, epoch: int) -> bool:
    return run.is_dir() and any(found >= epoch for found, _ in run_checkpoints.whole(run))


def same_end(run: Path, calm: Path) -> None:
    """All epochs, and bit for bit the weights of the training that nothing happened to."""
    last = run_checkpoints.folder_of(run, EPOCHS)
    history = files.read_json(last / "training.json")["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, EPOCHS + 1))
    of_calm = run_checkpoints.folder_of(calm, EPOCHS)
    assert (last / "model.safetensors").read_bytes() == (of_calm / "model.safetensors").read_bytes()


def in_the_middle(nodes: Nodes, store: Path, run: Path) -> tuple[subprocess.Popen[str], str]:
    """A training that has three epochs behind it, and the node where it trains."""
    process = nodes.brgsa("train", "--data", str(store), "--out", str(run), *TRAIN)
    wait(process, lambda: reached(run, 3))
    (node,) = nodes.places("RayTrainWorker")
    return process, node


def test_data_work_and_training_stay_on_their_nodes(undisturbed: Path) -> None:
    assert reached(undisturbed, EPOCHS)


def test_a_training_node_and_a_data_node_die(nodes: Nodes, store: Path, undisturbed: Path) -> None:
    run = nodes.folder / "killed"
    process, victim = in_the_middle(nodes, store, run)
    nodes.nodes[victim].kill()
    wait(process, lambda: reached(run, 6))
    assert nodes.places("RayTrainWorker") <= set(TRAINING) - {victim}
    nodes.nodes["data1"].kill()
    finish(nodes, process)
    same_end(run, undisturbed)
    for name in (victim, "data1"):
        nodes.start(name)


def test_a_training_node_is_cut_off_from_the_network(nodes: Nodes, store: Path, undisturbed: Path) -> None:
    run = nodes.folder / "cut"
    process, victim = in_the_middle(nodes, store, run)
    nodes.nodes[victim].cut_off()
    finish(nodes, process)
    same_end(run, undisturbed)
    nodes.nodes[victim].reconnect()
