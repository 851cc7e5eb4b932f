"""What may be tried again, for how long, and what is final."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from brgsa_platform.runtime.waiting import patiently


class Server:
    """Answers after so many failures."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures: Iterator[Exception] = iter(failures)
        self.asked = 0

    def ask(self) -> str:
        self.asked += 1
        for error in self.failures:
            raise error
        return "answer"


def is_away(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


def test_asks_again_until_it_answers() -> None:
    server, waited = Server([ConnectionError("1"), ConnectionError("2")]), list[Any]()
    assert patiently(server.ask, is_away, seconds=60, on_wait=waited.append) == "answer"
    assert server.asked == 3
    assert [str(error) for error in waited] == ["1", "2"]


def test_a_final_failure_is_not_tried_again() -> None:
    server = Server([ConnectionError("away"), PermissionError("final")])
    with pytest.raises(PermissionError):
        patiently(server.ask, is_away, seconds=60)
    assert server.asked == 2


def test_gives_up_in_time_with_the_last_failure() -> None:
    server, started = Server([ConnectionError(str(n)) for n in range(100)]), time.monotonic()
    with pytest.raises(ConnectionError):
        patiently(server.ask, is_away, seconds=1.0)
    assert time.monotonic() - started > 0.7
    assert server.asked <= 3  # at 0, 0.25 and 0.75 s; the next pause would end after 1 s


def test_no_patience_is_one_attempt() -> None:
    server = Server([ConnectionError("away")])
    with pytest.raises(ConnectionError):
        patiently(server.ask, is_away, seconds=0)
    assert server.asked == 1


def test_an_interrupt_ends_the_wait() -> None:
    def interrupted(error: Exception) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patiently(Server([ConnectionError("away")]).ask, is_away, seconds=60, on_wait=interrupted)
