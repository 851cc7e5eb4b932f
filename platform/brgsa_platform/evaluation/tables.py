"""What an evaluation found, from labels and scores to a table: means over abnormalities, CSV, JSON, terminal.

Arrays in, plain data out; `evaluate` makes the arrays and keeps the files.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brgsa import metrics
from brgsa.gap import Clouds
from brgsa.metrics import Bootstrap, Interval

if TYPE_CHECKING:
    from rich.table import Table

Floats = NDArray[np.float64]

METRICS = metrics.RANKING + metrics.AT_THRESHOLD
GROUPS = ("macro", "common", "rare")
FEW = 5  # below, a bootstrap draws the same few volumes again and again, and knows of no others
UNMEASURED = Interval(*[math.nan] * 5)


@dataclass(frozen=True)
class Abnormality:
    """One row: known positives and negatives among the volumes, threshold, and an interval per metric (NaN: '-')."""

    name: str
    rare: bool
    positives: int
    negatives: int
    threshold: float
    figures: dict[str, Interval]

    @property
    def measured(self) -> bool:
        return self.positives > 0 and self.negatives > 0


@dataclass(frozen=True)
class Gap:
    """Modality gap between volumes and their texts and both clouds in the plane; after CMKI only with a bank."""

    before: float
    clouds_before: Clouds
    after: float | None = None
    clouds_after: Clouds | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """The table and how it came about.

    Attributes:
        about: checkpoint, data fingerprint, split, protocol and the other choices, as plain JSON values.
        abnormalities: one row each, in label order.
        means: "macro" (over all measured abnormalities), "common" and "rare" → metric → interval.
        bootstrap: the draws, for the interval of a difference to another result (see `gain`).
        notes: sentences on what was left out, or fitted where it should not be.
        files: what was written; run_id: its MLflow run.
    """

    about: dict[str, Any]
    abnormalities: list[Abnormality]
    means: dict[str, dict[str, Interval]]
    bootstrap: Bootstrap
    gap: Gap | None = None
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    run_id: str = ""

    def columns(self, group: str = "macro") -> list[int]:
        """Positions of a group's measured abnormalities."""
        return [
            i
            for i, row in enumerate(self.abnormalities)
            if row.measured and (group == "macro" or row.rare == (group == "rare"))
        ]

    def print(self) -> None:
        """The table, what it rests on, and where to look next, on standard output."""
        from rich.console import Console

        # A file or a pipe has no width to fit into.
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(to_table(self, brief=console.width < 100))
        for line in summary(self):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def tabulate(
    names: Sequence[str],
    labels: NDArray[Any],
    scores: NDArray[Any],
    *,
    thresholds: Sequence[float] | Floats,
    rare: Sequence[str] = (),
    groups: NDArray[Any] | None = None,
    resamples: int = 5000,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    gap: Gap | None = None,
    notes: Sequence[str] = (),
) -> EvaluationResult:
    """Measure every abnormality and the means over them.

    labels (N, P) with NaN for unknown, scores (N, P), thresholds (P,) with NaN for none, groups (N,) as in
    `metrics.bootstrap`. An abnormality without a positive or without a negative is listed, unmeasured, and left out of
    the means, and so said in the notes.
    """
    drawn = metrics.bootstrap(labels, scores, resamples, seed, groups, thresholds)
    present, absent = np.sum(labels == 1, axis=0), np.sum(labels == 0, axis=0)
    rows = []
    for i, name in enumerate(names):
        measured = bool(present[i] and absent[i])
        figures = {metric: drawn.interval(metric, i) if measured else UNMEASURED for metric in METRICS}
        rows.append(Abnormality(name, name in rare, int(present[i]), int(absent[i]), float(thresholds[i]), figures))
    result = EvaluationResult(dict(about or {}), rows, {}, drawn, gap, [*notes, *_what_is_missing(rows)])
    for group in GROUPS:
        result.means[group] = {metric: _mean(drawn, metric, result.columns(group)) for metric in METRICS}
    return result


def gain(result: EvaluationResult, over: EvaluationResult, group: str = "common", metric: str = "auroc") -> Interval:
    """The interval of a mean's difference, both models being measured on the very same resamples.

    Raises ValueError unless both were evaluated on the same volumes, resampled alike, and measured the same abnormalities.
    """
    same = ("data", "split", "volumes", "cluster", "resamples", "seed")
    differing = [key for key in same if result.about.get(key) != over.about.get(key)]
    if differing or result.columns(group) != over.columns(group):
        raise ValueError(f"the results are not paired: they differ in {', '.join(differing) or 'their abnormalities'}")
    columns = result.columns(group)
    one, other = result.bootstrap, over.bootstrap
    paired = Bootstrap(
        {metric: one.point[metric] - other.point[metric]}, {metric: one.draws[metric] - other.draws[metric]}
    )
    return _mean(paired, metric, columns)


def _mean(drawn: Bootstrap, metric: str, columns: list[int]) -> Interval:
    return drawn.interval(metric, columns) if columns else UNMEASURED


def _what_is_missing(rows: Sequence[Abnormality]) -> list[str]:
    notes = []
    for count, what in (("positives", "positive"), ("negatives", "negative")):
        names = [row.name for row in rows if not getattr(row, count)]
        if names:
            notes.append(f"No {what} volume in this split, so not measured and in no mean: {', '.join(names)}.")
    names = [row.name for row in rows if row.measured and min(row.positives, row.negatives) < FEW]
    if names:
        notes.append(f"Fewer than {FEW} volumes of a class, so the interval says too little: {', '.join(names)}.")
    names = [row.name for row in rows if row.measured and math.isnan(row.threshold)]
    if names:
        notes.append(f"No threshold could be chosen, so no figures at one: {', '.join(names)}.")
    return notes


