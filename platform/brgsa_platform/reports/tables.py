"""A report's tables: cells with what they sort by, and intervals drawn in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from brgsa import metrics
from brgsa.metrics import Interval
from brgsa_platform.evaluation.result import METRICS, Abnormality, Gain
from brgsa_platform.reports.differences import Difference
from brgsa_platform.reports.published import Published
from brgsa_platform.reports.runs import Evaluated
from brgsa_platform.runtime.console import p_value

TITLES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    metrics.SENSITIVITY: "sens. at 90 % spec.",
    "f1": "F1",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
}
AREAS = ("auroc", "auprc")  # whose intervals are drawn


@dataclass(frozen=True)
class Scale:
    """What a bar's ends stand for, and where a line is drawn in it: chance, or no difference."""

    low: float
    high: float
    mark: float

    def place(self, value: float) -> float:
        """Percent of the bar's width."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)


@dataclass(frozen=True)
class Bar:
    """An interval drawn in a cell, in percent of its width."""

    start: float
    width: float
    point: float
    mark: float


@dataclass(frozen=True)
class Cell:
    """A cell: its text, what the column sorts by, and perhaps an interval."""

    text: str
    by: float | str
    span: str = ""
    bar: Bar | None = None

    @property
    def is_number(self) -> bool:
        """Whether it stands at the right, and sorts as a number."""
        return not isinstance(self.by, str)

    @property
    def sort_key(self) -> str:
        """For the page's script; empty for what is not measured, which sorts last."""
        return self.by if isinstance(self.by, str) else f"{self.by:.9g}" if math.isfinite(self.by) else ""


@dataclass(frozen=True)
class Column:
    """A column: its title, and what the ends of its bars stand for."""

    title: str
    is_number: bool = True
    ends: tuple[str, str] | None = None


@dataclass(frozen=True)
class Table:
    """A table that sorts by its columns; the last rows are means and stay at the end."""

    key: str
    columns: list[Column]
    rows: list[list[Cell]]
    means: list[list[Cell]]


def text(value: str) -> Cell:
    """A cell of words."""
    return Cell(value, value.casefold())


def number(value: float, digits: int = 3) -> Cell:
    """A cell of a number; "-" where it is NaN."""
    return Cell(f"{value:.{digits}f}" if math.isfinite(value) else "-", value)


def figure(value: Interval, scale: Scale | None, sign: str = "") -> Cell:
    """A figure with its interval in words, and drawn where there is a scale."""
    if not math.isfinite(value.value):
        return Cell("-", math.nan)
    shown = f"{value.value:{sign}.3f}"
    if not math.isfinite(value.low):
        return Cell(shown, value.value)
    span = f"{value.low:{sign}.3f} to {value.high:{sign}.3f}"
    if scale is None:
        return Cell(shown, value.value, span)
    start, end = scale.place(value.low), scale.place(value.high)
    bar = Bar(start, round(end - start, 2), scale.place(value.value), scale.place(scale.mark))
    return Cell(shown, value.value, span, bar)


def figures_table(run: Evaluated, key: str) -> Table:
    """All figures of one run, an abnormality a row, and the means."""
    scales = {"auroc": _scale([run]), "auprc": Scale(0.0, 1.0, 0.0)}
    columns = [Column("abnormality", False), Column("group", False), Column("n+"), Column("n-")]
    columns += [Column(TITLES[metric], True, _ends(scales[metric]) if metric in AREAS else None) for metric in METRICS]

    def cells(figures: Mapping[str, Interval]) -> list[Cell]:
        return [figure(figures[m], scales[m]) if m in AREAS else number(figures[m].value) for m in METRICS]

    rows = [
        [text(row.name), text(_group(row)), number(row.positives, 0), number(row.negatives, 0), *cells(row.figures)]
        for row in run.abnormalities
    ]
    means = [
        [text(_mean_of(group, count)), text(""), Cell("", math.nan), Cell("", math.nan), *cells(figures)]
        for group, (count, figures) in _held(run)
    ]
    return Table(key, columns, rows, means)


