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
from brgsa_platform.evaluation.result import (
    FREQUENCIES,
    METRICS,
    Abnormality,
    Comparison,
    EvaluationResult,
    Gain,
)
from brgsa_platform.runtime import console

if TYPE_CHECKING:
    from rich.table import Table

_TOP = {"recall_at_1": "strict Recall@1", "precision_at_3": "Precision@3"}
NARROW = 100  # columns of a terminal below which the figures at the threshold are left to the CSV


def print_result(result: EvaluationResult) -> None:
    """The table, what it rests on, and where to look next, on standard output."""
    console.print_table(to_table(result, brief=console.stdout_console().width < NARROW))
    for line in summary(result):
        console.print_line(line)
    if result.comparison is not None:
        console.print_table(comparison_table(result))
        for note in result.comparison.notes:
            console.print_line(note)


def to_line(result: EvaluationResult) -> str:
    """The figures as one line of JSON, for another program; what was not measured is null.

    {"protocol": …, "abnormalities": {NAME: {"auroc": {"value", "low", "high"}, …}}, "means": {"macro": {…}, "common": …, …}}
    and, where there is one, "comparison": {"with", "volumes", "abnormalities": {NAME: {"gain": {…}, "p", …}}, "means": …}.
    """

    def figures(of: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
        return {
            metric: {"value": _number(one.value), "low": _number(one.low), "high": _number(one.high)}
            for metric, one in of.items()
        }

    tree = {
        "protocol": result.about.get("protocol"),
        "abnormalities": {row.name: figures(row.figures) for row in result.abnormalities},
        "means": {
            group: figures(result.means[group] | (result.top if group == "macro" else {})) for group in result.groups
        },
    }
    if result.comparison is not None:
        tree["comparison"] = _comparison(result.comparison)
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
        "top": _intervals(result.top),
        "comparison": None if result.comparison is None else _comparison(result.comparison),
        "calibration": _calibration(result),
        "alignment": {} if result.alignment is None else {k: _number(v) for k, v in result.alignment.figures.items()},
        "modality_gap": None if result.gap is None else {"before": result.gap.before, "after": result.gap.after},
        "notes": result.notes,
        "mlflow_run_id": result.run_id,
        "origin": result.origin,
    }


