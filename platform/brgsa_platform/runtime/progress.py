"""Progress on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from brgsa_platform.runtime.console import duration

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_LOOKS = 1.0


@contextmanager
def progress(total: int | None, what: str) -> Iterator[Callable[..., None]]:
    """Show how far a piece of work is.

    Yields:
        `advance(n=1, note="")`, which counts n more pieces as done and shows the note, such as a metric, behind the bar.

    Args:
        total: the number of pieces; None where it is unknown.
        what: a few words, such as "prepare volumes".
    """
    if sys.stderr.isatty():
        with _bar(total, what) as advance:
            yield advance
    else:
        yield _Lines(total, what)


@contextmanager
def following(look: Callable[[], tuple[int, str] | None], advance: Callable[..., None]) -> Iterator[None]:
    """Show how far other processes are, from a thread, while the block waits for them.

    Args:
        look: called each second and once more at the end; gives the pieces done so far and a note, None where nothing
            is known yet.
        advance: what `progress` yields.
    """
    stop = threading.Event()

    def follow() -> None:
        shown, last = 0, False
        while not last:
            last = stop.wait(SECONDS_BETWEEN_LOOKS)
            state = look()
            if state is not None:
                done, note = state
                advance(max(0, done - shown), note)
                shown = max(shown, done)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10.0)


@contextmanager
def _bar(total: int | None, what: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bar.update(task, advance=n, note=note)

        yield advance


class _Lines:
    """Prints "what 120/1400, 35.1/s, 2 min 7 s left, note" every few seconds and at the end."""

    def __init__(self, total: int | None, what: str) -> None:
        self.total, self.what, self.done = total, what, 0
        self.started = self.printed = time.monotonic()

    def __call__(self, n: int = 1, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        finished = self.total is not None and self.done >= self.total
        if now - self.printed < SECONDS_BETWEEN_LINES and not finished:
            return
        self.printed = now
        rate = self.done / max(now - self.started, 1e-9)
        text = f"{self.what} {self.done}" + (f"/{self.total}" if self.total is not None else "") + f", {rate:.1f}/s"
        if self.total is not None and self.done and not finished:
            text += f", {duration((self.total - self.done) / rate)} left"
        print(text + (f", {note}" if note else ""), file=sys.stderr, flush=True)
