"""`brgsa submit --kuberay` and `brgsa jobs` against a server that speaks the Kubernetes API and holds RayJobs to a schema."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from commandline import brgsa
from kube import TOKEN, Kube, kube
from manifests import ray_schema
from patience import finish, until
from refusals import refused
from terminals import Terminal, await_line

from brgsa_platform.cli.main import app
from brgsa_platform.jobs import kuberay
from brgsa_platform.jobs.base import ClusterUnreachable
from brgsa_platform.jobs.kuberay import Kubectl, KubeJobs

VERBS = typer.main.get_command(app).commands
ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed (Debian: kubernetes-client)"),
]

POD = {"spec": {"containers": [{"name": "ray", "image": "brgsa:0.1.0"}]}}
JOB: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "brgsa-train", "labels": {"kueue.x-k8s.io/queue-name": "gpus"}},
    "spec": {
        "entrypoint": "brgsa train --data /data/store --preset paper --out /data/runs/paper",
        "runtimeEnvYAML": "env_vars:\n  OMP_NUM_THREADS: '4'\n",
        "rayClusterSpec": {"headGroupSpec": {"rayStartParams": {}, "template": POD}},
    },
}


@pytest.fixture
def cluster(tmp_path: Path, shared_data: Path) -> Iterator[Kube]:
    with kube(tmp_path, ray_schema(shared_data / "kuberay-crds", "rayjobs")) as served:
        yield served


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with k8s/overlays/gpu/jobs, which holds a RayJob for training; MLflow's server is down."""
    write_overlay(tmp_path, JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return tmp_path


def write_overlay(place: Path, job: dict[str, Any]) -> None:
    folder = place / "k8s" / "overlays" / "gpu" / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(job))
    (folder / "kustomization.yaml").write_text("namespace: brgsa\nresources: [train.yaml]\n")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of MLflow's database, which takes seconds to make."""
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture
def tracked(database: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where MLflow keeps runs and logs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}/mlflow.db")
    return database


