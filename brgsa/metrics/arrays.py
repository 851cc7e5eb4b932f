"""Labels and scores checked, and division and means that leave out what is not there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def matrix(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Labels and scores (N, P) as float64.

    Raises:
        ValueError: they differ in shape, a label is not 0, 1 or NaN, or a score is not finite.
    """
    truth, score = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != score.shape:
        raise ValueError(
            f"labels and scores must both be (volumes, abnormalities), not {truth.shape} and {score.shape}"
        )
    if not np.isin(truth[~np.isnan(truth)], (0.0, 1.0)).all():
        raise ValueError("labels must be 0, 1 or NaN (unknown)")
    if not np.isfinite(score).all():
        raise ValueError("scores must be finite")
    return truth, score


def column(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Labels and scores (N,) of one abnormality without the volumes of unknown label; ValueError as in `matrix`."""
    truth, score = matrix(np.asarray(labels, dtype=np.float64)[:, None], np.asarray(scores, dtype=np.float64)[:, None])
    known = ~np.isnan(truth[:, 0])
    return truth[known, 0], score[known, 0]


def divide(above: Floats, below: Any) -> Floats:
    """The quotient; NaN where the divisor is not above zero."""
    below = np.broadcast_to(np.asarray(below, dtype=np.float64), np.shape(above))
    quotient: Floats = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=quotient, where=below > 0)
    return quotient


def nanmean(values: Floats) -> Floats:
    """Mean over the last axis without NaN; NaN (without a warning) where nothing is left."""
    known = ~np.isnan(values)
    return divide(np.asarray(np.where(known, values, 0.0).sum(axis=-1)), known.sum(axis=-1))
