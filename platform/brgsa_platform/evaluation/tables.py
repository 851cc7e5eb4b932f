"""From labels and scores to a table of figures: an abnormality a row and means over them, as CSV, JSON or on a terminal.

Arrays in, plain data out: `evaluate` makes the arrays, `outputs` writes the files.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brgsa import metrics
from brgsa.metrics.gap import Clouds
from brgsa.metrics import Bootstrap, Interval
from brgsa_platform.runtime import console

if TYPE_CHECKING:
    from rich.table import Table

Floats = NDArray[np.float64]

METRICS = metrics.RANKING + metrics.AT_THRESHOLD
GROUPS = ("macro", "common", "rare")
UNSUPERVISED = "unsupervised"  # a fourth group, where the model was trained on labels of some abnormalities
FEW = 5  # with fewer positives or negatives, a bootstrap draws the same few volumes again and again
NARROW = 100  # columns of a terminal below which the figures at the threshold are left to the CSV
UNMEASURED = Interval(*[math.nan] * 5)


@dataclass(frozen=True)
class Abnormality:
    """One row of the table.

    Attributes:
        positives, negatives: volumes whose label is known to be 1 or 0.
        threshold: scores above it count as positive; NaN where none could be chosen.
        figures: metric → its value and interval, NaN where it is not measured.
        supervised: whether the model was trained on its labels; its figures are then not zero-shot.
    """

    name: str
    rare: bool
    positives: int
    negatives: int
    threshold: float
    figures: dict[str, Interval]
    supervised: bool = False

    @property
    def measured(self) -> bool:
        """Whether it can be ranked: the split holds both volumes with it and volumes without it."""
        return self.positives > 0 and self.negatives > 0


@dataclass(frozen=True)
class Gap:
    """Modality gap between volumes and their texts, and both clouds in the plane; after CMKI only where there is a bank."""

    before: float
    clouds_before: Clouds
    after: float | None = None
    clouds_after: Clouds | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """The table and how it came about.

    Attributes:
        abnormalities: one row each, in label order.
        means: "macro" (over all measured abnormalities), "common" and "rare" → metric → interval; of a model that was
            trained on labels also "unsupervised", over the abnormalities that it knows from texts alone.
        bootstrap: the draws, for the interval of a difference to another result (see `gain`).
        notes: sentences on what was left out, or fitted where it should not be.
        about: checkpoint, data fingerprint, split, protocol and the other choices, as plain JSON values.
        files: kind of file → path of what was written.
        run_id: its MLflow run.
    """

    abnormalities: list[Abnormality]
    means: dict[str, dict[str, Interval]]
    bootstrap: Bootstrap
    notes: list[str]
    about: dict[str, Any] = field(default_factory=dict)
    gap: Gap | None = None
    files: dict[str, str] = field(default_factory=dict)
    run_id: str = ""

    def columns(self, group: str = "macro") -> list[int]:
        """Positions of a group's measured abnormalities."""
        return [
            i
            for i, row in enumerate(self.abnormalities)
            if row.measured
            and (not row.supervised if group == UNSUPERVISED else group == "macro" or row.rare == (group == "rare"))
        ]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that have a mean."""
        return (*GROUPS, UNSUPERVISED) if any(row.supervised for row in self.abnormalities) else GROUPS

    def print(self) -> None:
        """The table, what it rests on, and where to look next, on standard output."""
        console.print_table(to_table(self, brief=console.stdout_console().width < NARROW))
        for line in summary(self):
            console.print_line(line)


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
) -> EvaluationResult:
    """Measure every abnormality and the means over them.

    An abnormality without a positive or without a negative is listed, unmeasured, and left out of the means; a note says so.

    Args:
        names: of the P abnormalities.
        labels: (N, P) for N volumes: 1 present, 0 absent, NaN unknown.
        scores: (N, P).
        thresholds: (P,), NaN for none.
        rare: names of the rare abnormalities.
        groups: (N,) what the bootstrap draws as one, see `metrics.bootstrap`.
    """
    drawn = metrics.bootstrap(labels, scores, resamples, seed, groups, thresholds)
    present, absent = np.sum(labels == 1, axis=0), np.sum(labels == 0, axis=0)
    rows = []
    for i, name in enumerate(names):
        measured = bool(present[i] and absent[i])
        figures = {metric: drawn.interval(metric, i) if measured else UNMEASURED for metric in METRICS}
        rows.append(Abnormality(name, name in rare, int(present[i]), int(absent[i]), float(thresholds[i]), figures))
    result = EvaluationResult(rows, {}, drawn, _notes(rows))
    for group in GROUPS:
        result.means[group] = {metric: _mean(drawn, metric, result.columns(group)) for metric in METRICS}
    return result


def mark_supervised(result: EvaluationResult, names: Sequence[str]) -> EvaluationResult:
    """The result of a model that was trained on labels of some abnormalities: they are marked, and the others have a mean."""
    rows = [replace(row, supervised=row.name in names) for row in result.abnormalities]
    marked = [row.name for row in rows if row.supervised]
    if not marked:
        return result
    note = f"The model was trained on their labels, so supervised and not zero-shot: {', '.join(marked)}."
    result = replace(result, abnormalities=rows, notes=[*result.notes, note])
    columns = result.columns(UNSUPERVISED)
    mean = {metric: _mean(result.bootstrap, metric, columns) for metric in METRICS}
    return replace(result, means={**result.means, UNSUPERVISED: mean})


def gain(result: EvaluationResult, over: EvaluationResult, group: str = "common", metric: str = "auroc") -> Interval:
    """The interval of the difference of a mean, both models being measured on the very same resamples.

    Args:
        group: "macro", "common" or "rare".

    Raises:
        ValueError: the two were not evaluated on the same volumes, resampled alike, or measured other abnormalities.
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


