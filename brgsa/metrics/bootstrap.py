"""Bootstrap: the volumes drawn with replacement many times, every figure on each draw, and the intervals of those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brgsa.metrics.arrays import Floats, matrix, nanmean
from brgsa.metrics.ranking import AT_THRESHOLD, RANKING
from brgsa.metrics.resampling import Ranked

FIGURES = (*RANKING, *AT_THRESHOLD)
COUNTED_AS_ZERO = ("auprc", "recall")  # by scikit-learn, in a draw without a positive

_CHUNK_CELLS = 1 << 18  # counts of the draws that are measured at a time: so many stay in the processor's cache


class Interval(NamedTuple):
    """A figure: its value, and the mean, standard deviation and 2.5th/97.5th percentiles over its draws."""

    value: float
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Drawing:
    """How volumes are drawn.

    Attributes:
        resamples: number of draws.
        seed: of the first draw.
        seed_each: whether each draw has a seed of its own, `seed`, `seed + 1` and so on, in NumPy's old generator: what
            `np.random.seed(i); np.random.choice(n, n)` draws, as BrgSA's published code does. Otherwise one stream gives all.
    """

    resamples: int = 5000
    seed: int = 0
    seed_each: bool = False

    def counts(self, size: int, at_once: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """How often each of `size` things is drawn, (size, R) for R draws at a time, with the numbers of these draws."""
        stream = np.random.default_rng(self.seed)
        for start in range(0, self.resamples if size else 0, at_once):
            block = slice(start, min(start + at_once, self.resamples))
            number = block.stop - block.start
            if self.seed_each:
                seeds = range(self.seed + block.start, self.seed + block.stop)
                drawn = np.stack([np.random.RandomState(s).randint(0, size, size) for s in seeds])
            else:
                drawn = stream.integers(0, size, (number, size))
            flat = drawn * number + np.arange(number)[:, None]
            counts = np.bincount(flat.ravel(), minlength=size * number).astype(np.float32)
            yield block, counts.reshape(size, number)


@dataclass(frozen=True)
class IntervalRule:
    """What is made of the draws.

    Attributes:
        of_draws: whether a figure's value is the mean over its draws, as the paper reports it, and not that of all volumes.
        ddof: divisor of the standard deviation is R - ddof.
        without_positive_zero: whether AUPRC and recall count as 0 in a draw without a positive, and a draw without an AUROC
            leaves no percentiles, as in the published code. Otherwise such a draw is left out.
        mean_of_intervals: whether the interval of a mean over abnormalities is the mean of their intervals, as published,
            and not the interval of the mean, which is several times narrower.
    """

    of_draws: bool = False
    ddof: int = 0
    without_positive_zero: bool = False
    mean_of_intervals: bool = False


PAPER_RULE = IntervalRule(of_draws=True, ddof=1, without_positive_zero=True, mean_of_intervals=True)


@dataclass(frozen=True)
class Bootstrap:
    """The figures of P abnormalities on all volumes and on R draws.

    The draws of two models on the same volumes, groups and seed are paired: the `interval` of their difference is that of
    what one model gains over the other.

    Attributes:
        point: figure → float64 (P,), on all volumes.
        draws: figure → float64 (R, P), on each draw.
        rule: what is made of them.
    """

    point: dict[str, Floats]
    draws: dict[str, Floats]
    rule: IntervalRule = field(default_factory=IntervalRule)

    def interval(self, metric: str, columns: int | Sequence[int] | None = None) -> Interval:
        """The interval of one abnormality's figure, or of the mean over several (all by default).

        An abnormality that cannot be measured on all volumes is left out of that mean, and by the default rule also out of
        the mean in a draw where it cannot; a draw in which none can be measured is left out of the interval.
        """
        chosen = (
            np.arange(self.point[metric].size) if columns is None else np.atleast_1d(np.asarray(columns, dtype=np.intp))
        )
        values, draws = self.point[metric][chosen], self.draws[metric][:, chosen]
        if self.rule.mean_of_intervals and chosen.size > 1:
            measured = np.flatnonzero(~np.isnan(values))
            each = [interval(values[i], draws[:, i], self.rule) for i in measured]
            return Interval(*np.mean(each, axis=0).tolist()) if each else interval(np.nan, draws[:, 0])
        return interval(nanmean(values).item(), nanmean(draws), self.rule)


def interval(value: float, draws: Floats, rule: IntervalRule | None = None) -> Interval:
    """The interval of a figure from its value on all volumes and its draws, float (R,); NaN draws are left out.

    Where the rule counts draws without a positive, a NaN draw leaves no percentiles.
    """
    rule = rule or IntervalRule()
    known = draws[~np.isnan(draws)]
    if not known.size or np.isnan(value):
        return Interval(value, np.nan, np.nan, np.nan, np.nan)
    mean = float(known.mean())
    sd = float(known.std(ddof=rule.ddof)) if known.size > rule.ddof else np.nan
    spoiled = rule.without_positive_zero and known.size < draws.size
    low, high = (np.nan, np.nan) if spoiled else np.percentile(known, [2.5, 97.5]).tolist()
    return Interval(mean if rule.of_draws else value, mean, sd, low, high)


def bootstrap(
    labels: ArrayLike,
    scores: ArrayLike,
    drawing: Drawing | None = None,
    *,
    groups: ArrayLike | None = None,
    thresholds: ArrayLike | None = None,
    rule: IntervalRule | None = None,
) -> Bootstrap:
    """Draw volumes with replacement and measure every abnormality on each draw.

    Each abnormality is sorted once. A draw is a vector of how often each volume was drawn (see `resampling`). Where a draw
    lacks a class of an abnormality, figures that need it are NaN (see `Bootstrap.interval`).

    Args:
        labels, scores: (N, P), N volumes and P abnormalities.
        groups: (N,) each volume's scan or patient. Whole groups are then drawn, since two reconstructions of a scan are not
            two observations; by default single volumes are, as in the paper.
        thresholds: (P,) for the figures of `at_threshold`, which are NaN without; they stay fixed over the draws.

    Raises:
        ValueError: see `arrays.matrix`.
    """
    truth, score = matrix(labels, scores)
    drawing, rule = drawing or Drawing(), rule or IntervalRule()
    volumes, abnormalities = truth.shape
    member = np.arange(volumes) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    cuts = np.full(abnormalities, np.nan) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    known = [np.flatnonzero(~np.isnan(truth[:, p])) for p in range(abnormalities)]
    ranked = [
        Ranked.of(truth[rows, p], score[rows, p], rows, threshold=cuts[p], width=volumes)
        for p, rows in enumerate(known)
    ]
    draws = {name: np.full((drawing.resamples, abnormalities), np.nan) for name in FIGURES}
    point = {name: np.full(abnormalities, np.nan) for name in FIGURES}
    for p, one in enumerate(ranked):
        for name, value in one.figures().items():
            point[name][p] = value.item()
    for block, counts in drawing.counts(int(member.max()) + 1 if volumes else 0, _at_once(volumes)):
        drawn = counts if groups is None else counts[member]
        for p, one in enumerate(ranked):
            for name, values in one.figures(drawn).items():
                draws[name][block, p] = values
    if rule.without_positive_zero:
        for name in COUNTED_AS_ZERO:
            measured = ~np.isnan(point[name])
            draws[name][:, measured] = np.nan_to_num(draws[name][:, measured])
    return Bootstrap(point, draws, rule)


def _at_once(volumes: int) -> int:
    """Draws measured at a time."""
    return max(1, _CHUNK_CELLS // max(volumes, 1))