def areas_table(runs: Sequence[Evaluated]) -> Table:
    """Each run's AUROC beside the others', an abnormality a row."""
    scale = _scale(runs)
    names = list(dict.fromkeys(row.name for run in runs for row in run.abnormalities))
    found = [{row.name: row for row in run.abnormalities} for run in runs]
    columns = [Column("abnormality", False), *(Column(run.name, True, _ends(scale)) for run in runs)]
    rows = [
        [text(name), *(figure(of[name].figures["auroc"], scale) if name in of else number(math.nan) for of in found)]
        for name in names
    ]
    means = [
        [
            text(_mean_of(group, count)),
            *(figure(run.means[group][1]["auroc"], scale) if group in run.means else number(math.nan) for run in runs),
        ]
        for group, (count, _) in _held(runs[0])
    ]
    return Table("areas", columns, rows, means)


def gains_table(first: str, found: Difference, key: str) -> Table:
    """What the run of this name gains over another in AUROC, an abnormality a row."""
    assert found.comparison is not None
    of, means = found.comparison.abnormalities, found.comparison.means
    scale = _gain_scale([*of.values(), *means.values()])
    columns = [Column("abnormality", False), Column(first), Column(found.other), Column("gain", True, _ends(scale))]
    columns += [Column("p"), Column("p, Holm"), *([Column("DeLong, Holm")] if found.paired else [])]

    def cells(name: str, gain: Gain) -> list[Cell]:
        ps = [gain.p, gain.p_holm, *([gain.p_delong_holm] if found.paired else [])]
        told = [text(name), number(gain.first), number(gain.second), figure(gain.gain, scale, "+")]
        return [*told, *(Cell(p_value(p), p) for p in ps)]

    rows = [cells(name, gain) for name, gain in of.items()]
    held = [(group, gain) for group, gain in means.items() if group == "macro" or gain != means["macro"]]
    return Table(key, columns, rows, [cells(f"mean of {_all(group)}", gain) for group, gain in held])


def published_table(run: Evaluated, rows: Sequence[Published]) -> Table:
    """Published macro AUROC, and the run's."""
    scale = _scale([run], [value for row in rows for value in (row.auroc, row.low) if math.isfinite(value)])
    columns = [Column("model", False), Column("macro AUROC", True, _ends(scale)), Column("source", False)]
    cells = [
        [text(row.model), figure(Interval(row.auroc, math.nan, math.nan, row.low, row.high), scale), text(row.source)]
        for row in rows
    ]
    return Table("published", columns, cells, [[text(run.title), figure(run.macro, scale), text("this report")]])


def _scale(runs: Iterable[Evaluated], more: Iterable[float] = ()) -> Scale:
    """From the tenth below the lowest interval of an AUROC, and from 0.5 at most, to 1."""
    lows = [row.figures["auroc"].low for run in runs for row in run.measured]
    lowest = min([0.5, *more, *(low for low in lows if math.isfinite(low))])
    return Scale(math.floor(10 * lowest) / 10, 1.0, 0.5)


def _gain_scale(gains: Iterable[Gain]) -> Scale:
    ends = [abs(end) for gain in gains for end in (gain.gain.low, gain.gain.high) if math.isfinite(end)]
    reach = max(0.05, math.ceil(20 * max(ends, default=0.05)) / 20)
    return Scale(-reach, reach, 0.0)


def _ends(scale: Scale) -> tuple[str, str]:
    sign = "+" if scale.low < 0 else ""
    return f"{scale.low:g}", f"{scale.high:{sign}g}"


def _held(run: Evaluated) -> list[tuple[str, tuple[int, dict[str, Interval]]]]:
    """The groups that have abnormalities, and of those that hold all the first only."""
    held = [(group, found) for group, found in run.means.items() if found[0]]
    return [(group, found) for group, found in held if group == "macro" or found[0] < run.means["macro"][0]]


def _mean_of(group: str, count: int) -> str:
    return f"mean of {_all(group)} ({count})"


def _all(group: str) -> str:
    return "all" if group == "macro" else group


def _group(row: Abnormality) -> str:
    parts = ["rare" if row.rare else "common", "supervised" if row.supervised else ""]
    return ", ".join(part for part in parts if part)