def _notes(rows: Sequence[Abnormality]) -> list[str]:
    """What is not measured, or hardly."""
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
                "supervised": row.supervised,
                "positives": row.positives,
                "negatives": row.negatives,
                "threshold": _number(row.threshold),
                **_intervals(row.figures),
            }
            for row in result.abnormalities
        },
        **{
            group: {"abnormalities": len(result.columns(group)), **_intervals(result.means[group])}
            for group in result.groups
        },
        "modality_gap": None if result.gap is None else {"before": result.gap.before, "after": result.gap.after},
        "notes": result.notes,
        "mlflow_run_id": result.run_id,
    }


def to_csv(result: EvaluationResult) -> str:
    """One row per abnormality and one per mean; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [f"{metric}{part}" for metric in METRICS for part in ("", "_mean", "_sd", "_low", "_high")]
    writer.writerow(["abnormality", "group", "supervised", "positives", "negatives", "threshold", *fields])

    def cells(figures: Mapping[str, Interval]) -> list[str]:
        return [_cell(number) for metric in METRICS for number in figures[metric]]

    for row in result.abnormalities:
        known = [row.name, _group(row), _yes(row.supervised), row.positives, row.negatives, _cell(row.threshold)]
        writer.writerow([*known, *cells(row.figures)])
    for group in result.groups:
        title = f"mean of {len(result.columns(group))}"
        writer.writerow([title, group, _yes(_holds_supervised(result, group)), "", "", "", *cells(result.means[group])])
    return text.getvalue()


def to_columns(result: EvaluationResult) -> dict[str, list[Any]]:
    """Columns of equal length for MLflow's table: the abnormalities, then the means."""
    rows: list[tuple[str, str, int | None, dict[str, Interval], bool]] = []
    rows += [(row.name, _group(row), row.positives, row.figures, row.supervised) for row in result.abnormalities]
    rows += [
        (f"mean of {len(result.columns(g))}", g, None, result.means[g], _holds_supervised(result, g))
        for g in result.groups
    ]
    table: dict[str, list[Any]] = {
        "abnormality": [row[0] for row in rows],
        "group": [row[1] for row in rows],
        "supervised": [_yes(row[4]) for row in rows],
        "positives": [row[2] for row in rows],
    }
    for metric in METRICS:
        table[metric] = [_number(row[3][metric].value) for row in rows]
        if metric in metrics.RANKING:
            table[f"{metric} 95 %"] = [_span(row[3][metric]) for row in rows]
    return table


def to_metrics(result: EvaluationResult) -> dict[str, float]:
    """Flat, finite figures for MLflow: "auroc/macro", "auroc/macro_low", "auroc/Cardiomegaly", "gap/before" and so on."""
    flat: dict[str, float] = {}
    for group in result.groups:
        for metric, interval in result.means[group].items():
            flat[f"{metric}/{group}"] = interval.value
            flat[f"{metric}/{group}_low"], flat[f"{metric}/{group}_high"] = interval.low, interval.high
    for row in result.abnormalities:
        flat |= {f"{metric}/{row.name}": row.figures[metric].value for metric in metrics.RANKING}
    if result.gap is not None:
        flat["gap/before"] = result.gap.before
        flat["gap/after"] = math.nan if result.gap.after is None else result.gap.after
    return {key: value for key, value in flat.items() if math.isfinite(value)}


def to_table(result: EvaluationResult, brief: bool = False) -> Table:
    """The table for a terminal; a brief one leaves the figures at the threshold to the CSV."""
    at_threshold = () if brief else metrics.AT_THRESHOLD

    def cells(name: str, count: str, figures: Mapping[str, Interval]) -> list[str]:
        ranking = [_shown(figures[metric], with_span=True) for metric in metrics.RANKING]
        return [name, count, *ranking, *(_shown(figures[metric]) for metric in at_threshold)]

    rows = [
        console.Row(
            cells(row.name + _marks(row), str(row.positives), row.figures),
            ends_section=row is result.abnormalities[-1],
        )
        for row in result.abnormalities
    ]
    for group in result.groups:
        name = f"mean of {'all' if group == 'macro' else group} ({len(result.columns(group))})"
        rows.append(console.Row(cells(name, "", result.means[group]), style="bold"))
    about = result.about
    heads = ["abnormality", "n+", "AUROC (95 %)", "AUPRC (95 %)", *at_threshold]
    return console.table(
        heads,
        rows,
        title=f"{about.get('checkpoint', '')} on {about.get('split', '')}: {about.get('volumes', '')} volumes",
        right=range(1, len(heads)),
        unbroken=range(1, len(heads)),
    )


def summary(result: EvaluationResult) -> list[str]:
    """The lines below the table: modality gap, where the thresholds come from, notes, and what was written."""
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


def _marks(row: Abnormality) -> str:
    marks = [mark for mark, holds in (("rare", row.rare), ("supervised", row.supervised)) if holds]
    return f" ({', '.join(marks)})" if marks else ""


def _holds_supervised(result: EvaluationResult, group: str) -> bool:
    """Whether a mean has figures in it that are not zero-shot."""
    return any(result.abnormalities[i].supervised for i in result.columns(group))


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


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
