"""From scores to probabilities, and whether those hold: of the volumes given 30 %, do 30 % have the abnormality?

Scalings are fitted on other volumes than those they are judged on (the validation split).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from brgsa.metrics.arrays import Floats, column

BINS = 15


class Reliability(NamedTuple):
    """Volumes binned by their probability, float64 (B,) each; of an empty bin both shares are NaN.

    Attributes:
        counts: volumes in each bin of equal width between 0 and 1.
        expected: their mean probability.
        observed: share of them with the abnormality.
    """

    counts: Floats
    expected: Floats
    observed: Floats

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): the mean distance of the two, weighted by the counts."""
        held = self.counts > 0
        if not held.any():
            return float("nan")
        distance = np.abs(self.expected[held] - self.observed[held])
        return float(np.average(distance, weights=self.counts[held]))


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> Reliability:
    """The reliability of probabilities (N,); ValueError where one is not between 0 and 1, or as in `auroc`."""
    truth, share = column(labels, probabilities)
    if share.size and not 0 <= share.min() <= share.max() <= 1:
        raise ValueError("probabilities must lie between 0 and 1")
    place = np.minimum((share * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = np.bincount(place, weights=share, minlength=bins) / counts
        observed = np.bincount(place, weights=truth, minlength=bins) / counts
    return Reliability(counts, expected, observed)


class Temperature(NamedTuple):
    """sigmoid(score / temperature + bias): a cosine has no level of its own, so that both are needed (Platt 1999)."""

    temperature: float
    bias: float

    @classmethod
    def fit(cls, labels: ArrayLike, scores: ArrayLike) -> Temperature | None:
        """The likeliest on these volumes, with Platt's softened targets; None without both classes, or with one score only."""
        truth, score = column(labels, scores)
        positives = truth.sum()
        negatives = truth.size - positives
        spread = score.std() if score.size else 0.0
        if not positives or not negatives or not spread:
            return None
        target = np.where(truth > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        unit, middle = score / spread, score.mean() / spread

        def loss(at: Floats) -> tuple[float, Floats]:
            logit = at[0] * (unit - middle) + at[1]
            error = special.expit(logit) - target
            value = np.mean(np.logaddexp(0, logit) - target * logit)
            return float(value), np.array([np.mean(error * (unit - middle)), error.mean()])

        slope, level = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
        slope = slope if abs(slope) > 1e-12 else 1e-12
        return cls(float(spread / slope), float(level - slope * middle))

    def __call__(self, scores: ArrayLike) -> Floats:
        """The probabilities (N,) of scores (N,)."""
        made: Floats = special.expit(np.asarray(scores, dtype=np.float64) / self.temperature + self.bias)
        return made


class Isotonic(NamedTuple):
    """A rising step function through the fitted volumes, linear between its steps (Zadrozny and Elkan 2002)."""

    scores: Floats
    probabilities: Floats

    @classmethod
    def fit(cls, labels: ArrayLike, scores: ArrayLike) -> Isotonic | None:
        """The closest in squares on these volumes; None without both classes."""
        truth, score = column(labels, scores)
        if not 0 < truth.sum() < truth.size:
            return None
        levels, group, counts = np.unique(score, return_inverse=True, return_counts=True)
        means = np.bincount(group, weights=truth) / counts
        return cls(levels, np.clip(optimize.isotonic_regression(means, weights=counts.astype(float)).x, 0, 1))

    def __call__(self, scores: ArrayLike) -> Floats:
        """The probabilities (N,) of scores (N,); beyond the fitted scores the outermost step goes on."""
        made: Floats = np.interp(np.asarray(scores, dtype=np.float64), self.scores, self.probabilities)
        return made
