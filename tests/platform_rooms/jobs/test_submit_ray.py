"""`brgsa submit --ray` and `brgsa jobs` against a real Ray head that asks for a token."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rayhead import Head, ray_head
from terminals import await_line

ROOT = Path(__file__).resolve().parents[3]
TOKEN, PASSWORD = (secrets.token_hex(16) for _ in range(2))  # drawn: this file goes with the jobs, too

pytestmark = pytest.mark.ray

# A job with an entrypoint of its own, followed like any other.
OTHER = """
import sys
from dataclasses import replace
from pathlib import Path
from brgsa_platform.jobs import commands
from brgsa_platform.jobs import base as jobs
from brgsa_platform.jobs import ray_jobs as submit

cluster = submit.RayJobs(sys.argv[1])
plan = submit.build_submission(commands.Command("phantom", ("/unused",), {}), Path("."))
cluster.submit(replace(plan, entrypoint=sys.argv[2]))
print(plan.name, flush=True)
if sys.argv[3:] != ["--no-wait"]:
    sys.exit(jobs.follow_to_end(cluster, plan.name))
"""

LOOK = """
import platform, ray
import brgsa_platform

ray.init(log_to_driver=False)
look = ray.remote(num_cpus=1)(lambda: __import__("platform").__file__)
print("LOOK", platform.__file__, ray.get(look.remote()), brgsa_platform.__file__, platform.system())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submitted")


@pytest.fixture(scope="module")
def head(place: Path) -> Iterator[Head]:
    with ray_head(TOKEN, environment={"MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}"}) as started:
        yield started


@pytest.fixture
def environment(head: Head) -> dict[str, str]:
    """A user's: the token's file, MLflow's password, and an address that Ray's client would rather take."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token_file), "RAY_ADDRESS": "127.0.0.1:1"}
    return {**own, "MLFLOW_TRACKING_PASSWORD": PASSWORD, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}


def start(environment: dict[str, str], *words: str, **options: object) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def brgsa(environment: dict[str, str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    process = start(environment, "-m", "brgsa_platform.cli", *words)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def state(head: Head, environment: dict[str, str], name: str) -> str:
    return brgsa(environment, "jobs", "status", name, "--ray", head.address)[1]


@contextlib.contextmanager
def watched() -> Iterator[set[str]]:
    """Command lines that held a secret while this was open."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.03):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    text = path.read_bytes().decode(errors="replace")
                    if TOKEN in text or PASSWORD in text:
                        seen.add(text)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def test_a_phantom_is_made_and_prepared_on_the_cluster(head: Head, environment: dict[str, str], place: Path) -> None:
    with watched() as seen:
        made = brgsa(environment, "submit", "--ray", head.address, "--", "phantom", f"{place / 'tree'}", "--scans", "4")
        assert made[0] == 0, made
    assert "4 scans" in made[1]
    words = ["prepare", f"{place / 'tree'}", "--layout", "ct-rate", "--out", f"{place / 'store'}"]
    words += ["--spacing", "9", "9", "12", "--shape", "32", "32", "16"]
    prepared = brgsa(environment, "submit", "--ray", head.address, "--", *words)
    assert prepared[0] == 0, prepared
    assert (place / "store" / "store.json").is_file()
    assert "Next: brgsa summarize" in prepared[1]
    assert "MLFLOW_TRACKING_PASSWORD: not sent" in prepared[2]
    name = next(word for word in prepared[2].split() if word.startswith("brgsa-prepare-"))
    assert not seen
    for text in (*made[1:], *prepared[1:], brgsa(environment, "jobs", "list", "--ray", head.address)[1]):
        assert TOKEN not in text
        assert PASSWORD not in text
    assert not [p for p in head.folder.rglob("*") if p.is_file() and p != head.token_file and TOKEN in _text(p)]
    assert not [p for p in head.folder.rglob("*") if p.is_file() and PASSWORD in _text(p)]
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as tracked:
        tags = dict(tracked.execute("select key, value from tags where key in ('brgsa.job', 'brgsa.verb')"))
    assert tags == {"brgsa.job": name, "brgsa.verb": "prepare"}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # a socket
        return ""


def test_a_users_mistake_in_the_job_is_status_2(head: Head, environment: dict[str, str], place: Path) -> None:
    status, out, err = brgsa(environment, "submit", "--ray", head.address, "--", "store", "verify", f"{place / 'none'}")
    assert status == 2
    assert "is not a store" in out
    assert "FAILED" in err
    assert "exit status 2" in err


def test_a_failure_in_the_job_is_status_1(head: Head, environment: dict[str, str]) -> None:
    process = start(environment, "-c", OTHER, head.address, "echo before; exit 1")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "before\n" in out
    assert "exit status 1" in err


