"""Two models on the same volumes: is one better beyond chance?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from brgsa.metrics.arrays import Floats, column, nanmean
from brgsa.metrics.bootstrap import Bootstrap, Interval, IntervalRule, interval


class DeLong(NamedTuple):
    """Two correlated AUROCs: both, the standard error of their difference, and the two-sided p-value of no difference."""

    first: float
    second: float
    sd: float
    p: float


def delong(labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> DeLong:
    """DeLong's test of two models' scores (N,) on the same volumes (DeLong et al. 1988; by midranks, Sun and Xu 2014).

    It takes volumes for independent: two reconstructions of one scan make it too sure. All is NaN without both classes; p is 1
    where the two rank alike.

    Raises:
        ValueError: shapes differ, a label is not 0, 1 or NaN, or a score is not finite.
    """
    truth, one = column(labels, first)
    _, other = column(labels, second)
    present = truth > 0
    if not present.any() or present.all():
        return DeLong(np.nan, np.nan, np.nan, np.nan)
    components = [_components(score[present], score[~present]) for score in (one, other)]
    areas = [float(positive.mean()) for positive, _ in components]
    variance = sum(
        float(np.var(a - b, ddof=1)) / len(a) if len(a) > 1 else 0.0 for a, b in zip(*components, strict=True)
    )
    sd = float(np.sqrt(variance))
    gap = areas[0] - areas[1]
    if sd < 1e-12:
        return DeLong(areas[0], areas[1], 0.0, 1.0 if abs(gap) < 1e-12 else 0.0)
    return DeLong(areas[0], areas[1], sd, float(2 * stats.norm.sf(abs(gap) / sd)))


def _components(positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """The share of the other class that each positive lies above, and that each negative lies below; ties count half."""
    m, n = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    above = (ranks[:m] - stats.rankdata(positive)) / n
    below = 1 - (ranks[m:] - stats.rankdata(negative)) / m
    return above, below


def difference(
    first: Bootstrap, second: Bootstrap, metric: str, columns: int | list[int] | None = None
) -> tuple[Interval, float]:
    """What the first model gains over the second in a figure, or in its mean over several abnormalities, and its p-value.

    Both were measured on the same draws. The interval is that of the difference of the means; p is two-sided: twice the
    share of draws on the other side of zero, of R + 1 draws of which one is no difference.
    """
    draws = first.draws[metric] - second.draws[metric]
    paired = Bootstrap({metric: first.point[metric] - second.point[metric]}, {metric: draws}, IntervalRule(ddof=1))
    found = paired.interval(metric, columns)
    if np.isnan(found.value):
        return found, float("nan")
    chosen = draws if columns is None else draws[:, np.atleast_1d(np.asarray(columns))]
    return found, _two_sided(nanmean(chosen))


def gain_over_seeds(
    first: Sequence[Bootstrap], second: Sequence[Bootstrap], metric: str, columns: Sequence[int]
) -> tuple[Interval, float]:
    """What one configuration gains over another in a mean over abnormalities, both trained on the same S seeds.

    Volumes and seeds are drawn together: a draw is a draw of the volumes, and of the S pairs of trainings with replacement,
    so that neither the luck of the volumes nor that of the seeds passes for a gain. Of few seeds the luck is drawn too small.

    Args:
        first, second: the bootstraps of S trainings each, of the same draws, seed by seed.
        columns: the abnormalities of the mean.

    Returns:
        The interval of the mean gain, and the two-sided p-value as in `difference`.
    """
    chosen = list(columns)
    value = float(np.mean([difference(a, b, metric, chosen)[0].value for a, b in zip(first, second, strict=True)]))
    each = np.stack(
        [nanmean((a.draws[metric] - b.draws[metric])[:, chosen]) for a, b in zip(first, second, strict=True)]
    )
    seeds, draws = each.shape
    picked = np.random.default_rng(0).integers(0, seeds, (seeds, draws))
    gains = each[picked, np.arange(draws)].mean(axis=0)
    return interval(value, gains, IntervalRule(ddof=1)), _two_sided(gains)


def _two_sided(gains: Floats) -> float:
    """The p-value of no difference from the gains (R,) of paired draws, of which NaN do not count; NaN where none counts."""
    known = gains[~np.isnan(gains)]
    if not known.size:
        return float("nan")
    below, above = int((known <= 0).sum()), int((known >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (known.size + 1))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values (1979) of several tests, in their order; NaN are no tests and stay NaN."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted
