"""An evaluation's table as CSV, JSON, columns for MLflow, and on a terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from brgsa import metrics
from brgsa.metrics import Interval
from brgsa_platform.evaluation.result import FREQUENCIES, METRICS, Abnormality, EvaluationResult
from brgsa_platform.runtime import console

if TYPE_CHECKING:
    from rich.table import Table

NARROW = 100  # columns of a terminal below which the figures at the threshold are left to the CSV


def print_result(result: EvaluationResult) -> None:
    """The table, what it rests on, and where to look next, on standard output."""
    console.print_table(to_table(result, brief=console.stdout_console().width < NARROW))
    for line in summary(result):
        console.print_line(line)


def to_line(result: EvaluationResult) -> str:
    """The figures as one line of JSON, for another program; what was not measured is null.

    {"protocol": …, "abnormalities": {NAME: {"auroc": {"value", "low", "high"}, …}}, "means": {"macro": {…}, "common": …, …}}
    """

    def figures(of: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
        return {
            metric: {"value": _number(one.value), "low": _number(one.low), "high": _number(one.high)}
            for metric, one in of.items()
        }

    tree = {
        "protocol": result.about.get("protocol"),
        "abnormalities": {row.name: figures(row.figures) for row in result.abnormalities},
        "means": {group: figures(result.means[group]) for group in result.groups},
    }
    return json.dumps(tree, allow_nan=False)


def to_json(result: EvaluationResult) -> dict[str, Any]:
    """Plain JSON values; what was not measured is null."""
    return {
        **result.about,
        "abnormalities": {
            row.name: {
                "group": _group(row),
                "frequency": row.frequency or None,
                "prevalence": _number(row.prevalence),
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
    known = ["abnormality", "group", "frequency", "supervised", "positives", "negatives", "threshold"]
    writer.writerow([*known, *fields, "protocol"])
    protocol = result.about.get("protocol", "")

    def cells(figures: Mapping[str, Interval]) -> list[str]:
        return [_cell(number) for metric in METRICS for number in figures[metric]]

    for row in result.abnormalities:
        counts = [row.positives, row.negatives, _cell(row.threshold)]
        known = [row.name, _group(row), row.frequency, _yes(row.supervised), *map(str, counts)]
        writer.writerow([*known, *cells(row.figures), protocol])
    for group in result.groups:
        title = f"mean of {len(result.columns(group))}"
        known = [title, group, "", _yes(_holds_supervised(result, group)), "", "", ""]
        writer.writerow([*known, *cells(result.means[group]), protocol])
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
        "protocol": [str(result.about.get("protocol", ""))] * len(rows),
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
    others = () if brief else (metrics.SENSITIVITY, *metrics.AT_THRESHOLD)

    def cells(name: str, count: str, figures: Mapping[str, Interval]) -> list[str]:
        areas = [_shown(figures[metric], with_span=True) for metric in ("auroc", "auprc")]
        return [name, count, *areas, *(_shown(figures[metric]) for metric in others)]

    rows = [
        console.Row(
            cells(row.name + _marks(row), str(row.positives), row.figures),
            ends_section=row is result.abnormalities[-1],
        )
        for row in result.abnormalities
    ]
    for group in result.groups:
        if group in FREQUENCIES and not result.columns(group):
            continue
        name = f"mean of {'all' if group == 'macro' else group} ({len(result.columns(group))})"
        rows.append(console.Row(cells(name, "", result.means[group]), style="bold"))
    short = {metrics.SENSITIVITY: "sens@90"}
    heads = ["abnormality", "n+", "AUROC (95 %)", "AUPRC (95 %)", *(short.get(metric, metric) for metric in others)]
    return console.table(
        heads,
        rows,
        title=_title(result.about),
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
            f"Protocol {about['protocol']}. Thresholds: {about['threshold_source']}. "
            f"Intervals: {about['resamples']} resamples of {about['cluster']}s."
        )
    lines += result.notes
    if result.files:
        lines.append(f"Written: {', '.join(result.files.values())}. Curves and pictures: brgsa ui")
    return lines


def _title(about: Mapping[str, Any]) -> str:
    where = f" on {about['split']}" if about.get("split") else ""
    return f"{about.get('checkpoint', '')}{where}: {about.get('volumes', '')} volumes, protocol {about.get('protocol', '')}"


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