def test_platform_is_the_standard_librarys_in_driver_and_workers(head: Head, environment: dict[str, str]) -> None:
    process = start(environment, "-c", OTHER, head.address, f"python -c '{LOOK.replace(chr(39), chr(34))}'")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, (out, err)
    driver, worker, ours, _system = next(line for line in out.splitlines() if line.startswith("LOOK ")).split()[1:]
    assert Path(driver).parent == Path(worker).parent == Path(sysconfig.get_paths()["stdlib"])
    assert str(head.folder) in ours


def test_no_token(head: Head, environment: dict[str, str]) -> None:
    bare = {k: v for k, v in environment.items() if not k.startswith("RAY_AUTH")} | {"HOME": "/nonexistent"}
    status, out, err = brgsa(bare, "jobs", "list", "--ray", head.address)
    assert (status, out) == (2, "")
    assert err.startswith(f"brgsa: {head.address} asks for a token (401): set RAY_AUTH_MODE=token and ")
    assert err.count("\n") == 1


def test_a_wrong_token(head: Head, environment: dict[str, str]) -> None:
    wrong = {**environment, "RAY_AUTH_TOKEN": "another-clusters-token"}
    status, _, err = brgsa(wrong, "submit", "--ray", head.address, "--", "phantom", "/x")
    assert status == 2
    assert "refuses the token (403)" in err
    assert "another-clusters-token" not in err


def test_a_token_without_its_mode_is_sent(head: Head, environment: dict[str, str]) -> None:
    status, _, err = brgsa(
        {k: v for k, v in environment.items() if k != "RAY_AUTH_MODE"}, "jobs", "list", "--ray", head.address
    )
    assert status == 0, err


def test_no_file_of_the_token(head: Head, environment: dict[str, str], tmp_path: Path) -> None:
    lost = {**environment, "RAY_AUTH_TOKEN_PATH": f"{tmp_path / 'none'}"}
    status, _, err = brgsa(lost, "jobs", "list", "--ray", head.address)
    assert status == 2
    assert "RAY_AUTH_TOKEN_PATH" in err
    assert "cannot be read" in err


def test_nobody_there(environment: dict[str, str]) -> None:
    status, _, err = brgsa(environment, "jobs", "list", "--ray", "http://127.0.0.1:9")
    assert status == 2
    assert "No Ray dashboard answers at http://127.0.0.1:9" in err


def test_an_unknown_job(head: Head, environment: dict[str, str]) -> None:
    status, _, err = brgsa(environment, "jobs", "stop", "brgsa-none-1", "--ray", head.address)
    assert status == 2
    assert "No job brgsa-none-1" in err


def test_a_dry_run_sends_nothing(head: Head, environment: dict[str, str]) -> None:
    bare = {k: v for k, v in environment.items() if not k.startswith("RAY_AUTH")}
    status, out, err = brgsa(bare, "submit", "--ray", head.address, "--dry-run", "--", "phantom", "/x", "--seed", "7")
    assert status == 0
    assert '"entrypoint": "python -m brgsa_platform.cli phantom /x --seed 7"' in out
    assert PASSWORD not in out + err
    assert "--seed 7" not in brgsa(environment, "jobs", "list", "--ray", head.address)[1]


SLEEPER = "echo early; exec sleep 300"


def test_interrupted_and_stopped_by_another(head: Head, environment: dict[str, str]) -> None:
    first = start(environment, "-c", OTHER, head.address, SLEEPER)
    name = await_line(first, "early")[0]  # the log is streamed: its word came while the job runs
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=30)
    assert first.returncode == 130
    assert f"{name} goes on. Follow it: brgsa jobs logs {name} --ray {head.address} --follow." in err
    assert f"brgsa jobs stop {name} --ray {head.address}" in err

    follow = ("-m", "brgsa_platform.cli", "jobs", "logs", name, "--follow", "--ray", head.address)
    assert "RUNNING" in state(head, environment, name)

    second = start(environment, *follow)
    await_line(second, "early")
    status, out, _ = brgsa(environment, "jobs", "stop", name, "--ray", head.address)
    assert (status, out) == (0, f"{name} is stopped.\n")
    assert "STOPPED" in second.communicate(timeout=30)[1]
    assert second.returncode == 130
    assert brgsa(environment, "jobs", "status", name, "--ray", head.address)[0] == 130
    assert "early\n" in brgsa(environment, "jobs", "logs", name, "--ray", head.address)[1]


def test_nothing_of_a_stopped_job_is_left(head: Head) -> None:
    end = time.monotonic() + 10
    while left := [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "300"]]:
        assert time.monotonic() < end, left
        time.sleep(0.2)
