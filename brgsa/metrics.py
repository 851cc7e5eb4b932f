"""How well scores rank and separate volumes: AUROC, AUPRC, ROC curves, thresholds and bootstrap intervals.

Labels are 1 (present), 0 (absent) or NaN (unknown), scores are finite floats. A volume of unknown label is left out of that
abnormality. A figure that needs both classes, or a positive, is NaN where the class is absent ("cannot be measured here"),
never 0 or 0.5. The numbers are scikit-learn's (`roc_auc_score`, `average_precision_score`, `roc_curve`,
`f1_score(average="weighted")` and so on), as the tests check; scikit-learn itself is not needed.

Every function raises ValueError for labels and scores of different shapes, other labels, and scores that are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RANKING = ("auroc", "auprc")
AT_THRESHOLD = ("f1", "accuracy", "precision", "recall")

_CHUNK_CELLS = 1 << 19  # counts of the resamples drawn at a time: so many stay in the processor's cache


class RocCurve(NamedTuple):
    """An ROC curve: its points from (0, 0) to (1, 1), float64 (T + 1,) each.

    Attributes:
        fpr, tpr: false and true positive rates.
        thresholds: falling from infinity; at `thresholds[i]` a score of at least that much counts as positive.
    """

    fpr: Floats
    tpr: Floats
    thresholds: Floats


class Interval(NamedTuple):
    """A figure on all volumes, and the mean, standard deviation and 2.5th/97.5th percentiles over its resamples."""

    value: float
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """The figures of P abnormalities on all volumes and on R resamples.

    The draws of two models on the same volumes, groups and seed are paired: the `interval` of their difference is that of
    what one model gains over the other.

    Attributes:
        point: figure → float64 (P,), on all volumes.
        draws: figure → float64 (R, P), on each resample.
    """

    point: dict[str, Floats]
    draws: dict[str, Floats]

    def interval(self, metric: str, columns: int | Sequence[int] | None = None) -> Interval:
        """The interval of one abnormality's figure, or of the mean over several (all by default).

        An abnormality that cannot be measured, on all volumes or in one resample, is left out of that mean; a resample
        in which none can be measured is left out of the interval.
        """
        chosen = (
            np.arange(self.point[metric].size) if columns is None else np.atleast_1d(np.asarray(columns, dtype=np.intp))
        )
        return interval(_nanmean(self.point[metric][chosen]).item(), _nanmean(self.draws[metric][:, chosen]))


def interval(value: float, draws: Floats) -> Interval:
    """The interval of a figure from its value on all volumes and its draws, float (R,); NaN draws are left out."""
    known = draws[~np.isnan(draws)]
    if not known.size or np.isnan(value):
        return Interval(value, np.nan, np.nan, np.nan, np.nan)
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(value, float(known.mean()), float(known.std()), float(low), float(high))


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve of labels and scores (N,), ties counting half; NaN unless both classes are present."""
    return _Ranked(*_column(labels, scores)).auroc_auprc(None)[0].item()


def auprc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision of labels and scores (N,), the step-wise area under the precision-recall curve.

    It is NaN without a positive.
    """
    return _Ranked(*_column(labels, scores)).auroc_auprc(None)[1].item()


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """The ROC curve of labels and scores (N,), with a point at every distinct score; rates of an absent class are NaN."""
    truth, score = _column(labels, scores)
    order = np.argsort(-score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if score.size else np.empty(0, np.intp)
    hits, alarms = np.cumsum(truth)[last], np.cumsum(1.0 - truth)[last]
    return RocCurve(
        fpr=_divide(np.insert(alarms, 0, 0.0), np.sum(1.0 - truth)),
        tpr=_divide(np.insert(hits, 0, 0.0), np.sum(truth)),
        thresholds=np.insert(score[last], 0, np.inf),
    )


def corner_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold for labels and scores (N,) that is nearest the ROC's corner: the least sqrt((1 - TPR)² + FPR²).

    Scores strictly above it are positive. The candidates are the scores themselves; of equal distances the largest
    threshold wins (the evaluation protocol that BrgSA, CT-CLIP and fVLM share). Chosen on the volumes that it is then
    applied to, it fits the test labels (protocol `paper`); chosen on the validation split it does not. It is NaN unless
    both classes are present.
    """
    truth, score = _column(labels, scores)
    positives = truth.sum()
    negatives = truth.size - positives
    if not positives or not negatives:
        return float("nan")
    candidates, group = np.unique(score, return_inverse=True)
    misses = np.cumsum(np.bincount(group, weights=truth))
    alarms = negatives - np.cumsum(np.bincount(group, weights=1.0 - truth))
    # Multiplied by both class sizes these are whole numbers, so that equal distances are exactly equal.
    distance = (misses * negatives) ** 2 + (alarms * positives) ** 2
    return float(candidates[np.flatnonzero(distance == distance.min())[-1]])


