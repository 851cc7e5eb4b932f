"""A search's pictures: an objective over each searched field, all fields side by side, and its best over the epochs spent.

They are drawn from a search's table (`report.trial_rows`) and know nothing of Optuna. An objective is maximised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from brgsa_platform.runtime.plots import BLUE, GREY, ORANGE, VERMILION, new_figure, plain

Row = Mapping[str, Any]

PANELS_ACROSS = 4
GRID = "#E5E5E5"
UNSET = -0.1  # where a trial crosses the axis of a field that it did not draw
COLOURS = colormaps["cividis"]  # even steps of lightness, the same to colour-blind eyes


@dataclass(frozen=True)
class Field:
    """One searched field as an axis: its whole range, in log scale or not, or its choices in their order."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def place(self, value: Any) -> float:
        """The place of a value between the axis's ends, from 0 to 1."""
        if self.choices:
            return self.choices.index(value) / max(1, len(self.choices) - 1)
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))

    def ticks(self) -> list[Any]:
        """The values to write beside the axis: all choices, or the ends and some round ones between."""
        if self.choices:
            return list(self.choices)
        if self.high == self.low:
            return [self.low]
        if self.log:
            tens = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            inner = [10.0**power for power in tens]
        else:
            inner = [float(value) for value in np.linspace(self.low, self.high, 5)]
        return [self.low, *(v for v in inner if 0.12 < self.place(v) < 0.88), self.high]


def slice_figure(rows: Sequence[Row], fields: Sequence[Field], objective: str) -> Figure:
    """A panel a field: the trials' objective over the field's value, the best complete trial ringed.

    Complete and pruned trials have marks of their own; failed ones are crosses at the foot, because they have no value.
    """
    across = min(PANELS_ACROSS, len(fields))
    down = math.ceil(len(fields) / across)
    figure = new_figure(max(5.0, 3.4 * across), 0.5 + 3.0 * down)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, field in zip(panels, fields, strict=False):
        drawn = [row for row in rows if row[field.name] is not None]
        x = _slice_axis(axes, field)
        for state, style in MARKS.items():
            shown = [row for row in drawn if row["state"] == state and row[objective] is not None]
            axes.plot([x(row[field.name]) for row in shown], [row[objective] for row in shown], **style)
        _plot_failed(axes, [x(row[field.name]) for row in drawn if row["state"] == "failed"])
        best = best_row(rows, objective)
        if best is not None and best[field.name] is not None:
            axes.plot(x(best[field.name]), best[objective], **RING)
        axes.set_xlabel(field.name)
        axes.margins(y=0.1)
        _with_grid(axes)
    for axes in panels[::across]:
        axes.set_ylabel(objective)
    for axes in panels[len(fields) :]:
        axes.remove()
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9
    )
    return figure


