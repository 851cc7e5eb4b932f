"""One process at a time in a folder: real processes, on a disk and in an object store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from objectstore import s3_server
from refusals import refused

from brgsa.errors import UserError
from brgsa_platform.runtime import locks
from brgsa_platform.runtime.locks import Holder, held
from brgsa_platform.runtime.storage import Folder

pytestmark = pytest.mark.slow

HOLD = """
import sys
from brgsa_platform.runtime import locks
locks.SECONDS_BETWEEN_SIGNS = 0.2
try:
    with locks.held(sys.argv[1], "train"):
        print("held", flush=True)
        sys.stdin.read()
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as door, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{door.port}")
        yield "s3://archive"


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet."""
    if request.param == "disk":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


@contextmanager
def other_process(place: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder until its standard input ends."""
    command = [sys.executable, "-c", HOLD, place]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def claims(place: str) -> list[str]:
    return [name for name in Folder(place).names() if name.startswith("lock-")]


def leave_claim(place: str, **changed: Any) -> None:
    """What a process left behind that differs so from this one."""
    Folder(place).make()
    Folder(place).write("lock-0.json", json.dumps(asdict(replace(Holder.this_process("train"), **changed))))


def test_the_second_process_is_refused_at_once_and_the_first_is_named(place: str) -> None:
    with other_process(place) as first:
        with refused("folder-in-use", field=str(Folder(place))) as caught, held(place, "train"):
            pass
        host, pid, since = caught.value.value  # type: ignore[misc]
        assert (host, pid) == (os.uname().nodename, first.pid)
        for told in (host, str(pid), since):
            assert told in str(caught.value)
        assert len(claims(place)) == 1  # the first one's, which goes on
        first.communicate()
        assert first.returncode == 0
    with held(place, "train"):
        assert len(claims(place)) == 1
    assert not claims(place)


def test_a_killed_process_is_taken_over_even_before_it_is_buried(place: str) -> None:
    with other_process(place) as first:
        first.send_signal(signal.SIGKILL)
        while locks._start_tick(first.pid) is not None:
            time.sleep(0.01)
        os.kill(first.pid, 0)  # its parent has not asked for its end: the number is still taken
        with held(place, "train"):
            assert len(claims(place)) == 1


def test_a_process_number_that_was_given_again_is_no_holder(place: str) -> None:
    leave_claim(place, tick=1)  # this process has its number now
    with held(place, "train"):
        assert len(claims(place)) == 1


def test_one_of_another_machine_is_taken_over_when_it_is_silent(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SECONDS_OF_SILENCE", 3.0)
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_SIGNS", 0.3)
    leave_claim(place, machine="elsewhere", host="elsewhere", pid=1)
    began = time.monotonic()
    with held(place, "train"):
        assert time.monotonic() - began >= 1.5  # an object store counts whole seconds
        assert len(claims(place)) == 1


def test_one_of_another_machine_that_gives_a_sign_of_life_is_named(place: str) -> None:
    over = threading.Event()

    def live() -> None:
        while not over.is_set():
            leave_claim(place, machine="elsewhere", host="elsewhere", pid=1)
            over.wait(1.1)

    leave_claim(place, machine="elsewhere", host="elsewhere", pid=1)
    other = threading.Thread(target=live)
    other.start()
    try:
        with refused("folder-in-use") as caught, held(place, "train"):
            pass
    finally:
        over.set()
        other.join()
    assert caught.value.value[:2] == ("elsewhere", 1)  # type: ignore[index]


def test_a_claim_that_cannot_be_read_holds_until_it_is_silent(tmp_path: Path) -> None:
    file = tmp_path / "lock-0.json"
    file.write_text('{"of another": "version"}')
    an_hour_ago = time.time() - 3600
    os.utime(file, (an_hour_ago, an_hour_ago))
    with held(tmp_path, "train"):
        assert not file.exists()


def test_a_holder_gives_signs_of_life(place: str) -> None:
    with other_process(place):
        (claim,) = claims(place)
        first, end = Folder(place).written_at(claim), time.monotonic() + 60
        while Folder(place).written_at(claim) == first:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_holder_whose_claim_is_taken_away_stops(tmp_path: Path) -> None:
    with other_process(str(tmp_path)) as first:
        (tmp_path / claims(str(tmp_path))[0]).unlink()
        assert first.wait(timeout=60) == 7


def test_of_many_that_come_at_once_never_two_hold(place: str) -> None:
    together = threading.Barrier(6)
    holding, seen = threading.Semaphore(1), list[str]()

    def come() -> None:
        together.wait()
        try:
            with held(place, "train"):
                seen.append("held" if holding.acquire(blocking=False) else "two held")
                time.sleep(2.0)
                holding.release()
        except UserError as error:
            seen.append(error.code)

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6
    assert set(seen) <= {"folder-in-use", "held"}
    assert not claims(place)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("folder-not-writable", field=str(tmp_path / "file" / "run")), held(tmp_path / "file" / "run", "train"):
        pass