def at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> dict[str, float]:
    """The figures `AT_THRESHOLD` of labels and scores (N,), where a score strictly above the threshold is positive.

    Weighted F1 is the mean of both classes' F1, weighted by their sizes; precision and recall are the positive class's. As
    in scikit-learn, precision is 0 where nothing is called positive. All are NaN when the threshold is NaN or there is no
    volume; recall is NaN without a positive.
    """
    truth, score = _column(labels, scores)
    called = (score > threshold).astype(np.float64)
    figures = _confusion_figures(*(np.atleast_1d(np.sum(cell)) for cell in _cells(truth, called)))
    return {name: float("nan") if np.isnan(threshold) else value.item() for name, value in figures.items()}


def bootstrap(
    labels: ArrayLike,
    scores: ArrayLike,
    resamples: int = 5000,
    seed: int = 0,
    groups: ArrayLike | None = None,
    thresholds: ArrayLike | None = None,
) -> Bootstrap:
    """Resample volumes with replacement and measure every abnormality on each resample.

    Each abnormality is sorted once. A resample is a vector of how often each volume was drawn, so that all its figures are
    running sums of those counts. Where a resample lacks a class of an abnormality, its figures are NaN (see
    `Bootstrap.interval`).

    Args:
        labels, scores: (N, P), N volumes and P abnormalities.
        groups: (N,) each volume's scan or patient. Whole groups are then drawn, since two reconstructions of a scan are not
            two observations; by default single volumes are, as in the paper.
        thresholds: (P,) adds the figures of `at_threshold`; they stay fixed over the resamples.
    """
    truth, score = _matrix(labels, scores)
    volumes, abnormalities = truth.shape
    names = RANKING if thresholds is None else RANKING + AT_THRESHOLD
    draws = {name: np.full((resamples, abnormalities), np.nan) for name in names}
    point = {name: np.full(abnormalities, np.nan) for name in names}
    member = np.arange(volumes) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    cuts = None if thresholds is None else np.asarray(thresholds, dtype=np.float64)

    ranked = []
    for p in range(abnormalities):
        known = np.flatnonzero(~np.isnan(truth[:, p]))
        ranked.append((known, _Ranked(truth[known, p], score[known, p])))
        _fill(point, p, slice(None), ranked[p][1], None, None if cuts is None else cuts[p])

    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // max(volumes, 1))
    for start in range(0, resamples if volumes else 0, step):
        block = slice(start, min(start + step, resamples))
        counts = _draw_counts(rng, block.stop - block.start, int(member.max()) + 1)[:, member]
        for p, (known, one) in enumerate(ranked):
            chosen = counts if known.size == volumes else counts[:, known]
            _fill(draws, p, block, one, chosen, None if cuts is None else cuts[p])
    return Bootstrap(point, draws)


def _fill(
    into: dict[str, Floats], p: int, rows: slice, one: _Ranked, counts: Floats | None, threshold: float | None
) -> None:
    """Write abnormality p's figures; `into` holds (P,) on all volumes (counts None) or (R, P) on resamples."""
    figures = dict(zip(RANKING, one.auroc_auprc(counts), strict=True))
    if threshold is not None:
        figures |= one.at_threshold(counts, threshold)
    for name, value in figures.items():
        if counts is None:
            into[name][p] = value.item()
        else:
            into[name][rows, p] = value


