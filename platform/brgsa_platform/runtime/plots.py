"""Pictures: ROC curves, bars of metrics, clouds of embeddings, CT slices as the model sees them, an archive's fingerprint.

Figures are made without pyplot, whose global state is neither thread-safe nor freed. The colours are Okabe and Ito's, which
colour-blind readers tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from numpy.typing import NDArray

from brgsa.files import written_aside
from brgsa.metrics import Interval, RocCurve
from brgsa.metrics.calibration import Reliability
from brgsa.metrics.gap import Clouds
from brgsa_platform.runtime.overlay import overlay

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#7F7F7F",
)  # fmt: skip
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
MARKERS = "osD^vP"
DASHES = ("-", "--", ":", "-.")

LUNG, SOFT_TISSUE = (-1000.0, 250.0), (-160.0, 240.0)  # HU shown from black to white
PLANES = ("axial", "coronal", "sagittal")
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top and bottom of a slice


def roc_figure(curves: Mapping[str, tuple[RocCurve, float]], title: str = "ROC curves") -> Figure:
    """One curve an abnormality, the best AUROC first in the legend.

    Args:
        curves: abnormality → its curve and AUROC.
    """
    figure = new_figure(8.4, 5.6)
    draw_roc(figure, curves, title)
    return figure


def draw_roc(figure: FigureBase, curves: Mapping[str, tuple[RocCurve, float]], title: str = "ROC curves") -> None:
    """`roc_figure` in a part of a figure."""
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    ranked = sorted(curves.items(), key=lambda item: -item[1][1])
    for i, (name, (curve, area)) in enumerate(ranked):
        style = DASHES[i // len(CYCLE) % len(DASHES)]
        colour = CYCLE[i % len(CYCLE)]
        axes.plot(curve.fpr, curve.tpr, color=colour, linestyle=style, linewidth=1.6, label=f"{area:.2f}  {name}")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title)
    axes.set(xlabel="False positive rate (1 - specificity)", ylabel="True positive rate (sensitivity)")
    if ranked:
        beside = (1.02, 1.0)
        axes.legend(title="AUROC", alignment="left", frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=beside)
    plain(axes)


def bars_figure(
    groups: Mapping[str, Mapping[str, Interval]], metric: str = "AUROC", chance: float | None = 0.5, title: str = ""
) -> Figure:
    """Points with 95 % intervals: one row an abnormality, in the first model's order of falling value, one colour a model.

    Args:
        groups: a model's name → abnormality → interval; an abnormality that could not be measured (NaN) is left out.
        metric: the metric's name, for the axis.
        chance: the value of a model that guesses, drawn as a line.
    """
    figure = new_figure(7.6, 1.4 + 0.3 * max(len(_ranked(groups)), 3))
    draw_bars(figure, groups, metric, chance, title)
    return figure


def draw_bars(
    figure: FigureBase,
    groups: Mapping[str, Mapping[str, Interval]],
    metric: str = "AUROC",
    chance: float | None = 0.5,
    title: str = "",
) -> None:
    """`bars_figure` in a part of a figure."""
    names = _ranked(groups)
    axes = figure.add_subplot()
    if chance is not None:
        axes.axvline(chance, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    side_by_side = len(names) < sum(len(values) for values in groups.values())
    offsets = np.linspace(-0.18, 0.18, len(groups)) if side_by_side else np.zeros(len(groups))
    for i, ((group, values), offset) in enumerate(zip(groups.items(), offsets, strict=True)):
        colour, marker = CYCLE[i % len(CYCLE)], MARKERS[i % len(MARKERS)]
        shown = [(row + offset, values[name]) for row, name in enumerate(names) if name in values]
        rows = [row for row, _ in shown]
        axes.hlines(
            rows, [v.low for _, v in shown], [v.high for _, v in shown], color=colour, linewidth=2.2, alpha=0.55
        )
        axes.plot([v.value for _, v in shown], rows, marker, color=colour, markersize=6, label=group)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=f"{metric}, with 95 % interval", title=title)
    if len(groups) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    plain(axes)


def _ranked(groups: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    """The names that have a value, each once, by falling value in the first group that has them."""
    names: list[str] = []
    for values in groups.values():
        measured = [name for name in values if np.isfinite(values[name].value) and name not in names]
        names += sorted(measured, key=lambda name: -values[name].value)
    return names


def clouds_figure(
    before: Clouds, gap_before: float, after: Clouds | None = None, gap_after: float | None = None
) -> Figure:
    """Embeddings of volumes and texts in the plane, to the same scale: plain and, for a model with a bank, through CMKI.

    Args:
        before, after: the points; `after` is None for a model without a bank.
        gap_before, gap_after: the modality gap, for the titles.
    """
    figure = new_figure(4.9 * (1 if after is None else 2), 4.9)
    draw_clouds(figure, before, gap_before, after, gap_after)
    return figure


def draw_clouds(
    figure: FigureBase, before: Clouds, gap_before: float, after: Clouds | None = None, gap_after: float | None = None
) -> None:
    """`clouds_figure` in a part of a figure."""
    panels = [("Before CMKI" if after is not None else "Plain embeddings (no bank)", before, gap_before)]
    if after is not None and gap_after is not None:
        panels.append(("After CMKI", after, gap_after))
    everything = np.concatenate([cloud for _, clouds, _ in panels for cloud in (clouds.volumes, clouds.texts)])
    reach = 1.08 * max(float(np.abs(everything).max()), 1e-6)
    for i, (title, clouds, gap) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        axes.plot(*clouds.volumes.T, "o", color=BLUE, alpha=0.5, markersize=5, markeredgewidth=0, label="CT volumes")
        axes.plot(*clouds.texts.T, "^", color=VERMILION, alpha=0.5, markersize=5, markeredgewidth=0, label="texts")
        centres = np.stack([clouds.volumes.mean(axis=0), clouds.texts.mean(axis=0)])
        axes.plot(*centres.T, color="black", linewidth=1.4, marker="o", markersize=4, label="between the means")
        axes.set(title=f"{title}: modality gap {gap:.2f}", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.set(xlabel=f"1st axis ({clouds.explained:.0%} of the variance in both)", ylabel="2nd axis")
        axes.legend(frameon=False, fontsize=8, loc="upper right")
        plain(axes)


def reliability_figure(curves: Mapping[str, tuple[Reliability, float]]) -> Figure:
    """Share of positives against predicted probability, a line a scaling; on the diagonal probabilities hold.

    Args:
        curves: scaling → its reliability and the error that the legend tells.
    """
    figure = new_figure(5.2, 4.9)
    draw_reliability(figure, curves)
    return figure


def draw_reliability(figure: FigureBase, curves: Mapping[str, tuple[Reliability, float]]) -> None:
    """`reliability_figure` in a part of a figure."""
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    for i, (name, (curve, error)) in enumerate(curves.items()):
        held = curve.counts > 0
        style: dict[str, Any] = {"color": CYCLE[i % len(CYCLE)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        axes.plot(curve.expected[held], curve.observed[held], label=f"{name}, error {error:.3f}", **style)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title="Reliability over all abnormalities")
    axes.set(xlabel="Predicted probability", ylabel="Share of positives")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    plain(axes)


def planes_figure(
    volumes: Sequence[tuple[str, NDArray[np.generic]]],
    spacing: tuple[float, float, float],
    centre: tuple[int, int, int] | None = None,
) -> Figure:
    """Axial, coronal and sagittal slices of CT volumes, one row a volume, in a lung and a soft-tissue window.

    They are shown in the radiological convention: the patient's right is at the picture's left.

    Args:
        volumes: caption (no identifier of a patient) and HU (x, y, z), all of one shape, with x to the patient's left, y
            to posterior, z to superior.
        spacing: mm of a voxel along x, y and z.
        centre: the voxel (x, y, z) through which the slices go; by default the middle.
    """
    across, deep, high = (n * mm for n, mm in zip(volumes[0][1].shape, spacing, strict=True))
    widths, tallest = [across, across, deep] * 2, max(deep, high)  # all planes to one scale
    figure = new_figure(13.2, 0.4 + 13.0 * tallest / sum(widths) * len(volumes))
    grid = figure.add_gridspec(len(volumes), 6, width_ratios=widths)
    for row, (caption, array) in enumerate(volumes):
        at = centre or tuple(n // 2 for n in array.shape)
        for column in range(6):
            axes = figure.add_subplot(grid[row, column])
            plane = PLANES[column % 3]
            _slice(axes, array, plane, at, spacing, LUNG if column < 3 else SOFT_TISSUE)
            if row == 0:
                axes.set_title(f"{plane}, {'lung' if column < 3 else 'soft tissue'}", fontsize=9)
            if column == 0:
                axes.set_ylabel(caption, fontsize=8)
    return figure


def heat_figure(
    hu: NDArray[np.generic],
    maps: Sequence[tuple[str, NDArray[np.floating]]],
    spacing: tuple[float, float, float],
) -> Figure:
    """Axial, coronal and sagittal slices through the maximum of each map, over the CT; one row a map.

    Args:
        hu: HU (x, y, z), oriented as for `planes_figure`.
        maps: caption and map (x, y, z) from 0 (not drawn) to 1 (see `overlay`); its maximum may be lower. A map of zeros shows
            the CT alone.
        spacing: mm of a voxel along x, y and z.
    """
    across, deep, high = (n * mm for n, mm in zip(hu.shape, spacing, strict=True))
    widths, tallest = [across, across, deep], max(deep, high)
    figure = new_figure(9.0, 0.4 + 8.6 * tallest / sum(widths) * len(maps))
    grid = figure.add_gridspec(len(maps), 3, width_ratios=widths)
    for row, (caption, heat) in enumerate(maps):
        highest = np.unravel_index(int(np.argmax(heat)), heat.shape) if heat.any() else [n // 2 for n in heat.shape]
        at = tuple(int(i) for i in highest)
        for column, plane in enumerate(PLANES):
            axes = figure.add_subplot(grid[row, column])
            _slice(axes, hu, plane, at, spacing, LUNG)
            shown, aspect = _plane(heat, plane, at, spacing)
            axes.imshow(overlay(shown), origin="upper", aspect=aspect, interpolation="bilinear")
            if column == 0:
                axes.set_ylabel(caption, fontsize=8)
            if row == 0:
                axes.set_title(plane, fontsize=9)
    return figure


def fingerprint_figure(
    spacing: Mapping[str, Mapping[str, float]],
    extent: Mapping[str, Mapping[str, float]],
    histogram: Sequence[float],
    bins: tuple[int, int],
) -> Figure:
    """What an archive's scans are like: their spacing and extent along each axis, and the HU of the store.

    Args:
        spacing, extent: axis → percentile → mm; five percentiles, the median in the middle.
        histogram: the share of voxels in each bin.
        bins: the first bin's lowest HU, and the width of a bin.
    """
    figure = new_figure(10.5, 3.4)
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.4))
    for axes, values, title in ((panels[0], spacing, "Spacing (mm)"), (panels[1], extent, "Extent (mm)")):
        for row, by_percentile in enumerate(values.values()):
            lowest, low, median, high, highest = by_percentile.values()
            axes.plot([lowest, highest], [row, row], color=BLUE, linewidth=1.2)
            axes.plot([low, high], [row, row], color=BLUE, linewidth=5, alpha=0.5)
            axes.plot(median, row, "o", color=VERMILION, markersize=5)
        axes.set_yticks(range(len(values)), list(values))
        axes.set(title=title, ylim=(len(values) - 0.5, -0.5), xlabel="median; 5-95 %; 0.5-99.5 %")
        plain(axes)
    edges = bins[0] + bins[1] * np.arange(len(histogram) + 1)
    panels[2].stairs(np.asarray(histogram) * 100, edges, fill=True, color=SKY)
    panels[2].set(title="HU on the store's grid", xlabel="HU", ylabel="voxels (%)", yscale="log")
    plain(panels[2])
    return figure


def save(figure: Figure, path: Path | str) -> None:
    """Write a PNG aside and rename it to `path`.

    Raises:
        OSError: the folder cannot be written.
    """
    with written_aside(Path(path)) as aside:
        figure.savefig(aside, format="png", dpi=130)


def _slice(
    axes: Axes,
    array: NDArray[np.generic],
    plane: str,
    at: tuple[int, ...],
    spacing: tuple[float, float, float],
    window: tuple[float, float],
) -> None:
    picture, aspect = _plane(array, plane, at, spacing)
    low, high = window
    axes.imshow(picture, cmap="gray", vmin=low, vmax=high, origin="upper", aspect=aspect, interpolation="nearest")
    places = (
        (0.03, 0.5, "left", "center"),
        (0.97, 0.5, "right", "center"),
        (0.5, 0.97, "center", "top"),
        (0.5, 0.03, "center", "bottom"),
    )
    for letter, (across, up, ha, va) in zip(LETTERS[plane], places, strict=True):
        axes.text(across, up, letter, ha=ha, va=va, transform=axes.transAxes, color=ORANGE, fontsize=9, weight="bold")
    axes.set(xticks=[], yticks=[], facecolor="black")


def _plane(
    array: NDArray[np.generic], plane: str, at: tuple[int, ...], spacing: tuple[float, float, float]
) -> tuple[NDArray[np.generic], float]:
    """A slice as rows of a picture, and how much taller than wide a voxel of it is.

    Rows run downwards: to posterior in the axial plane, to inferior in the other two, where z is turned round.
    """
    x, y, z = at
    picture, tall, wide = {
        "axial": (array[:, :, z].T, spacing[1], spacing[0]),
        "coronal": (array[:, y, ::-1].T, spacing[2], spacing[0]),
        "sagittal": (array[x, :, ::-1].T, spacing[2], spacing[1]),
    }[plane]
    return picture, tall / wide


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, its size in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def plain(axes: Axes) -> None:
    """Take the frame away at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
