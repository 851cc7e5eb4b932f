"""Pictures: what stands in them, and in which order."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from brgsa.metrics import Interval, RocCurve
from brgsa.metrics.gap import Clouds
from brgsa_platform.runtime.plots import bars_figure, clouds_figure, planes_figure, roc_figure, save

PNG = b"\x89PNG\r\n\x1a\n"


def interval(value: float) -> Interval:
    return Interval(value, *[value] * (len(Interval._fields) - 1))


def test_bars_stand_in_the_order_of_falling_value_without_what_could_not_be_measured() -> None:
    first = {"low": 0.6, "unmeasured": math.nan, "high": 0.9, "unknown": math.nan, "middle": 0.7}
    second = {"low": 0.8, "only here": 0.5}
    groups = {"first": first, "second": second}
    figure = bars_figure({name: {k: interval(v) for k, v in values.items()} for name, values in groups.items()})
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["high", "middle", "low", "only here"]


def test_every_model_has_its_points() -> None:
    groups = {f"model {i}": {"nodule": interval(0.5 + i / 100)} for i in range(9)}
    (axes,) = bars_figure(groups, chance=None).axes
    assert [line.get_label() for line in axes.lines] == list(groups)


def test_the_best_curve_is_first_in_the_legend() -> None:
    curve = RocCurve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    figure = roc_figure({"a": (curve, 0.6), "b": (curve, 0.9)})
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0.90  b", "0.60  a"]


def test_slices_are_shown_in_the_radiological_convention() -> None:
    volume = np.full((8, 6, 10), -1000, np.int16)
    volume[7, 3, 5] = 500  # far left of the patient, in the middle slices
    volume[4, 0, 5] = 501  # far anterior
    volume[4, 3, 9] = 502  # far superior
    figure = planes_figure([("x", volume)], (1.0, 1.0, 2.0), centre=(4, 3, 5))
    axial, coronal, sagittal = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3])
    assert axial.shape == (6, 8)  # rows to posterior, columns to the left
    assert axial[3, 7] == 500
    assert axial[0, 4] == 501
    assert coronal[0, 4] == 502  # superior on top
    assert sagittal[0, 3] == 502
    assert sagittal[4, 0] == 501  # anterior at the picture's left; z = 5 of 0..9 stands in row 4
    letters = [text.get_text() for text in figure.axes[0].texts]
    assert letters == ["R", "L", "A", "P"]


def test_a_picture_is_whole_or_not_there(tmp_path: Path) -> None:
    points = np.array([[0.0, 1.0], [1.0, 0.0]])
    figure = clouds_figure(Clouds(points, -points, 1.0), gap_before=0.5)
    save(figure, tmp_path / "clouds.png")
    assert (tmp_path / "clouds.png").read_bytes().startswith(PNG)
    assert os.listdir(tmp_path) == ["clouds.png"]
    with pytest.raises(OSError, match="gone"):
        save(figure, tmp_path / "gone" / "clouds.png")