class _Ranked:
    """The n volumes of one abnormality, sorted once by rising score, with the runs of equal scores."""

    def __init__(self, truth: Floats, score: Floats) -> None:
        self._order = np.argsort(score, kind="stable")
        self._truth, self._score = truth[self._order], score[self._order]
        starts = np.flatnonzero(np.insert(self._score[1:] != self._score[:-1], 0, True)) if score.size else self._order
        self._starts = None if starts.size == score.size else starts

    def _sorted(self, counts: Floats | None) -> Floats:
        return np.ones((1, self._score.size)) if counts is None else np.take(counts, self._order, axis=1)

    def _per_run(self, cells: Floats) -> Floats:
        return cells if self._starts is None else np.add.reduceat(cells, self._starts, axis=1)

    def auroc_auprc(self, counts: Floats | None) -> tuple[Floats, Floats]:
        """AUROC and AUPRC, (R,) each, for the draw counts (R, n) of the volumes; None means every volume once."""
        drawn = self._sorted(counts)
        hits, drawn = self._per_run(drawn * self._truth), self._per_run(drawn)
        alarms = drawn - hits
        below = np.cumsum(alarms, axis=1)
        positives, negatives = hits.sum(axis=1), alarms.sum(axis=1)
        wins = np.einsum("rn,rn->r", hits, below) - 0.5 * np.einsum("rn,rn->r", hits, alarms)
        # Precision at a threshold: the share of positives among the volumes at or above it.
        hits_above = positives[:, None] - np.cumsum(hits, axis=1) + hits
        all_above = hits_above + negatives[:, None] - below + alarms
        precision = hits_above / np.maximum(all_above, 1.0)
        return _divide(wins, positives * negatives), _divide(np.einsum("rn,rn->r", hits, precision), positives)

    def at_threshold(self, counts: Floats | None, threshold: float) -> dict[str, Floats]:
        """The figures of `at_threshold`, each (R,), for the draw counts (R, n)."""
        drawn = self._sorted(counts)
        if np.isnan(threshold):
            return {name: np.full(len(drawn), np.nan) for name in AT_THRESHOLD}
        called = (self._score > threshold).astype(np.float64)
        return _confusion_figures(*(drawn @ cell for cell in _cells(self._truth, called)))


def _cells(truth: Floats, called: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Membership in the confusion matrix's cells: true positive, false positive, false negative, true negative."""
    return truth * called, (1 - truth) * called, truth * (1 - called), (1 - truth) * (1 - called)


def _confusion_figures(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> dict[str, Floats]:
    total = tp + fp + fn + tn
    f1_present = 2 * tp / np.maximum(2 * tp + fp + fn, 1.0)
    f1_absent = 2 * tn / np.maximum(2 * tn + fp + fn, 1.0)
    return {
        "f1": _divide((tp + fn) * f1_present + (tn + fp) * f1_absent, total),
        "accuracy": _divide(tp + tn, total),
        "precision": np.where(total > 0, tp / np.maximum(tp + fp, 1.0), np.nan),
        "recall": _divide(tp, tp + fn),
    }


def _draw_counts(rng: np.random.Generator, resamples: int, size: int) -> Floats:
    """How often each of `size` things is drawn in `size` draws with replacement: (resamples, size)."""
    drawn = rng.integers(0, size, (resamples, size)) + size * np.arange(resamples)[:, None]
    counts: Floats = np.bincount(drawn.ravel(), minlength=resamples * size).astype(np.float64)
    return counts.reshape(resamples, size)


def _divide(above: Floats, below: Any) -> Floats:
    below = np.broadcast_to(np.asarray(below, dtype=np.float64), np.shape(above))
    quotient: Floats = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=quotient, where=below > 0)
    return quotient


def _nanmean(values: Floats) -> Floats:
    """Mean over the last axis without NaN; NaN (without a warning) where nothing is left."""
    known = ~np.isnan(values)
    return _divide(np.asarray(np.where(known, values, 0.0).sum(axis=-1)), known.sum(axis=-1))


def _matrix(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
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


def _column(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    truth, score = _matrix(np.asarray(labels, dtype=np.float64)[:, None], np.asarray(scores, dtype=np.float64)[:, None])
    known = ~np.isnan(truth[:, 0])
    return truth[known, 0], score[known, 0]
