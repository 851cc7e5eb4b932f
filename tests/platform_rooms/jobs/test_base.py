"""Following a job, whatever runs it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from brgsa_platform.jobs import base as jobs
from brgsa_platform.runtime.console import INTERRUPTED


@pytest.mark.parametrize(
    ("state", "of_process", "status"),
    [
        ("RUNNING", None, 0),
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),  # a user's mistake
        ("FAILED", None, 1),  # KubeRay tells none
        ("FAILED", -9, 1),
        ("FAILED", 137, 1),
        ("STOPPED", None, INTERRUPTED),
    ],
)
def test_a_verb_ends_as_its_job_did(state: str, of_process: int | None, status: int) -> None:
    assert jobs.Job("j", state, state, process_exit_status=of_process).exit_status == status


def test_a_job_in_a_line() -> None:
    assert jobs.Job("j", "RUNNING", "Running RUNNING", started=0.0).summary() == "j: Running RUNNING"
    ended = jobs.Job("j", "FAILED", "FAILED", started=1000.0, ended=4720.0, message="exit status 2\nmore")
    assert ended.summary() == "j: FAILED after 1 h 2 min (exit status 2)"


@pytest.fixture
def default_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "following puts back what it found"
    signal.signal(signal.SIGINT, before)


class Closing:
    """Ctrl-C comes just while this is finalized, where Python prints an exception and forgets it."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class Endless:
    options, saves_logs = "--ray http://head:8265", False

    def __init__(self) -> None:
        self.asked = 0

    def get(self, name: str) -> jobs.Job:
        self.asked += 1
        if self.asked == 2:
            Closing()
        assert self.asked < 5, "the interrupt was lost"
        return jobs.Job(name, "RUNNING", "RUNNING")

    def list(self) -> list[jobs.Job]:
        return []

    def log(self, name: str) -> None:
        return None

    def stop(self, name: str) -> None:
        raise AssertionError("nobody asked for that")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("default_interrupts")
def test_a_ctrl_c_that_python_loses_in_a_finalizer_still_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    assert jobs.follow_to_end(Endless(), "brgsa-train-1") == INTERRUPTED
    assert "brgsa-train-1 goes on. Follow it: brgsa jobs logs brgsa-train-1" in capsys.readouterr().err