def to_json(result: EvaluationResult) -> dict[str, Any]:
    """Plain JSON values; what was not measured is null."""
    return {
        **result.about,
        "abnormalities": {
            row.name: {
                "group": _group(row),
                "positives": row.positives,
                "negatives": row.negatives,
                "threshold": _number(row.threshold),
                **_intervals(row.figures),
            }
            for row in result.abnormalities
        },
        **{group: {"abnormalities": len(result.columns(group)), **_intervals(result.means[group])} for group in GROUPS},
        "modality_gap": None if result.gap is None else {"before": result.gap.before, "after": result.gap.after},
        "notes": result.notes,
        "mlflow_run_id": result.run_id,
    }


def to_csv(result: EvaluationResult) -> str:
    """One row per abnormality and one per mean; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [f"{metric}{part}" for metric in METRICS for part in ("", "_mean", "_sd", "_low", "_high")]
    writer.writerow(["abnormality", "group", "positives", "negatives", "threshold", *fields])

    def cells(figures: Mapping[str, Interval]) -> list[str]:
        return [_cell(number) for metric in METRICS for number in figures[metric]]

    for row in result.abnormalities:
        counts = [row.name, _group(row), row.positives, row.negatives, _cell(row.threshold)]
        writer.writerow([*counts, *cells(row.figures)])
    for group in GROUPS:
        title = f"mean of {len(result.columns(group))}"
        writer.writerow([title, group, "", "", "", *cells(result.means[group])])
    return text.getvalue()


def to_columns(result: EvaluationResult) -> dict[str, list[Any]]:
    """Columns of equal length for MLflow's table: the abnormalities, then the means."""
    rows: list[tuple[str, str, int | None, dict[str, Interval]]] = []
    rows += [(row.name, _group(row), row.positives, row.figures) for row in result.abnormalities]
    rows += [(f"mean of {len(result.columns(g))}", g, None, result.means[g]) for g in GROUPS]
    table: dict[str, list[Any]] = {
        "abnormality": [row[0] for row in rows],
        "group": [row[1] for row in rows],
        "positives": [row[2] for row in rows],
    }
    for metric in METRICS:
        table[metric] = [_number(row[3][metric].value) for row in rows]
        if metric in metrics.RANKING:
            table[f"{metric} 95 %"] = [_span(row[3][metric]) for row in rows]
    return table


def to_metrics(result: EvaluationResult) -> dict[str, float]:
    """Flat, finite figures for MLflow: "auroc/macro", "auroc/macro_low", "auroc/Cardiomegaly", "gap/before" and so on."""
    found: dict[str, float] = {}
    for group in GROUPS:
        for metric, interval in result.means[group].items():
            found[f"{metric}/{group}"] = interval.value
            found[f"{metric}/{group}_low"], found[f"{metric}/{group}_high"] = interval.low, interval.high
    for row in result.abnormalities:
        found |= {f"{metric}/{row.name}": row.figures[metric].value for metric in metrics.RANKING}
    if result.gap is not None:
        found["gap/before"] = result.gap.before
        found["gap/after"] = math.nan if result.gap.after is None else result.gap.after
    return {key: value for key, value in found.items() if math.isfinite(value)}


def to_table(result: EvaluationResult, brief: bool = False) -> Table:
    """The table for a terminal; a brief one leaves the figures at the threshold to the CSV."""
    from rich import box
    from rich.table import Table

    about = result.about
    title = f"{about.get('checkpoint', '')} on {about.get('split', '')}: {about.get('volumes', '')} volumes"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("abnormality")
    at_threshold = () if brief else metrics.AT_THRESHOLD
    for head in ("n+", "AUROC (95 %)", "AUPRC (95 %)", *at_threshold):
        table.add_column(head, justify="right", no_wrap=True)

    def add(name: str, count: str, figures: Mapping[str, Interval], style: str = "") -> None:
        ranking = [_shown(figures[metric], with_span=True) for metric in metrics.RANKING]
        table.add_row(name, count, *ranking, *(_shown(figures[m]) for m in at_threshold), style=style)

    for row in result.abnormalities:
        add(row.name + (" (rare)" if row.rare else ""), str(row.positives), row.figures)
    table.add_section()
    for group, title in zip(GROUPS, ("all", "common", "rare"), strict=True):
        add(f"mean of {title} ({len(result.columns(group))})", "", result.means[group], style="bold")
    return table


def summary(result: EvaluationResult) -> list[str]:
    """The lines below the table: modality gap, where the threshold comes from, notes."""
    lines = []
    if result.gap is not None:
        after = "no bank" if result.gap.after is None else f"{result.gap.after:.3f} after CMKI"
        lines.append(f"Modality gap {result.gap.before:.3f} before, {after}.")
    about = result.about
    if about:
        lines.append(
            f"Thresholds: {about['threshold_source']}. Intervals: {about['resamples']} resamples of {about['cluster']}s."
        )
    lines += result.notes
    if result.files:
        lines.append(f"Written: {', '.join(result.files.values())}. Curves and pictures: brgsa ui")
    return lines


def _group(row: Abnormality) -> str:
    return "rare" if row.rare else "common"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def _intervals(figures: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {metric: {k: _number(v) for k, v in interval._asdict().items()} for metric, interval in figures.items()}


def _span(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}" if math.isfinite(interval.low) else "-"


def _shown(interval: Interval, with_span: bool = False) -> str:
    if not math.isfinite(interval.value):
        return "-"
    span = f" ({interval.low:.2f}-{interval.high:.2f})" if with_span and math.isfinite(interval.low) else ""
    return f"{interval.value:.2f}{span}"