def parallel_figure(rows: Sequence[Row], fields: Sequence[Field], objective: str) -> Figure:
    """A line a trial over an axis a field, coloured by its objective, the best on top.

    Pruned trials are thin and dashed. A field that a trial did not draw is crossed below its axis, at "not set".
    """
    shown = [row for row in rows if row["state"] in MARKS and row[objective] is not None]
    values = [float(row[objective]) for row in shown]
    last = Field(objective, *((min(values), max(values)) if values else (0.0, 1.0)))
    axes_of = [*fields, last]
    figure = new_figure(max(6.0, 1.9 * len(axes_of) + 1.2), 4.8)
    axes = figure.add_subplot()
    scale = _colour_scale(values)
    for row in sorted(shown, key=lambda row: row[objective]):
        heights = [UNSET if row[f.name] is None else f.place(row[f.name]) for f in axes_of]
        line = COMPLETE_LINE if row["state"] == "complete" else PRUNED_LINE
        axes.plot(range(len(axes_of)), heights, color=COLOURS(scale(row[objective])), alpha=0.9, **line)
    some_unset = any(row[f.name] is None for row in shown for f in fields)
    for number, field in enumerate(axes_of):
        _parallel_axis(axes, number, field, any(row[field.name] is None for row in shown))
    axes.set(xlim=(-0.25, len(axes_of) - 0.6), ylim=(UNSET - 0.06 if some_unset else -0.06, 1.06), yticks=[])
    axes.set_xticks(range(len(axes_of)), [_in_two_lines(f.name) for f in axes_of])
    axes.tick_params(axis="x", length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    bar = ScalarMappable(scale, COLOURS)
    figure.colorbar(bar, ax=axes, label=objective, pad=0.02, fraction=0.04, extend="min")
    kinds = [Line2D([], [], color=GREY, label="complete", **COMPLETE_LINE)]
    kinds.append(Line2D([], [], color=GREY, label="pruned", **PRUNED_LINE))
    figure.legend(handles=kinds, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def history_figure(rows: Sequence[Row], objectives: Sequence[str]) -> Figure:
    """The best so far over the epochs spent, and each trial where it ended.

    Args:
        rows: in the order in which the trials ended.
    """
    figure = new_figure(max(6.4, 4.8 * len(objectives)), 4.0)
    spent = np.cumsum([row["epochs"] for row in rows]) if rows else np.zeros(0)
    for number, objective in enumerate(objectives):
        axes = figure.add_subplot(1, len(objectives), number + 1)
        reached = [row[objective] if row["state"] == "complete" else math.nan for row in rows]
        best = np.fmax.accumulate(np.array(reached, dtype=np.float64))  # NaN until a trial is complete
        axes.step(spent, best, where="post", color=GREY, linewidth=1.6, label="best so far")
        for state, style in MARKS.items():
            at = [i for i, row in enumerate(rows) if row["state"] == state and row[objective] is not None]
            axes.plot(spent[at], [rows[i][objective] for i in at], **style)
        _plot_failed(axes, [spent[i] for i, row in enumerate(rows) if row["state"] == "failed"])
        axes.set(xlabel="epochs spent by all trials", ylabel=objective, xlim=(0, None))
        axes.legend(frameon=False, fontsize=9)
        _with_grid(axes)
    return figure


def best_row(rows: Sequence[Row], objective: str) -> Row | None:
    """The complete trial with the best objective, the earliest of equal ones."""
    complete = [row for row in rows if row["state"] == "complete" and row[objective] is not None]
    return max(complete, key=lambda row: row[objective], default=None)


MARKS: dict[str, dict[str, Any]] = {
    "complete": {"color": BLUE, "marker": "o", "linestyle": "none", "markersize": 6, "label": "complete"},
    "pruned": {
        "color": ORANGE, "marker": "^", "linestyle": "none", "markersize": 6, "label": "pruned",
        "markerfacecolor": "none", "markeredgewidth": 1.4,
    },
}  # fmt: skip
FAILED: dict[str, Any] = {
    "color": VERMILION, "marker": "x", "linestyle": "none", "markersize": 7, "label": "failed", "clip_on": False,
}  # fmt: skip
COMPLETE_LINE: dict[str, Any] = {"linewidth": 2.0}
PRUNED_LINE: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (4, 2))}
RING: dict[str, Any] = {
    "color": "black", "marker": "o", "linestyle": "none", "markersize": 11, "label": "best", "markerfacecolor": "none",
}  # fmt: skip


def _plot_failed(axes: Axes, x: Sequence[float]) -> None:
    (crosses,) = axes.plot(x, [0.02] * len(x), transform=axes.get_xaxis_transform(), **FAILED)
    crosses.set_in_layout(False)  # unclipped and empty, they would pull the panel to the figure's corner


def _colour_scale(values: Sequence[float]) -> Normalize:
    """The colours tell the good trials apart: the worst fifth, often far off, shares the last one."""
    if not values:
        return Normalize(0.0, 1.0)
    return Normalize(float(np.percentile(values, 20.0)), max(values), clip=True)


def _slice_axis(axes: Axes, field: Field) -> Callable[[Any], Any]:
    """Give the panel the field's axis; return what maps a value onto it."""
    if field.choices:
        axes.set_xticks(range(len(field.choices)), [_shown(c) for c in field.choices])
        if len(field.choices) > 2:
            for label in axes.get_xticklabels():
                label.set(rotation=20, ha="right", fontsize=8)
        axes.set_xlim(-0.5, len(field.choices) - 0.5)
        return field.choices.index
    if field.log:
        axes.set_xscale("log")
        margin = (field.high / field.low) ** 0.04
        axes.set_xlim(field.low / margin, field.high * margin)
        if field.high / field.low < 1000:  # few powers of ten: the ends need their numbers
            axes.set_xticks(ticks := field.ticks(), [_shown(t) for t in ticks])
    else:
        margin = 0.04 * (field.high - field.low)
        axes.set_xlim(field.low - margin, field.high + margin)
    return lambda value: value


def _parallel_axis(axes: Axes, at: int, field: Field, unset: bool) -> None:
    axes.plot([at, at], [0, 1], color="black", linewidth=1.0, zorder=3)
    marks = [(field.place(value), _shown(value)) for value in field.ticks()]
    if unset:
        marks.append((UNSET, "not set"))
    for height, text in marks:
        axes.plot([at - 0.02, at + 0.02], [height, height], color="black", linewidth=1.0, zorder=3)
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8}
        axes.text(at + 0.04, height, text, va="center", fontsize=8, zorder=4, bbox=box)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if value.is_integer() else f"{value:.3g}"


def _in_two_lines(field: str) -> str:
    mark = "." if "." in field else "/"
    section, mark, rest = field.partition(mark)
    return f"{section}{mark}\n{rest}"


def _with_grid(axes: Axes) -> None:
    plain(axes)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
