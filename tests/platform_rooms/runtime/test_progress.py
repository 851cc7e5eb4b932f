"""Progress as lines, and progress of other processes followed from a thread."""

from __future__ import annotations

import time

import pytest

from brgsa_platform.runtime import progress as progress_file
from brgsa_platform.runtime.progress import following, progress


def test_lines_count_and_tell_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "prepare volumes") as advance:
        advance()
        advance(2, "done")
    (line,) = capsys.readouterr().err.splitlines()  # the first came too soon after the start
    assert line.startswith("prepare volumes 3/3, ")
    assert line.endswith(", done")


def test_time_left_is_told_once_something_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_LINES", 0.0)
    with progress(100, "prepare volumes") as advance:
        advance(0)
        advance(50)
    before, after = capsys.readouterr().err.splitlines()
    assert "left" not in before
    assert after.endswith("0 s left")  # as many again, in as little time


def test_following_tells_the_difference_and_looks_once_more_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_LOOKS", 0.05)
    state: list[tuple[int, str] | None] = [None]
    told: list[tuple[int, str]] = []
    with following(lambda: state[-1], lambda n, note: told.append((n, note))):
        time.sleep(0.2)
        assert not told  # nothing is known yet
        state.append((5, "first"))
        while not told:
            time.sleep(0.01)
        state.append((3, "an older state"))  # is no step back
        while told[-1][1] != "an older state":
            time.sleep(0.01)
        monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_LOOKS", 60.0)
        time.sleep(0.2)
        state.append((9, "last"))
    assert sum(n for n, _ in told) == 9
    assert min(n for n, _ in told) == 0
    assert told[-1] == (4, "last")


def test_following_ends_where_the_block_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), following(lambda: (1, ""), lambda n, note: told.append(n)):
        1 / 0  # noqa: B018
    assert told == [1]
    assert time.monotonic() - started < 10
