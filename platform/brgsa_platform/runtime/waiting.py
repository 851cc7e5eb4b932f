"""Waiting for a server that is away for a while: an object store, MLflow, a cluster's job server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds between two attempts; each pause is twice the last one

T = TypeVar("T")


def patiently(
    work: Callable[[], T],
    is_away: Callable[[Exception], bool],
    seconds: float,
    on_wait: Callable[[Exception], None] | None = None,
) -> T:
    """Do a piece of work that may be repeated, again while its server is away.

    Args:
        is_away: whether a failure means that the server may answer later; any other failure is final.
        seconds: how long to go on trying; 0 is one attempt.
        on_wait: called with the failure before each pause.

    Raises:
        Exception: what `work` raised last, where it is final or the time is over.
    """
    end, pause = time.monotonic() + seconds, FIRST_PAUSE
    while True:
        try:
            return work()
        except Exception as error:
            if not is_away(error) or time.monotonic() + pause > end:
                raise
            if on_wait is not None:
                on_wait(error)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
