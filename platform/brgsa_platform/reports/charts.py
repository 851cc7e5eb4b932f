"""A report's plots as Plotly takes them: plain dicts of traces and layout, without colours of ground and text.

Those the page's style gives, so that they follow a reader's light or dark theme and print dark on white.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brgsa import metrics
from brgsa.metrics.gap import Clouds
from brgsa_platform.reports.runs import Evaluated
from brgsa_platform.runtime.plots import BLUE, CYCLE, GREY, VERMILION

POINTS = 400  # of a curve, and twice as many of a cloud: what an eye can tell apart
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up")

DIAGONAL = {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": {"dash": "dot", "color": GREY, "width": 1}}

Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One plot.

    Attributes:
        key: its name on the page.
        caption: what a reader sees, and how to read it.
        data, layout: Plotly's.
        height: pixels, without the legend, for which the page makes room.
        choices: abnormalities among which a reader chooses; the traces of one have its number as `meta`.
        alone: whether one of them is shown at first, rather than all.
    """

    key: str
    caption: str
    data: list[Trace]
    layout: dict[str, Any]
    height: int = 400
    choices: list[str] = field(default_factory=list)
    alone: bool = False


def shown(name: str) -> str:
    """A text as Plotly shows it: it would take markup in it for its own."""
    return html.escape(name)


def curves(runs: Sequence[Evaluated]) -> Chart | None:
    """ROC and precision-recall curves, one an abnormality and run; None where no run has scores by volume."""
    choices = list(dict.fromkeys(row.name for run in runs if run.units is not None for row in run.measured))
    if not choices:
        return None
    data: list[Trace] = []
    for of, run in enumerate(runs):
        rows = {row.name: row for row in run.measured} if run.units is not None else {}
        for number, name in enumerate(choices):
            if name in rows:
                data += _pair(run, name, number, of if len(runs) > 1 else None)
    layout = _axes(
        ("1 - specificity", "sensitivity", [0.0, 0.46]),
        ("recall (sensitivity)", "precision", [0.54, 1.0]),
    )
    layout["shapes"] = [DIAGONAL]
    caption = "ROC at the left, precision and recall at the right. Point at a curve for the score at which it is there."
    return Chart("curves", caption, data, layout, choices=choices, alone=len(runs) > 1)


