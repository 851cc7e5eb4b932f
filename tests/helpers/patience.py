"""Time limits that a busy machine does not break: they are given in seconds of a free machine.

A limit tells a test that hangs from one that waits for its turn. So the limits stretch with the machine's load, and none says
how fast something is.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def slowdown() -> float:
    """How many times longer than on a free machine work takes now: processes that want to run, for each core; at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def stretched(seconds: float) -> float:
    """A limit in seconds, for what takes a number: `seconds` of a free machine, at the load of this moment."""
    return seconds * slowdown()


class Patience:
    """A supply of seconds of a free machine. On a busy one a second uses up only its share, as the load is then."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._seen = time.monotonic()

    def over(self) -> bool:
        """Whether the supply is used up; to be asked again and again while waiting."""
        now = time.monotonic()
        self._left -= (now - self._seen) / slowdown()
        self._seen = now
        return self._left < 0


def until(
    condition: Callable[[], T],
    seconds: float = 60,
    *,
    process: subprocess.Popen[Any] | None = None,
    pause: float = 0.05,
) -> T:
    """The first true value of `condition`; the test fails when none comes in time, or when `process` ends before.

    Args:
        seconds: of a free machine.
        pause: seconds between two questions.
    """
    patience = Patience(seconds)
    while not (value := condition()):
        if process is not None and process.poll() is not None:
            pytest.fail(
                f"the process ended with status {process.returncode} before it came to that:\n{_last_words(process)}"
            )
        if patience.over():
            pytest.fail(f"waited in vain, for {seconds:.0f} s of a free machine")
        time.sleep(pause)
    return value


def _last_words(process: subprocess.Popen[Any]) -> str:
    """The end of what an ended process wrote to its pipes."""
    try:
        said = process.communicate(timeout=stretched(10))
    except subprocess.TimeoutExpired as error:  # a child of its own still holds them
        said = error.output, error.stderr
    return "\n".join(text if isinstance(text, str) else text.decode(errors="replace") for text in said if text)[-4000:]


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[str, str]:
    """Standard output and error of a process that ends by itself; killed, and the test fails, when it does not.

    Args:
        seconds: of a free machine.
    """
    patience = Patience(seconds)
    while True:
        try:
            out, err = process.communicate(timeout=1.0)
            return out or "", err or ""
        except subprocess.TimeoutExpired:
            if patience.over():
                process.kill()
                out, err = process.communicate()
                pytest.fail(f"no end after {seconds:.0f} s of a free machine\n{out or ''}\n{err or ''}")
