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
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import finish, until
from rayhead import Head, ray_head
from refusals import refused
from terminals import await_line

from brgsa.phantom import write_tree
from brgsa_platform.jobs.ray_jobs import RayJobs

ROOT = Path(__file__).resolve().parents[3]
TOKEN, PASSWORD = (secrets.token_hex(16) for _ in range(2))  # drawn: this file goes with the jobs, too

pytestmark = pytest.mark.ray

# A job with an entrypoint of its own and followed like any other.
OTHER = """
import sys
from dataclasses import replace
from pathlib import Path
from brgsa_platform.jobs import base, commands, ray_jobs

jobs = ray_jobs.RayJobs(sys.argv[1])
submission = ray_jobs.build_submission(commands.Command("phantom", ("/unused",), {}), Path("."))
jobs.submit(replace(submission, entrypoint=sys.argv[2]))
print(submission.name, flush=True)
sys.exit(base.follow_to_end(jobs, submission.name))
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


def start(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """A process of its own: Ray reads its token once in a process."""
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def brgsa(environment: dict[str, str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    process = start(environment, "-m", "brgsa_platform.cli", *words)
    out, err = finish(process)
    return process.returncode, out, err


@contextlib.contextmanager
def watched() -> Iterator[set[str]]:
    """Command lines that held a secret while this was open."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):  # a Python process lives longer
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


def test_a_phantom_is_prepared_on_the_cluster(head: Head, environment: dict[str, str], place: Path) -> None:
    write_tree(place / "tree", 4, 0)
    words = ["prepare", f"{place / 'tree'}", "--layout", "ct-rate", "--out", f"{place / 'store'}"]
    words += ["--spacing", "9", "9", "12", "--shape", "32", "32", "16"]
    with watched() as seen:
        status, out, err = brgsa(environment, "submit", "--ray", head.address, "--", *words)
    assert status == 0, (out, err)
    assert not seen
    assert (place / "store" / "store.json").is_file()
    assert f"{place / 'store'}" in out  # the verb's own last line
    assert "MLFLOW_TRACKING_PASSWORD" in err  # it says that it does not send it
    (name,) = {word.rstrip(":") for word in err.split() if word.startswith("brgsa-prepare-")}
    del environment["RAY_AUTH_MODE"]  # a token without its mode is sent, too
    status, listed, err_of_list = brgsa(environment, "jobs", "list", "--ray", head.address)
    assert status == 0, err_of_list
    assert name in listed
    for text in (out, err, listed):
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


def test_the_verb_ends_with_the_exit_status_of_its_job(head: Head, environment: dict[str, str], tmp_path: Path) -> None:
    status, out, err = brgsa(environment, "submit", "--ray", head.address, "--", "store", "verify", f"{tmp_path}")
    assert status == 2  # a user's mistake, told by the job
    assert str(tmp_path) in out
    assert "FAILED" in err


def test_platform_is_the_standard_librarys_in_driver_and_workers(head: Head, environment: dict[str, str]) -> None:
    process = start(environment, "-c", OTHER, head.address, f"python -c '{LOOK.replace(chr(39), chr(34))}'")
    out, err = finish(process)
    assert process.returncode == 0, (out, err)
    driver, worker, ours, _system = next(line for line in out.splitlines() if line.startswith("LOOK ")).split()[1:]
    assert Path(driver).parent == Path(worker).parent == Path(sysconfig.get_paths()["stdlib"])
    assert str(head.folder) in ours


def test_no_token(head: Head, environment: dict[str, str]) -> None:
    bare = {k: v for k, v in environment.items() if not k.startswith("RAY_AUTH")} | {"HOME": "/nonexistent"}
    status, out, err = brgsa(bare, "jobs", "list", "--ray", head.address)
    assert (status, out) == (2, "")
    assert "(401)" in err
    assert err.count("\n") == 1


def test_a_wrong_token(head: Head, environment: dict[str, str]) -> None:
    wrong = {**environment, "RAY_AUTH_TOKEN": "another-clusters-token"}
    status, _, err = brgsa(wrong, "submit", "--ray", head.address, "--", "phantom", "/x")
    assert status == 2
    assert "(403)" in err
    assert "another-clusters-token" not in err


def test_a_token_file_that_is_absent_or_empty(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with refused("unreadable-token", field="RAY_AUTH_TOKEN_PATH", value=str(path)):
        RayJobs(head.address)
    path.write_text("\n")
    with refused("empty-token", field="RAY_AUTH_TOKEN_PATH", value=str(path)):
        RayJobs(head.address)


def test_an_unknown_job(head: Head, environment: dict[str, str]) -> None:
    status, _, err = brgsa(environment, "jobs", "stop", "brgsa-none-1", "--ray", head.address)
    assert status == 2
    assert "brgsa-none-1" in err


SLEEPER = "echo early; exec sleep 300"


def test_interrupted_and_stopped_by_another(head: Head, environment: dict[str, str]) -> None:
    first = start(environment, "-c", OTHER, head.address, SLEEPER)
    name = await_line(first, "early")[0]  # the log is streamed: its word came while the job runs
    first.send_signal(signal.SIGINT)
    _, err = finish(first)
    assert first.returncode == 130
    assert f"brgsa jobs logs {name} --ray {head.address} --follow" in err
    assert f"brgsa jobs stop {name} --ray {head.address}" in err

    second = start(environment, "-m", "brgsa_platform.cli", "jobs", "logs", name, "--follow", "--ray", head.address)
    await_line(second, "early")  # the job goes on
    status, out, _ = brgsa(environment, "jobs", "stop", name, "--ray", head.address)
    assert (status, out) == (0, f"{name} is stopped.\n")
    _, err = finish(second)
    assert second.returncode == 130
    assert "RUNNING" in err
    assert "STOPPED" in err
    assert brgsa(environment, "jobs", "status", name, "--ray", head.address)[0] == 130
    assert "early\n" in brgsa(environment, "jobs", "logs", name, "--ray", head.address)[1]
    until(lambda: ["sleep", "300"] not in head.commands())
