"""A running search on standard error: one quiet table on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brgsa_platform.runtime.progress import SECONDS_BETWEEN_LINES

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LINES = 10  # trials shown at a time
ENDED = ("complete", "pruned", "failed")
STYLES = {"running": "bold", "pruned": "dim", "failed": "red"}


@dataclass(frozen=True)
class TrialLine:
    """What a trial is and how far it came.

    Attributes:
        params: searched field by its full name → value.
        epoch, epochs: finished, and at most to run.
        value, best: objective now and at its best epoch so far; None before the first epoch.
        state: running, complete, pruned or failed.
        reason: why it was pruned or failed.
    """

    number: int
    params: Mapping[str, Any]
    epoch: int = 0
    epochs: int = 0
    value: float | None = None
    best: float | None = None
    state: str = "running"
    reason: str = ""


@contextmanager
def search_table(
    trials: int,
    epochs: int,
    *,
    objective: str = "AUROC",
    maximize: bool = True,
    before: Iterable[TrialLine] = (),
    limit_epochs: int | None = None,
    limit_seconds: float | None = None,
    console: Console | None = None,
) -> Iterator[SearchTable]:
    """Show a search while it runs; yields the table to `update`.

    Args:
        trials: in all; 0 where something else ends the search.
        epochs: that a trial runs at most.
        before: trials of an earlier start of this search; they count, but tell nothing of today's speed.
        limit_epochs, limit_seconds: of all trials together, and of wall clock from now; what else ends the search.
        console: where to draw; default standard error.
    """
    from rich.console import Console
    from rich.live import Live

    console = console or Console(file=sys.stderr)
    table = SearchTable(
        trials,
        epochs,
        objective=objective,
        maximize=maximize,
        before=before,
        limit_epochs=limit_epochs,
        limit_seconds=limit_seconds,
    )
    if console.is_terminal:
        with Live(table, console=console, refresh_per_second=2, vertical_overflow="crop"):
            yield table
        return

    def tell() -> None:
        console.print(table.headline(), highlight=False, markup=False, soft_wrap=True)

    table.every_few_seconds = _Seldom(tell)
    yield table
    tell()


class SearchTable:
    """The search's trials as they are known now; rendered anew each time that the terminal asks."""

    def __init__(
        self,
        trials: int,
        epochs: int,
        *,
        objective: str,
        maximize: bool,
        before: Iterable[TrialLine] = (),
        limit_epochs: int | None = None,
        limit_seconds: float | None = None,
    ) -> None:
        self.trials, self.epochs, self.objective, self.maximize = trials, epochs, objective, maximize
        self.limit_epochs, self.limit_seconds = limit_epochs, limit_seconds
        self.lines = {line.number: line for line in before}  # in the order in which they were last heard of
        self.spent_before = self._spent()
        self.started = time.monotonic()
        self.every_few_seconds: _Seldom | None = None

    def update(self, line: TrialLine) -> None:
        """Tell what a trial does now."""
        # A renderer in another thread sees the old or the new trials, never a dictionary that changes under it.
        self.lines = {**{number: old for number, old in self.lines.items() if number != line.number}, line.number: line}
        if self.every_few_seconds is not None:
            self.every_few_seconds()

    def summary(self) -> str:
        """How many trials ended how, the best one, and the epochs spent."""
        count = Counter(line.state for line in self.lines.values())
        ended = sum(count[state] for state in ENDED)
        states = [f"{count[state]} {state}" for state in ("running", "pruned", "failed") if count[state]]
        text = f"search: {ended} of {self.trials} trials done" if self.trials else f"search: {ended} trials done"
        text += f" ({', '.join(states)})" if states else ""
        best = self.best()
        if best is not None:
            text += f", best {self.objective} {best.best:.3f} in trial {best.number}"
        return f"{text}, {self._spent()} epochs"

    def headline(self) -> str:
        """The summary, and the time left where it can be told."""
        left = self.seconds_left()
        return self.summary() + (f", {_duration(left)} left" if left else "")

    def best(self) -> TrialLine | None:
        """The complete trial with the best objective; while none is complete, the best of those that run."""
        for states in (("complete",), ("running",)):
            found = [line for line in self.lines.values() if line.state in states and line.best is not None]
            if found:
                return (max if self.maximize else min)(found, key=lambda line: line.best or 0.0)
        return None

    def seconds_left(self) -> float | None:
        """From today's epochs a second and the epochs that remain; None before the first epoch, or where no limit tells.

        A trial to come is taken to run as many epochs as those that ended did: pruning makes them fewer.
        """
        done, passed = self._spent() - self.spent_before, time.monotonic() - self.started
        ends = [] if self.limit_seconds is None else [self.limit_seconds - passed]
        if done <= 0:
            return None
        if self.limit_epochs is not None:
            ends.append((self.limit_epochs - self._spent()) * passed / done)
        if self.trials:
            lines = self.lines.values()
            ended = [line.epoch for line in lines if line.state in ("complete", "pruned")]
            usual = sum(ended) / len(ended) if ended else self.epochs
            running = sum(max(0.0, usual - line.epoch) for line in lines if line.state == "running")
            ends.append((running + max(0, self.trials - len(self.lines)) * usual) * passed / done)
        return max(0.0, min(ends)) if ends else None

    def __rich__(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        best, lines = self.best(), self._shown()
        names = short_names({field for line in self.lines.values() for field in line.params})
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("trial", justify="right", no_wrap=True)
        table.add_column("parameters")  # this and the state give way where the terminal is narrow, the figures do not
        for column in ("epoch", "now", "best"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("state", max_width=40)
        for line in lines:
            drawn = " ".join(f"{names[field]}={_value(value)}" for field, value in line.params.items())
            state = f"{line.state}: {line.reason}" if line.reason else line.state
            star = "*" if line is best else ""
            cells = [f"{star}{line.number}", drawn, f"{line.epoch}/{line.epochs or self.epochs}"]
            cells += ["" if value is None else f"{value:.3f}" for value in (line.value, line.best)]
            # Text: what stands in a parameter or a reason is no markup.
            shown = (Text(cell, no_wrap=True, overflow="ellipsis") for cell in [*cells, state])
            table.add_row(*shown, style=STYLES.get(line.state, ""))
        return Group(Text(self.headline()), table) if lines else Text(self.headline())

    def _shown(self) -> list[TrialLine]:
        """Those that run first, then what ended last, and the best one in any case; in the order of their numbers."""
        latest = list(reversed(self.lines.values()))
        chosen = sorted(latest, key=lambda line: line.state != "running")[:LINES]
        best = self.best()
        if best is not None and best not in chosen:
            chosen = [*chosen[: LINES - 1], best]
        return sorted(chosen, key=lambda line: line.number)

    def _spent(self) -> int:
        return sum(line.epoch for line in self.lines.values())


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """Field → its name without the section ("loss.temperature" → "temperature") where that is no other field's."""
    fields = list(fields)
    short = {field: field.partition(".")[2] or field for field in fields}
    often = Counter(short.values())
    return {field: name if often[name] == 1 else field for field, name in short.items()}


class _Seldom:
    """Calls a function at most every few seconds."""

    def __init__(self, call: Any) -> None:
        self.call, self.called = call, time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.called >= SECONDS_BETWEEN_LINES:
            self.called = now
            self.call()


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
