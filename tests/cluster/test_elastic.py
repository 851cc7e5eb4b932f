"""A training on one or two nodes, as many as there are: a node dies, comes back, and is told that it will go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import Node, Nodes, cluster, within

from brgsa import files
from brgsa.phantom import write_tree
from brgsa_platform.tracking import connection
from brgsa_platform.training import run_checkpoints

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(os.getuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and `ip`"),
]

TRAIN = (
    "--preset", "demo-smoke", "train.workers=[1, 2]", "train.epochs=400", "train.threads=1", "train.keep=1",
    "data={loader: torch, cpus: 2}", "optim.schedule=constant", "train.max_failures=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    layout = [Node("head", "10.77.0.10", 0), Node("one", "10.77.0.11", 1), Node("two", "10.77.0.12", 1)]
    with cluster(layout) as found:
        yield found


@pytest.fixture(scope="module")
def store(nodes: Nodes) -> Path:
    write_tree(nodes.folder / "phantom", 60, 3, workers=2)
    store = nodes.folder / "store"
    process = nodes.brgsa(
        "prepare", str(nodes.folder / "phantom"), "--layout", "ct-rate", "--out", str(store), "--spacing", "5.625",
        "5.625", "7.5", "--shape", "64", "64", "32", "--antialias", "--validation-fraction", "0.25",
    )  # fmt: skip
    assert process.wait(timeout=600) == 0, said(nodes)
    assert nodes.brgsa("summarize", str(store), "--style", "positives").wait(timeout=600) == 0, said(nodes)
    return store


def said(nodes: Nodes) -> str:
    return (nodes.folder / "driver.log").read_text()[-4000:]


def wait(nodes: Nodes, process: subprocess.Popen[str], is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not is_so():
        assert process.poll() is None, said(nodes)
        assert time.monotonic() < end, f"waited too long: {said(nodes)}"
        time.sleep(0.1)


def give_notice(nodes: Nodes, node: Node) -> None:
    """Tell Ray that a node will go, as a pod that ends does."""
    ray = str(Path(sys.executable).with_name("ray"))
    find = f"""
        import ray
        ray.init(log_to_driver=False)
        (node,) = [n for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == {node.address!r}]
        print(node["NodeID"])
    """
    found = on_head(nodes, [sys.executable, "-c", textwrap.dedent(find)]).split()[-1]
    drain = [ray, "drain-node", "--node-id", found, "--deadline-remaining-seconds", "60"]
    on_head(nodes, [*drain, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the node will go"])


def on_head(nodes: Nodes, command: list[str]) -> str:
    done = subprocess.run(within(nodes.nodes["head"], command), env=nodes.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_shrinks_grows_and_leaves_a_node_that_goes(
    nodes: Nodes, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL to a node is its one failure; leaving a node of which Ray gives notice is none. Every epoch is trained."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nodes.environment["MLFLOW_TRACKING_URI"])
    run = nodes.folder / "run"
    process = nodes.brgsa("train", "--data", str(store), "--out", str(run), *TRAIN)

    def workers() -> list[float]:
        if not (run / "run.json").is_file():
            return []
        run_id = files.read_json(run / "run.json")["mlflow_run_id"]
        return [point.value for point in connection.client().get_metric_history(run_id, "train/workers")]

    def epochs() -> int:
        return max((epoch for epoch, _ in run_checkpoints.whole(run)), default=0)

    def trains_with(history: list[float]) -> None:
        wait(nodes, process, lambda: workers() == history)
        since = epochs()
        wait(nodes, process, lambda: epochs() > since + 1)

    trains_with([2])
    nodes.nodes["two"].kill()
    trains_with([2, 1])
    nodes.start("two")
    trains_with([2, 1, 2])
    give_notice(nodes, nodes.nodes["two"])
    trains_with([2, 1, 2, 1])
    assert nodes.places("RayTrainWorker") == {"one"}
    process.terminate()
    assert process.wait(timeout=120) == 130, said(nodes)
    newest = run_checkpoints.latest(run)
    assert newest is not None
    history = files.read_json(newest / "training.json")["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, len(history) + 1))
