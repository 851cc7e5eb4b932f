"""How well the scores of one abnormality rank and separate volumes: areas, curves, thresholds, and figures at one.

Every function raises ValueError for labels and scores of different shapes, other labels, and scores that are not finite.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from brgsa.metrics.arrays import Floats, column, divide
from brgsa.metrics.resampling import SENSITIVITY, SPECIFICITY, Ranked, confusion_figures

RANKING = ("auroc", "auprc", SENSITIVITY)
AT_THRESHOLD = ("f1", "accuracy", "precision", "recall")


class RocCurve(NamedTuple):
    """An ROC curve: its points from (0, 0) to (1, 1), float64 (T + 1,) each.

    Attributes:
        fpr, tpr: false and true positive rates.
        thresholds: falling from infinity; at `thresholds[i]` a score of at least that much counts as positive.
    """

    fpr: Floats
    tpr: Floats
    thresholds: Floats


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve of labels and scores (N,), ties counting half; NaN unless both classes are present."""
    return Ranked.of(*column(labels, scores)).figures()["auroc"].item()


def auprc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision of labels and scores (N,), the step-wise area under the precision-recall curve.

    It is NaN without a positive.
    """
    return Ranked.of(*column(labels, scores)).figures()["auprc"].item()


def sensitivity_at(labels: ArrayLike, scores: ArrayLike, specificity: float = SPECIFICITY) -> float:
    """The greatest sensitivity among the ROC's points of at least this specificity; NaN unless both classes are present.

    The point is read off the ROC of these very volumes, without interpolation: no threshold is chosen elsewhere.
    """
    return Ranked.of(*column(labels, scores), specificity=specificity).figures()[SENSITIVITY].item()


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """The ROC curve of labels and scores (N,), with a point at every distinct score; rates of an absent class are NaN."""
    truth, score = column(labels, scores)
    order = np.argsort(-score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if score.size else np.empty(0, np.intp)
    hits, alarms = np.cumsum(truth)[last], np.cumsum(1.0 - truth)[last]
    return RocCurve(
        fpr=divide(np.insert(alarms, 0, 0.0), np.sum(1.0 - truth)),
        tpr=divide(np.insert(hits, 0, 0.0), np.sum(truth)),
        thresholds=np.insert(score[last], 0, np.inf),
    )


def corner_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold for labels and scores (N,) that is nearest the ROC's corner: the least sqrt((1 - TPR)² + FPR²).

    Scores strictly above it are positive. The candidates are the scores themselves; of equal distances the largest
    threshold wins (the rule that BrgSA, CT-CLIP and fVLM share). Chosen on the volumes that it is then applied to, it fits
    the test labels (protocol `brgsa-paper`); chosen on the validation split it does not. It is NaN unless both classes are
    present.
    """
    truth, score = column(labels, scores)
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
    truth, score = column(labels, scores)
    called = (score > threshold).astype(np.float64)
    cells = (truth * called, (1 - truth) * called, truth * (1 - called), (1 - truth) * (1 - called))
    figures = confusion_figures(*(np.atleast_1d(np.sum(cell)) for cell in cells))
    return {name: float("nan") if np.isnan(threshold) else value.item() for name, value in figures.items()}
