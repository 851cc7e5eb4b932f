"""All figures of one abnormality on many resamples at once.

A resample is a vector of how often each volume was drawn. Only the volumes with the abnormality move recall and precision, so
the volumes without it count only by their number between two such volumes. One sparse product adds these numbers up for all
resamples; what follows runs over the volumes with the abnormality alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from brgsa.metrics.arrays import Floats, divide

SENSITIVITY = "sensitivity_at_90"  # of the ROC's point at this specificity
SPECIFICITY = 0.9

_EXACT = 1e-9  # of a volume, by which a share of whole numbers may be off


class Ranked:
    """The n volumes of one abnormality, sorted once by falling score.

    Volumes of equal score form a run; K runs hold a volume with the abnormality. The alarms are the volumes without it.
    """

    def __init__(
        self, rows: NDArray[np.intp], truth: Floats, score: Floats, threshold: float, specificity: float, width: int
    ) -> None:
        order = np.argsort(-score, kind="stable")
        rows, present, score = rows[order], truth[order] > 0, score[order]
        run = np.cumsum(np.insert(score[1:] != score[:-1], 0, False)) if score.size else np.empty(0, np.intp)
        with_hits, hit_run = np.unique(run[present], return_inverse=True)
        self._runs = k = with_hits.size
        self._threshold, self._specificity = threshold, specificity
        # A row of the sum for the alarms before each run with hits and after the last, one for those above the threshold
        # beside the last such run above it, one for the alarms within each run, one for the hits of each.
        alarm_run = run[~present]
        before = np.searchsorted(with_hits, alarm_run)
        within = np.isin(alarm_run, with_hits)
        self._tied = bool(within.any())
        above = score > threshold
        self._cut = np.unique(run[present & above]).size
        into = np.where(within, k + 2 + before, before)
        into[~within & (before == self._cut) & above[~present]] = k + 1
        tied_rows = k if self._tied else 0
        target = np.concatenate([into, k + 2 + tied_rows + hit_run])
        source = np.concatenate([rows[~present], rows[present]])
        shape = (k + 2 + tied_rows + k, width)
        self._sum = sparse.csr_array((np.ones(target.size, np.float32), (target, source)), shape=shape)

    @classmethod
    def of(
        cls,
        truth: Floats,
        score: Floats,
        rows: NDArray[np.intp] | None = None,
        *,
        threshold: float = np.nan,
        specificity: float = SPECIFICITY,
        width: int | None = None,
    ) -> Ranked:
        """The volumes with labels and scores (n,), whose counts lie in these rows of `width`; by default in all."""
        rows = np.arange(truth.size) if rows is None else rows
        return cls(rows, truth, score, threshold, specificity, truth.size if width is None else width)

    def figures(self, counts: NDArray[np.float32] | None = None) -> dict[str, Floats]:
        """Figure → its value (R,) on each resample.

        Args:
            counts: (width, R) how often each volume was drawn; None means every volume once.
        """
        k = self._runs
        drawn = np.ones((self._sum.shape[1], 1), np.float32) if counts is None else counts
        sums = (self._sum @ drawn).astype(np.float64)  # whole numbers below 2**24, exact in float32
        gaps, extra = sums[: k + 1], sums[k + 1]
        gaps[self._cut] += extra
        hits = sums[-k:] if k else sums[:0]
        tied = sums[k + 2 : 2 * k + 2] if self._tied else None
        alarms = np.cumsum(gaps[:k] if tied is None else gaps[:k] + tied, axis=0)  # at or above each run
        found = np.cumsum(hits, axis=0)
        positives = hits.sum(axis=0)
        negatives = gaps.sum(axis=0) + (0.0 if tied is None else tied.sum(axis=0))
        losses = np.einsum("kr,kr->r", hits, alarms if tied is None else alarms - 0.5 * tied)
        precision = found / np.maximum(found + alarms, 1.0)
        allowed = np.floor((1 - self._specificity) * negatives + _EXACT)
        figures = {
            "auroc": divide(positives * negatives - losses, positives * negatives),
            "auprc": divide(np.einsum("kr,kr->r", hits, precision), positives),
            SENSITIVITY: divide(np.einsum("kr,kr->r", hits, alarms <= allowed), positives * (negatives > 0)),
        }
        true = found[self._cut - 1] if self._cut else np.zeros_like(positives)
        false = extra + (alarms[self._cut - 1] if self._cut else 0.0)
        at = confusion_figures(true, false, positives - true, negatives - false)
        if np.isnan(self._threshold):
            at = {name: np.full_like(positives, np.nan) for name in at}
        return figures | at


def confusion_figures(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> dict[str, Floats]:
    """Weighted F1, accuracy, and the positive class's precision and recall, from the four counts of the confusion matrix."""
    total = tp + fp + fn + tn
    f1_present = 2 * tp / np.maximum(2 * tp + fp + fn, 1.0)
    f1_absent = 2 * tn / np.maximum(2 * tn + fp + fn, 1.0)
    return {
        "f1": divide((tp + fn) * f1_present + (tn + fp) * f1_absent, total),
        "accuracy": divide(tp + tn, total),
        "precision": np.where(total > 0, tp / np.maximum(tp + fp, 1.0), np.nan),
        "recall": divide(tp, tp + fn),
    }
