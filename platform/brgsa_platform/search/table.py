"""A running search on standard error: one table on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brgsa_platform.runtime.console import duration
from brgsa_platform.runtime.progress import SECONDS_BETWEEN_LINES
from brgsa_platform.search.spec import Limits

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LINES = 10  # trials shown at a time
STATE_WIDTH = 40  # characters
ENDED = ("complete", "pruned", "failed")
STYLES = {"running": "bold", "pruned": "dim", "failed": "red"}


@dataclass(frozen=True)
class TrialLine:
    """A trial and how far it is.

    Attributes:
        params: searched field by its full name → value.
        epoch, epochs: finished, and at most to run.
        value, best: AUROC (or the first goal) now and at the best epoch so far; None before the first epoch.
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
    limits: Limits, epochs: int, *, before: Iterable[TrialLine] = (), console: Console | None = None
) -> Iterator[SearchTable]:
    """Show a search while it runs; yields the table to `update`.

    Args:
        limits: what ends the search; its seconds count from now.
        epochs: that a trial runs at most.
        before: trials of an earlier start of this search; they count, but say nothing about today's speed.
        console: where to draw; default standard error.
    """
    from rich.console import Console
    from rich.live import Live

    console = console or Console(file=sys.stderr)
    table = SearchTable(limits, epochs, before)
    if console.is_terminal:
        with Live(table, console=console, refresh_per_second=2, vertical_overflow="crop"):
            yield table
        return

    def print_headline() -> None:
        console.print(table.headline(), highlight=False, markup=False, soft_wrap=True)

    table.every_few_seconds = _AtMostEvery(SECONDS_BETWEEN_LINES, print_headline)
    yield table
    print_headline()


class SearchTable:
    """The search's trials as they are known now; rendered anew each time that the terminal asks."""

    def __init__(self, limits: Limits, epochs: int, before: Iterable[TrialLine] = ()) -> None:
        self.limits, self.epochs = limits, epochs
        self.lines = {line.number: line for line in before}  # in the order of their last updates
        self.spent_before = self._spent()
        self.started = time.monotonic()
        self.every_few_seconds: Callable[[], None] | None = None

    def update(self, line: TrialLine) -> None:
        """Take the state of a trial."""
        # A renderer in another thread sees the old or the new trials, never a dictionary that changes under it.
        self.lines = {**{number: old for number, old in self.lines.items() if number != line.number}, line.number: line}
        if self.every_few_seconds is not None:
            self.every_few_seconds()

    def summary(self) -> str:
        """How many trials ended how, the best one, and the epochs spent."""
        count = Counter(line.state for line in self.lines.values())
        ended = sum(count[state] for state in ENDED)
        states = [f"{count[state]} {state}" for state in ("running", "pruned", "failed") if count[state]]
        trials = self.limits.trials
        text = f"search: {ended} of {trials} trials done" if trials else f"search: {ended} trials done"
        text += f" ({', '.join(states)})" if states else ""
        best = self.best()
        if best is not None:
            text += f", best AUROC {best.best:.3f} in trial {best.number}"
        return f"{text}, {self._spent()} epochs"

    def headline(self) -> str:
        """The summary, and the time left where it can be told."""
        left = self.seconds_left()
        return self.summary() + (f", {duration(left)} left" if left else "")

    def best(self) -> TrialLine | None:
        """The best complete trial; while none is complete, the best of those that run."""
        for state in ("complete", "running"):
            scored = [line for line in self.lines.values() if line.state == state and line.best is not None]
            if scored:
                return max(scored, key=lambda line: line.best or 0.0)
        return None

    def seconds_left(self) -> float | None:
        """From today's epochs a second and the epochs that remain; None before the first epoch, or where no limit says.

        A trial to come is expected to run as many epochs as those that ended did: pruning makes them fewer.
        """
        limits = self.limits
        done, passed = self._spent() - self.spent_before, time.monotonic() - self.started
        ends = [] if limits.seconds is None else [limits.seconds - passed]
        if done <= 0:
            return None
        if limits.epochs is not None:
            ends.append((limits.epochs - self._spent()) * passed / done)
        if limits.trials:
            lines = self.lines.values()
            ended = [line.epoch for line in lines if line.state in ("complete", "pruned")]
            usual = sum(ended) / len(ended) if ended else self.epochs
            running = sum(max(0.0, usual - line.epoch) for line in lines if line.state == "running")
            ends.append((running + max(0, limits.trials - len(self.lines)) * usual) * passed / done)
        return max(0.0, min(ends)) if ends else None

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from brgsa_platform.runtime.console import Row, table

        best, lines = self.best(), self._shown()
        names = short_names({field for line in self.lines.values() for field in line.params})
        rows = []
        for line in lines:
            drawn = " ".join(f"{names[field]}={_value(value)}" for field, value in line.params.items())
            state = f"{line.state}: {line.reason}" if line.reason else line.state
            star = "*" if line is best else ""
            cells = [f"{star}{line.number}", drawn, f"{line.epoch}/{line.epochs or self.epochs}"]
            cells += ["" if value is None else f"{value:.3f}" for value in (line.value, line.best)]
            # On a narrow terminal the parameters and the state are cut, the figures are not.
            shown = [Text(cell, no_wrap=True, overflow="ellipsis") for cell in [*cells, state]]
            rows.append(Row(shown, STYLES.get(line.state, "")))
        heads = ("trial", "parameters", "epoch", "now", "best", "state")
        figures = (0, 2, 3, 4)
        made = table(heads, rows, right=figures, unbroken=figures, widest={5: STATE_WIDTH})
        return Group(Text(self.headline()), made) if lines else Text(self.headline())

    def _shown(self) -> list[TrialLine]:
        """The trials that run, then those that ended last, and the best one in any case; in the order of their numbers."""
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


class _AtMostEvery:
    """Calls a function at most every so many seconds, and not at once."""

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self.seconds, self.call, self.called = seconds, call, time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.called >= self.seconds:
            self.called = now
            self.call()


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
