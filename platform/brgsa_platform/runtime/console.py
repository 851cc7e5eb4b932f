"""Tables and lines on standard output, for a person at a terminal or for a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

INTERRUPTED = 130  # exit status after Ctrl-C, also of a job that was stopped
PIPE_WIDTH = 160  # columns where there is no terminal, whose width would limit a table


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        cells: one a column; plain text is shown as it is, a rich `Text` brings its own style.
        style: rich style of the whole row, such as "bold".
        ends_section: the next row stands apart, after an empty line.
    """

    cells: Sequence[str | Text]
    style: str = ""
    ends_section: bool = False


def table(
    heads: Sequence[str],
    rows: Iterable[Row | Sequence[str | Text]],
    *,
    title: str | None = None,
    right: Collection[int] = (),
    unbroken: Collection[int] = (),
    widest: Mapping[int, int] | None = None,
) -> Table:
    """A table that looks like every other of this command.

    Args:
        heads: the columns' titles.
        rows: their cells; a sequence without a style is a plain row.
        right: numbers of the columns whose cells stand at the right, as figures do.
        unbroken: numbers of the columns that never break a line; the others give way where the terminal is narrow.
        widest: number of a column → its greatest width in characters.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=None if title is None else Text(title), box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        made.add_column(
            Text(head),
            justify="right" if number in right else "left",
            no_wrap=number in unbroken,
            overflow="fold",
            max_width=(widest or {}).get(number),
        )
    for row in rows:
        cells, style, ends_section = row if isinstance(row, Row) else Row(row)
        shown = [Text(cell) if isinstance(cell, str) else cell for cell in cells]  # a name with brackets is no markup
        made.add_row(*shown, style=style or None, end_section=ends_section)
    return made


def stdout_console() -> Console:
    """Standard output as rich draws on it: as wide as the terminal, else as `COLUMNS` says, else `PIPE_WIDTH`."""
    from rich.console import Console

    fits = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if fits else PIPE_WIDTH, highlight=False)


def print_table(made: Table) -> None:
    """Print a table of `table` on standard output."""
    stdout_console().print(made)


def print_line(text: str) -> None:
    """Print a line on standard output as it is: without markup, and broken nowhere but by the terminal."""
    stdout_console().print(text, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A span of time in words: "42 s", "3 min 5 s", "2 h 10 min"."""
    minutes, left = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{left} s"


def p_value(p: float) -> str:
    """A probability in a table: "0.012", "< 0.001", "-" where there is none."""
    return "-" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def byte_size(count: float) -> str:
    """A number of bytes in words: "12.5 MiB", "3.1 GiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