def to_csv(result: EvaluationResult) -> str:
    """One row per abnormality and one per mean; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [f"{metric}{part}" for metric in METRICS for part in ("", "_mean", "_sd", "_low", "_high")]
    known = ["abnormality", "group", "frequency", "supervised", "positives", "negatives", "threshold"]
    writer.writerow([*known, *fields, "protocol", "labels_from"])
    made_by = [result.about.get("protocol", ""), result.about.get("labels_from", "")]

    def cells(figures: Mapping[str, Interval]) -> list[str]:
        return [_cell(number) for metric in METRICS for number in figures[metric]]

    for row in result.abnormalities:
        counts = [row.positives, row.negatives, _cell(row.threshold)]
        known = [row.name, _group(row), row.frequency, _yes(row.supervised), *map(str, counts)]
        writer.writerow([*known, *cells(row.figures), *made_by])
    for group in result.groups:
        title = f"mean of {len(result.columns(group))}"
        known = [title, group, "", _yes(_holds_supervised(result, group)), "", "", ""]
        writer.writerow([*known, *cells(result.means[group]), *made_by])
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
        "labels_from": [str(result.about.get("labels_from", ""))] * len(rows),
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
    for metric, interval in result.top.items():
        flat |= {metric: interval.value, f"{metric}_low": interval.low, f"{metric}_high": interval.high}
    if result.calibration is not None:
        flat |= {f"ece/{scaling}": result.calibration.mean_error(scaling) for scaling in result.calibration.errors}
    if result.alignment is not None:
        flat |= result.alignment.figures
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
    if any(math.isfinite(interval.value) for interval in result.top.values()):
        told = [f"{_TOP[name]} {_shown(interval, with_span=True)}" for name, interval in result.top.items()]
        lines.append(f"What is named first: {', '.join(told)}.")
    if result.gap is not None:
        after = "no bank" if result.gap.after is None else f"{result.gap.after:.3f} after CMKI"
        lines.append(f"Modality gap {result.gap.before:.3f} before, {after}.{_parted(result)}")
    if result.alignment is not None:
        lines += _retrieved(result.alignment.figures)
    if result.calibration is not None:
        errors = [f"{result.calibration.mean_error(name):.3f} by {name}" for name in result.calibration.errors]
        lines.append(f"Expected calibration error, scaled on the validation split: {', '.join(errors)}.")
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


def comparison_table(result: EvaluationResult) -> Table:
    """What the model gains over another, an abnormality a row."""
    found = result.comparison
    assert found is not None

    def cells(name: str, of: Gain) -> list[str]:
        span = f" ({of.gain.low:+.3f} to {of.gain.high:+.3f})" if math.isfinite(of.gain.low) else ""
        ps = [of.p, of.p_holm, of.p_delong, of.p_delong_holm]
        return [name, f"{of.first:.3f}", f"{of.second:.3f}", f"{of.gain.value:+.3f}{span}", *map(console.p_value, ps)]

    rows = [console.Row(cells(name, of)) for name, of in found.abnormalities.items()]
    rows += [console.Row(cells(f"mean of {group}", of), style="bold") for group, of in found.means.items()]
    heads = ["abnormality", "AUROC", found.name, "gain (95 %)", "p", "p, Holm", "p, DeLong", "DeLong, Holm"]
    title = f"Beside {found.name}: {found.volumes} volumes, protocol {result.about.get('protocol', '')}"
    return console.table(heads, rows, title=title, right=range(1, len(heads)), unbroken=range(3, len(heads)))


def _comparison(found: Comparison) -> dict[str, Any]:
    def plain(of: Gain) -> dict[str, Any]:
        gain = {"value": _number(of.gain.value), "low": _number(of.gain.low), "high": _number(of.gain.high)}
        ps = {key: _number(getattr(of, key)) for key in ("p", "p_holm", "p_delong", "p_delong_holm")}
        return {"first": _number(of.first), "second": _number(of.second), "gain": gain, **ps}

    return {
        "with": found.name,
        "volumes": found.volumes,
        "abnormalities": {name: plain(of) for name, of in found.abnormalities.items()},
        "means": {group: plain(of) for group, of in found.means.items()},
    }


def _parted(result: EvaluationResult) -> str:
    figures = result.alignment.figures if result.alignment else {}
    shares = [figures[key] for key in ("separability/before", "separability/after") if key in figures]
    told = " and ".join("-" if math.isnan(share) else f"{share:.2f}" for share in shares)
    return f" A plane tells volumes from texts in {told} of all." if told else ""


def _retrieved(figures: Mapping[str, float]) -> list[str]:
    """A line for each way of retrieval, and one for the towers' ranks."""
    lines = []
    for way, name in (
        ("volume_to_report", "Volume to report, recall"),
        ("report_to_volume", "Report to volume, recall"),
        ("volume_to_volume_map", "Volume to volume, overlap"),
    ):
        found = {
            key.rpartition("_")[2]: value for key, value in figures.items() if key.startswith(f"retrieval/{way}_at_")
        }
        told = [f"{value:.3f} at {k}" for k, value in found.items() if math.isfinite(value)]
        if told:
            lines.append(f"{name}: {', '.join(told)}.")
    ranks = [
        f"{figures[key]:.1f} {key[9:-5]}" for key in ("collapse/volumes_rank", "collapse/texts_rank") if key in figures
    ]
    return [*lines, f"Directions filled: {', '.join(ranks)}."]


def _calibration(result: EvaluationResult) -> dict[str, Any] | None:
    found = result.calibration
    if found is None:
        return None
    names = [row.name for row in result.abnormalities]
    return {
        "error": {scaling: _number(found.mean_error(scaling)) for scaling in found.errors},
        "abnormalities": {
            names[i]: {**scale._asdict(), **{f"error_{s}": _number(float(e[i])) for s, e in found.errors.items()}}
            for i, scale in found.scales.items()
        },
        "reliability": {
            scaling: {part: [_number(float(v)) for v in values] for part, values in curve._asdict().items()}
            for scaling, curve in found.curves.items()
        },
    }


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
