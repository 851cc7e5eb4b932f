"""`brgsa submit --kuberay` and `brgsa jobs` against a server that speaks the Kubernetes API and holds RayJobs to a schema."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from kube import TOKEN, Kube, kube
from manifests import ray_schema
from terminals import Terminal, await_line

from brgsa.errors import UserError
from brgsa_platform.cli.main import app
from brgsa_platform.jobs import kuberay

VERBS = typer.main.get_command(app).commands
ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
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
def place(tmp_path: Path) -> Path:
    """A folder with k8s/overlays/gpu/jobs, which holds a RayJob for training."""
    write_overlay(tmp_path, JOB)
    return tmp_path


def write_overlay(place: Path, job: dict[str, Any]) -> None:
    folder = place / "k8s" / "overlays" / "gpu" / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(job))
    (folder / "kustomization.yaml").write_text("namespace: brgsa\nresources: [train.yaml]\n")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where MLflow keeps runs and logs; made once, which takes seconds."""
    return tmp_path_factory.mktemp("tracked")


def start(
    place: Path, *words: str, tracked: Path | None = None, terminal: Terminal | None = None
) -> subprocess.Popen[str]:
    """A process of brgsa; without `tracked` it has a tracking server that is down."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    own |= {"KUBECONFIG": str(place / "config"), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    own["MLFLOW_TRACKING_URI"] = f"sqlite:///{tracked}/mlflow.db" if tracked else "http://127.0.0.1:9"
    own["HOME"] = str(place)
    command = [sys.executable, "-m", "brgsa_platform.cli", *words]
    asked, told = (terminal.theirs, terminal.theirs) if terminal else (subprocess.DEVNULL, subprocess.PIPE)
    return subprocess.Popen(command, cwd=place, env=own, text=True, stdin=asked, stdout=subprocess.PIPE, stderr=told)


def brgsa(place: Path, *words: str, tracked: Path | None = None) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    process = start(place, *words, tracked=tracked)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_a_job_that_succeeds(cluster: Kube, place: Path, tracked: Path) -> None:
    cluster.cut = 2  # the stream breaks after two lines
    words = ("train", "--preset", "demo", "optim.lr=1e-3")
    status, out, err = brgsa(place, "submit", "--kuberay", "--", *words, tracked=tracked)
    assert status == 0, err
    assert out == "one\ntwo\nthree\nlast line\n"
    (name,) = cluster.jobs
    made = cluster.jobs[name]["spec"]
    assert made["entrypoint"] == "brgsa train --data /data/store --out /data/runs/paper --preset demo optim.lr=1e-3"
    assert yaml.safe_load(made["runtimeEnvYAML"])["env_vars"] == {"OMP_NUM_THREADS": "4", "BRGSA_JOB": name}
    assert cluster.jobs[name]["metadata"]["labels"] == JOB["metadata"]["labels"]
    assert f"-  entrypoint: {JOB['spec']['entrypoint']}\n+  entrypoint: {made['entrypoint']}\n" in err
    assert f"{name}: SUCCEEDED" in err
    assert "The log is kept in MLflow" in err
    assert TOKEN not in out + err

    cluster.jobs.clear()  # as KubeRay does when the job's time is over
    cluster.pods.clear()
    assert brgsa(place, "jobs", "logs", name, "--kuberay", tracked=tracked)[:2] == (0, out)
    status, _, err = brgsa(place, "jobs", "status", name, "--kuberay")
    assert status == 2
    assert "cleaned up" in err


def test_a_job_that_fails(cluster: Kube, place: Path) -> None:
    cluster.outcome = "FAILED"
    status, out, err = brgsa(place, "submit", "--kuberay", "--name", "mine", "--", "train")
    assert status == 1
    assert out.endswith("last line\n")
    assert "mine: FAILED after" in err
    assert "(AppFailed entrypoint failed)" in err
    assert "The log is not kept in MLflow: The MLflow server at http://127.0.0.1:9" in err


def test_a_dry_run_asks_no_cluster(cluster: Kube, place: Path) -> None:
    (place / "config").unlink()
    status, out, _ = brgsa(place, "submit", "--kuberay", "--dry-run", "--namespace", "lab", "--", "train")
    assert status == 0
    sent = yaml.safe_load(out)
    jsonschema.validate(sent, cluster.schema)
    assert sent["metadata"]["namespace"] == "lab"
    assert sent["spec"]["entrypoint"] == JOB["spec"]["entrypoint"]
    assert not cluster.asked


def test_the_projects_own_overlay(cluster: Kube, place: Path) -> None:
    folder = ROOT / "k8s" / "overlays" / "gpu" / "jobs"
    if not folder.is_dir():
        pytest.skip("k8s/ has no overlay gpu")
    for verb in ("train", "tune"):
        rendered = kuberay.render(str(folder), verb, kuberay.Kubectl())
        made = kuberay.build_manifest(rendered, [verb], VERBS, f"brgsa-{verb}-1", "brgsa")
        jsonschema.validate(made, cluster.schema)
        assert made["spec"]["entrypoint"] == rendered["spec"]["entrypoint"]


def test_a_field_that_the_cluster_does_not_know(cluster: Kube, place: Path) -> None:
    write_overlay(place, {**JOB, "spec": {**JOB["spec"], "entryPoint": "x"}})
    status, _, err = brgsa(place, "submit", "--kuberay", "--", "train")
    assert status == 2
    assert "does not take the RayJob" in err
    assert "entryPoint" in err
    assert not cluster.jobs


def test_a_name_that_is_taken(cluster: Kube, place: Path) -> None:
    cluster.hold.clear()
    first = brgsa(place, "submit", "--kuberay", "--no-wait", "--name", "mine", "--", "train")
    assert first[0] == 0
    assert "brgsa jobs logs mine --kuberay --follow" in first[2]
    again = ("submit", "--kuberay", "--no-wait", "--name", "mine")
    status, _, err = brgsa(place, *again, "--", "train", "--preset", "demo")
    assert status == 2
    assert "--- cluster/mine\n" in err
    assert "--name mine is taken on the cluster" in err
    assert "--preset paper" in cluster.jobs["mine"]["spec"]["entrypoint"]
    assert brgsa(place, *again, "--replace", "--", "train", "--preset", "demo")[0] == 0
    assert "--preset demo" in cluster.jobs["mine"]["spec"]["entrypoint"]


def test_a_cluster_that_is_away_for_a_while(cluster: Kube, place: Path) -> None:
    cluster.hold.clear()
    process = start(place, "submit", "--kuberay", "--name", "mine", "--", "train")
    _until(lambda: "mine-pod" in cluster.pods)
    cluster.refuse = (503, "ServiceUnavailable")
    time.sleep(2.5)
    cluster.refuse = None
    cluster.hold.set()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == "one\ntwo\nthree\nlast line\n"
    assert err.count("Waiting up to 10 minutes") == 1


def test_interrupted_then_stopped(cluster: Kube, place: Path, tracked: Path) -> None:
    cluster.hold.clear()
    process = start(place, "submit", "--kuberay", "--name", "mine", "--", "train")
    await_line(process, "two")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "mine goes on." in err
    assert "mine" in brgsa(place, "jobs", "list", "--kuberay")[1]
    other = start(place, "jobs", "logs", "mine", "--follow", "--kuberay")
    await_line(other, "three")
    status, out, _ = brgsa(place, "jobs", "stop", "mine", "--kuberay", tracked=tracked)
    assert (status, out) == (0, "mine is stopped.\n")
    _, err = other.communicate(timeout=60)
    assert other.returncode == 130
    assert "(gone from the cluster)" in err
    assert not cluster.jobs
    kept = [path.read_text() for path in tracked.rglob("job.log")]
    assert "one\ntwo\nthree\n" in kept


def test_interrupted_at_a_terminal(cluster: Kube, place: Path) -> None:
    cluster.hold.clear()
    terminal = Terminal()
    process = start(place, "submit", "--kuberay", "--name", "mine", "--", "train", terminal=terminal)
    await_line(process, "two")
    process.send_signal(signal.SIGINT)
    terminal.answer("Stop mine on the cluster? Otherwise it goes on. [y/N]", "n\n")
    assert process.wait(60) == 130
    assert "mine" in cluster.jobs
    process = start(place, "jobs", "logs", "mine", "--follow", "--kuberay", terminal=terminal)
    await_line(process, "two")
    process.send_signal(signal.SIGINT)
    terminal.answer("[y/N]", "y\n")
    assert process.wait(60) == 130
    assert not cluster.jobs


def test_what_the_api_may_say(cluster: Kube, place: Path) -> None:
    listing = ("jobs", "list", "--kuberay")
    assert brgsa(place, *listing)[:2] == (0, "No jobs.\n")
    cluster.installed = False
    assert "knows no RayJobs: install KubeRay" in brgsa(place, *listing)[2]
    cluster.refuse = (403, "Forbidden")
    assert "refuses: " in brgsa(place, *listing)[2]
    assert "--context other is not in KUBECONFIG" in brgsa(place, *listing, "--context", "other")[2]
    config = place / "config"
    config.write_text(config.read_text().replace(TOKEN, "wrong"))
    status, _, err = brgsa(place, *listing)
    assert status == 2
    assert "must be logged in" in err
    config.unlink()
    status, _, err = brgsa(place, *listing)
    assert status == 2
    assert "does not answer" in err


def test_overlays_by_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert kuberay.overlay_folder("gpu") == Path("k8s/overlays/gpu/jobs")
    assert kuberay.overlay_folder("k8s/overlays/gpu/jobs") == Path("k8s/overlays/gpu/jobs")
    with pytest.raises(UserError, match=r"--overlay gpus .*did you mean gpu.*there are: gpu"):
        kuberay.overlay_folder("gpus")
    with pytest.raises(UserError, match="holds no RayJob for `brgsa tune`; it holds: train"):
        kuberay.render("gpu", "tune", kuberay.Kubectl())
    (place / "k8s/overlays/gpu/jobs/train.yaml").write_text("kind: [")
    with pytest.raises(UserError, match="cannot be rendered"):
        kuberay.render("gpu", "train", kuberay.Kubectl())


@pytest.mark.parametrize("name", ["Mine", "1st", "mine-", "a" * 48, "a_b", ""])
def test_names_that_kubernetes_does_not_take(name: str) -> None:
    with pytest.raises(UserError, match="is no name for a RayJob"):
        kuberay.build_manifest(JOB, ["train"], VERBS, name, "brgsa")


@pytest.mark.parametrize("word", ["$(id)", "a;b", "`id`", 'say "x"', "v.t'", "a\nb", "a|b", "*"])
def test_arguments_that_shells_would_change(word: str) -> None:
    with pytest.raises(UserError, match="shells would change"):
        kuberay.build_manifest(JOB, ["train", word], VERBS, "mine", "brgsa")


def test_a_relative_place_is_refused() -> None:
    with pytest.raises(UserError, match="--out is runs/a"):
        kuberay.build_manifest(JOB, ["train", "--out", "runs/a"], VERBS, "mine", "brgsa")


def _until(true: Any) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        threading.Event().wait(0.05)