def _pair(run: Evaluated, name: str, number: int, of: int | None) -> list[Trace]:
    """An abnormality's two curves.

    Args:
        number: of the abnormality; `of`: of the run, None for the only one.
    """
    assert run.scored is not None
    assert run.units is not None
    column = run.scored.names.index(name)
    labels = run.units.labels[:, column]
    roc = metrics.roc_curve(labels, run.units.scores[:, column])
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    hits, alarms = roc.tpr * positives, roc.fpr * negatives
    kept = _thinned(len(roc.tpr))
    area = next(row.figures for row in run.measured if row.name == name)
    title = shown(name if of is None else f"{run.name}: {name}")
    look = of if of is not None else number
    style = {
        "mode": "lines",
        "name": f"{title} ({area['auroc'].value:.3f})",
        "legendgroup": title,
        "meta": number,
        "line": {"color": CYCLE[look % len(CYCLE)], "dash": DASHES[look // len(CYCLE) % len(DASHES)], "width": 1.8},
        "customdata": _rounded(roc.thresholds[kept]),
    }
    place = "%{x:.3f}, %{y:.3f} at a score of %{customdata:.4f}"
    precision = hits[1:] / np.maximum(hits[1:] + alarms[1:], 1)
    rest = kept[kept > 0]
    return [
        {
            **style,
            "x": _rounded(roc.fpr[kept]),
            "y": _rounded(roc.tpr[kept]),
            "hovertemplate": f"{title}<br>1 - specificity, sensitivity: {place}<extra></extra>",
        },
        {
            **style,
            "x": _rounded(roc.tpr[rest]),
            "y": _rounded(precision[rest - 1]),
            "customdata": _rounded(roc.thresholds[rest]),
            "xaxis": "x2",
            "yaxis": "y2",
            "showlegend": False,
            "hovertemplate": f"{title}<br>recall, precision: {place}<extra></extra>",
        },
    ]


def reliability(runs: Sequence[Evaluated]) -> Chart | None:
    """Share of positives against predicted probability; None where no run was calibrated."""
    data: list[Trace] = []
    for run in runs:
        for scaling, curve in run.reliability.items():
            held = curve.counts > 0
            title = shown(scaling if len(runs) == 1 else f"{run.name}: {scaling}")
            look = len(data)
            data.append(
                {
                    "mode": "lines+markers",
                    "name": f"{title} (error {curve.error:.3f})",
                    "x": _rounded(curve.expected[held]),
                    "y": _rounded(curve.observed[held]),
                    "customdata": curve.counts[held].astype(int).tolist(),
                    "line": {"color": CYCLE[look % len(CYCLE)], "width": 1.8},
                    "marker": {"symbol": SYMBOLS[look % len(SYMBOLS)], "size": 7},
                    "hovertemplate": f"{title}<br>given %{{x:.3f}}, have it %{{y:.3f}}, of %{{customdata}}<extra></extra>",
                }
            )
    if not data:
        return None
    layout = _axes(("predicted probability", "share of positives", [0.0, 1.0]))
    layout["shapes"] = [DIAGONAL]
    caption = (
        "On the dotted line probabilities hold: of the volumes that are given 30 %, 30 % have the abnormality. "
        "All abnormalities together; scalings fitted on the validation split."
    )
    return Chart("reliability", caption, data, layout)


def gap(run: Evaluated, key: str) -> Chart | None:
    """Volumes and texts in the plane, before and after the knowledge bank; None where that was not measured."""
    told = run.told.get("modality_gap")
    if run.alignment is None or not run.alignment.clouds or not told:
        return None
    clouds = run.alignment.clouds
    halves = [[0.0, 0.46], [0.54, 1.0]] if len(clouds) > 1 else [[0.0, 1.0]]
    titles = [
        f"{phase} CMKI: gap {told[phase]:.3f}" if len(clouds) > 1 else f"gap {told[phase]:.3f}" for phase in clouds
    ]
    layout = _axes(*((title, "", half) for title, half in zip(titles, halves, strict=True)))
    everything = np.concatenate([part for cloud in clouds.values() for part in (cloud.volumes, cloud.texts)])
    reach = 1.08 * max(float(np.abs(everything).max()), 1e-6)
    for axis in [name for name in layout if "axis" in name]:
        layout[axis] |= {"range": [-reach, reach], "constrain": "domain"}
        if axis.startswith("y"):
            layout[axis]["scaleanchor"] = axis.replace("yaxis", "x")
    data = [trace for number, cloud in enumerate(clouds.values()) for trace in _cloud(cloud, number)]
    shares = ", ".join(f"{cloud.explained:.0%} {phase}" for phase, cloud in clouds.items())
    caption = (
        f"{run.name}: embeddings of CT volumes and of their texts on their first two common principal axes (they show {shares} "
        "of the variance), all to one scale. The line joins the two means."
    )
    return Chart(key, caption, data, layout)


def _cloud(cloud: Clouds, number: int) -> list[Trace]:
    axes = {} if number == 0 else {"xaxis": "x2", "yaxis": "y2"}
    data: list[Trace] = []
    for name, points, colour, symbol in (
        ("CT volumes", cloud.volumes, BLUE, "circle"),
        ("texts", cloud.texts, VERMILION, "triangle-up"),
    ):
        kept = _thinned(len(points), 2 * POINTS)
        data.append(
            {
                **axes,
                "mode": "markers",
                "name": name,
                "legendgroup": name,
                "showlegend": number == 0,
                "x": _rounded(points[kept, 0]),
                "y": _rounded(points[kept, 1]),
                "marker": {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.55},
                "hoverinfo": "skip",
            }
        )
    centres = np.stack([cloud.volumes.mean(axis=0), cloud.texts.mean(axis=0)])
    line = {"color": GREY, "width": 2}
    means = {"mode": "lines+markers", "name": "between the means", "legendgroup": "means", "showlegend": number == 0}
    data.append(
        {**axes, **means, "x": _rounded(centres[:, 0]), "y": _rounded(centres[:, 1]), "line": line, "hoverinfo": "skip"}
    )
    return data


def recall(runs: Sequence[Evaluated]) -> Chart | None:
    """The share of volumes (and texts) whose own text (or volume) is among the first K; None where that was not measured."""
    data: list[Trace] = []
    for number, run in enumerate(runs):
        if run.alignment is None:
            continue
        ranks = run.alignment.ranks
        for name, found, dash in (
            ("volume to text", ranks.of_text, "solid"),
            ("text to volume", ranks.of_volume, "dash"),
        ):
            title = shown(name if len(runs) == 1 else f"{run.name}: {name}")
            first, share = _recall_curve(found)
            data.append(
                {
                    "mode": "lines",
                    "name": title,
                    "x": first,
                    "y": share,
                    "line": {"color": CYCLE[number % len(CYCLE)], "dash": dash, "width": 1.8, "shape": "hv"},
                    "hovertemplate": f"{title}<br>among the first %{{x}}: %{{y:.3f}}<extra></extra>",
                }
            )
    if not data:
        return None
    layout = _axes(("among the first K (log)", "share found", [0.0, 1.0]))
    del layout["xaxis"]["range"]
    layout["xaxis"] |= {"type": "log", "dtick": 1}
    return Chart(
        "recall", "How often what belongs together is found among the K most similar, for every K.", data, layout
    )


def _recall_curve(ranks: NDArray[np.int64]) -> tuple[list[int], list[float | None]]:
    places, counts = np.unique(ranks, return_counts=True)
    kept = _thinned(len(places))
    return (places[kept] + 1).tolist(), _rounded(np.cumsum(counts)[kept] / len(ranks))


def _axes(*panels: tuple[str, str, Sequence[float]]) -> dict[str, Any]:
    """A layout of panels beside each other: title of the x axis, of the y axis, and the share of the width."""
    layout: dict[str, Any] = {
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48, "autoexpand": False},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "hovermode": "closest",
        "legend": {
            "bgcolor": "rgba(0,0,0,0)",
            "orientation": "h",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "entrywidthmode": "fraction",
            "entrywidth": 0.24,
            "font": {"size": 11},
        },
    }
    for number, (across, up, width) in enumerate(panels, 1):
        end = "" if number == 1 else str(number)
        common: dict[str, Any] = {"zeroline": False, "range": [-0.01, 1.01]}
        layout[f"xaxis{end}"] = {**common, "title": {"text": across}, "domain": list(width), "anchor": f"y{end}"}
        layout[f"yaxis{end}"] = {**common, "title": {"text": up}, "anchor": f"x{end}"}
    return layout


def _thinned(count: int, most: int = POINTS) -> NDArray[np.int64]:
    """Some of `count` rows, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    return [round(float(value), 5) if np.isfinite(value) else None for value in values]


def specification(chart: Chart) -> Mapping[str, Any]:
    """What the page's script draws."""
    return {"data": chart.data, "layout": chart.layout}