def start(*words: str, terminal: Terminal | None = None) -> subprocess.Popen[str]:
    """A process of brgsa, for what a signal does to it; MLflow's server is down."""
    own = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    own["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    command = [sys.executable, "-m", "brgsa_platform.cli", *words]
    asked, told = (terminal.theirs, terminal.theirs) if terminal else (subprocess.DEVNULL, subprocess.PIPE)
    return subprocess.Popen(command, env=own, text=True, stdin=asked, stdout=subprocess.PIPE, stderr=told)


def test_a_job_that_succeeds(cluster: Kube, tracked: Path) -> None:
    cluster.cut = 2  # the stream breaks after two lines
    words = ("train", "--preset", "demo", "optim.lr=1e-3")
    done = brgsa("submit", "--kuberay", "--", *words)
    assert done.status == 0, done.err
    assert done.out == "one\ntwo\nthree\nlast line\n"
    (name,) = cluster.jobs
    made = cluster.jobs[name]["spec"]
    assert made["entrypoint"] == "brgsa train --data /data/store --out /data/runs/paper --preset demo optim.lr=1e-3"
    assert yaml.safe_load(made["runtimeEnvYAML"])["env_vars"] == {"OMP_NUM_THREADS": "4", "BRGSA_JOB": name}
    assert cluster.jobs[name]["metadata"]["labels"] == JOB["metadata"]["labels"]
    assert f"-  entrypoint: {JOB['spec']['entrypoint']}\n+  entrypoint: {made['entrypoint']}\n" in done.err
    assert f"{name}: SUCCEEDED" in done.err
    assert TOKEN not in done.out + done.err

    cluster.jobs.clear()  # as KubeRay does when the job's time is over
    cluster.pods.clear()
    kept = brgsa("jobs", "logs", name, "--kuberay")
    assert (kept.status, kept.out) == (0, done.out)
    with refused("no-such-job", value=name):
        KubeJobs(Kubectl()).get(name)


def test_a_job_that_fails(cluster: Kube, place: Path) -> None:
    cluster.outcome = "FAILED"
    done = brgsa("submit", "--kuberay", "--name", "mine", "--", "train")
    assert done.status == 1
    assert done.out.endswith("last line\n")
    assert "mine: FAILED after" in done.err
    assert "(AppFailed entrypoint failed)" in done.err
    assert "http://127.0.0.1:9" in done.err.splitlines()[-1]  # why its log is not in MLflow


def test_a_dry_run_asks_no_cluster(cluster: Kube, place: Path) -> None:
    (place / "config").unlink()
    done = brgsa("submit", "--kuberay", "--dry-run", "--namespace", "lab", "--", "train")
    assert done.status == 0, done.err
    sent = yaml.safe_load(done.out)
    jsonschema.validate(sent, cluster.schema)
    assert sent["metadata"]["namespace"] == "lab"
    assert sent["spec"]["entrypoint"] == JOB["spec"]["entrypoint"]
    assert not cluster.asked


def test_the_projects_own_overlay(cluster: Kube) -> None:
    folder = ROOT / "k8s" / "overlays" / "gpu" / "jobs"
    rendered = kuberay.render(str(folder), "tune", Kubectl())
    made = kuberay.build_manifest(rendered, ["tune"], VERBS, "brgsa-tune-1", "brgsa")
    jsonschema.validate(made, cluster.schema)
    assert made["spec"]["entrypoint"] == rendered["spec"]["entrypoint"]


def test_a_field_that_the_cluster_does_not_know(cluster: Kube, place: Path) -> None:
    write_overlay(place, {**JOB, "spec": {**JOB["spec"], "entryPoint": "x"}})
    rendered = kuberay.render("gpu", "train", Kubectl())
    with refused("invalid-rayjob") as error:
        KubeJobs(Kubectl()).create(kuberay.build_manifest(rendered, ["train"], VERBS, "mine", "brgsa"))
    assert "entryPoint" in str(error.value.value)
    assert not cluster.jobs


def test_a_name_that_is_taken(cluster: Kube, place: Path) -> None:
    cluster.hold.clear()
    first = brgsa("submit", "--kuberay", "--no-wait", "--name", "mine", "--", "train")
    assert first.status == 0
    assert "brgsa jobs logs mine --kuberay --follow" in first.err
    again = ("submit", "--kuberay", "--no-wait", "--name", "mine")
    taken = brgsa(*again, "--", "train", "--preset", "demo")
    assert taken.status == 2
    assert "--- cluster/mine\n" in taken.err
    assert "--name mine" in taken.err.splitlines()[-1]
    assert "--preset paper" in cluster.jobs["mine"]["spec"]["entrypoint"]
    assert brgsa(*again, "--replace", "--", "train", "--preset", "demo").status == 0
    assert "--preset demo" in cluster.jobs["mine"]["spec"]["entrypoint"]


def test_a_cluster_that_is_away_for_a_while(cluster: Kube, place: Path) -> None:
    cluster.hold.clear()
    process = start("submit", "--kuberay", "--name", "mine", "--", "train")
    until(lambda: "mine-pod" in cluster.pods, process=process)
    cluster.refuse = (503, "ServiceUnavailable")
    until(lambda: cluster.refusals > 3, process=process)
    cluster.refuse = None
    cluster.hold.set()
    out, err = finish(process)
    assert process.returncode == 0
    assert out == "one\ntwo\nthree\nlast line\n"
    assert err.count("ServiceUnavailable") == 1  # it says once that it waits


def test_interrupted_then_stopped(cluster: Kube, tracked: Path) -> None:
    cluster.hold.clear()
    process = start("submit", "--kuberay", "--name", "mine", "--", "train")
    await_line(process, "two")
    process.send_signal(signal.SIGINT)
    _, err = finish(process)
    assert process.returncode == 130
    assert "brgsa jobs stop mine --kuberay" in err
    assert "mine" in brgsa("jobs", "list", "--kuberay").out
    other = start("jobs", "logs", "mine", "--follow", "--kuberay")
    await_line(other, "three")
    done = brgsa("jobs", "stop", "mine", "--kuberay")
    assert (done.status, done.out) == (0, "mine is stopped.\n")
    _, err = finish(other)
    assert other.returncode == 130
    assert "mine: STOPPED" in err
    assert not cluster.jobs
    kept = [path.read_text() for path in tracked.rglob("job.log")]
    assert "one\ntwo\nthree\n" in kept


def test_interrupted_at_a_terminal(cluster: Kube, place: Path) -> None:
    cluster.hold.clear()
    terminal = Terminal()
    process = start("submit", "--kuberay", "--name", "mine", "--", "train", terminal=terminal)
    await_line(process, "two")
    process.send_signal(signal.SIGINT)
    terminal.answer("Stop mine on the cluster? Otherwise it goes on. [y/N]", "n\n")
    finish(process)
    assert process.returncode == 130
    assert "mine" in cluster.jobs
    process = start("jobs", "logs", "mine", "--follow", "--kuberay", terminal=terminal)
    await_line(process, "two")
    process.send_signal(signal.SIGINT)
    terminal.answer("[y/N]", "y\n")
    finish(process)
    assert process.returncode == 130
    assert not cluster.jobs


def test_what_the_api_may_say(cluster: Kube, place: Path) -> None:
    jobs = KubeJobs(Kubectl())
    assert jobs.list() == []
    cluster.installed = False
    with refused("no-kuberay"):
        jobs.list()
    cluster.refuse = (403, "Forbidden")
    with refused("forbidden", field="KUBECONFIG"):
        jobs.list()
    with refused("unknown-context", field="--context", value="other"):
        KubeJobs(Kubectl("other")).list()
    config = place / "config"
    config.write_text(config.read_text().replace(TOKEN, "wrong"))
    with refused("forbidden", field="KUBECONFIG"):
        jobs.list()
    config.unlink()
    with refused("unreachable", field="KUBECONFIG") as error:
        jobs.list()
    assert isinstance(error.value, ClusterUnreachable)


def test_overlays_by_name(place: Path) -> None:
    assert kuberay.overlay_folder("gpu") == Path("k8s/overlays/gpu/jobs")
    assert kuberay.overlay_folder("k8s/overlays/gpu/jobs") == Path("k8s/overlays/gpu/jobs")
    with refused("unknown-overlay", field="--overlay", value="gpus") as error:
        kuberay.overlay_folder("gpus")
    assert "(did you mean gpu?)" in str(error.value)
    with refused("no-rayjob", field="--overlay", value="tune"):
        kuberay.render("gpu", "tune", Kubectl())
    (place / "k8s/overlays/gpu/jobs/train.yaml").write_text("kind: [")
    with refused("broken-overlay", field="--overlay", value="gpu"):
        kuberay.render("gpu", "train", Kubectl())


@pytest.mark.parametrize("name", ["Mine", "1st", "mine-", "a" * 48, "a_b", ""])
def test_names_that_kubernetes_does_not_take(name: str) -> None:
    with refused("bad-name", field="--name", value=name):
        kuberay.build_manifest(JOB, ["train"], VERBS, name, "brgsa")


@pytest.mark.parametrize("word", ["$(id)", "a;b", "`id`", 'say "x"', "v.t'", "a\nb", "a|b", "*"])
def test_arguments_that_shells_would_change(word: str) -> None:
    with refused("shell-characters", value=word):
        kuberay.build_manifest(JOB, ["train", word], VERBS, "mine", "brgsa")


def test_a_relative_path_is_refused() -> None:
    with refused("relative-path", field="--out", value="runs/a"):
        kuberay.build_manifest(JOB, ["train", "--out", "runs/a"], VERBS, "mine", "brgsa")
