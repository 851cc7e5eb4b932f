"""What a model names first: strict Recall@1 and Precision@3 of a volume's abnormalities, as BrgSA's published code counts them.

Scores of different prompts have different levels, so they are standardised per abnormality, on each draw anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from brgsa.metrics.arrays import Floats, matrix
from brgsa.metrics.bootstrap import Bootstrap, Drawing, IntervalRule

RECALL_AT_1, PRECISION_AT_3 = "recall_at_1", "precision_at_3"
_EPSILON = 1e-8  # beside the standard deviation, as published


def top_k(
    labels: ArrayLike,
    scores: ArrayLike,
    drawing: Drawing | None = None,
    *,
    groups: ArrayLike | None = None,
    rule: IntervalRule | None = None,
) -> Bootstrap:
    """Strict Recall@1 and Precision@3 on all volumes (1,) and on each draw (R, 1).

    Recall@1 is the share of a volume's abnormalities that its first one is, over the volumes that have any. Precision@3 is
    the share of its first three that it has, over all volumes. A volume with an unknown label is left out; of equal scores the
    later abnormality comes first. Both are NaN where there is no such volume, Precision@3 with fewer than three abnormalities.

    Args:
        labels, scores, groups: see `bootstrap`.
    """
    truth, score = matrix(labels, scores)
    known = ~np.isnan(truth).any(axis=1)
    truth, score = truth[known], score[known]
    drawing, rule = drawing or Drawing(), rule or IntervalRule()
    volumes, abnormalities = truth.shape
    member = np.arange(volumes)
    if groups is not None:
        member = np.unique(np.asarray(groups)[known], return_inverse=True)[1]
    point = {RECALL_AT_1: np.full(1, np.nan), PRECISION_AT_3: np.full(1, np.nan)}
    draws = {name: np.full((drawing.resamples, 1), np.nan) for name in point}
    if not volumes or not abnormalities:
        return Bootstrap(point, draws, rule)
    found = _figures(truth, score, np.ones(volumes))
    for name, value in found.items():
        point[name][0] = value
    for block, counts in drawing.counts(int(member.max()) + 1, 64):
        for number, drawn in enumerate(counts[member].T.astype(np.float64), start=block.start):
            for name, value in _figures(truth, score, drawn).items():
                draws[name][number, 0] = value
    return Bootstrap(point, draws, rule)


def _figures(truth: Floats, score: Floats, weights: Floats) -> dict[str, float]:
    """Both figures where each volume counts as often as its weight says."""
    drawn = weights > 0
    truth, score, weights = truth[drawn], score[drawn], weights[drawn]
    total = weights.sum()
    centred = score - weights @ score / total
    centred /= np.sqrt(weights @ centred**2 / total) + _EPSILON
    rows = np.arange(len(truth))
    positives = truth.sum(axis=1)
    sick = weights * (positives > 0)
    last = centred.shape[1] - 1
    first = last - centred[:, ::-1].argmax(axis=1)
    hits = truth[rows, first]
    recall = float((sick * hits / np.maximum(positives, 1)).sum() / sick.sum()) if sick.any() else float("nan")
    if last < 2:
        return {RECALL_AT_1: recall, PRECISION_AT_3: float("nan")}
    for _ in range(2):
        centred[rows, first] = -np.inf
        first = last - centred[:, ::-1].argmax(axis=1)
        hits = hits + truth[rows, first]
    return {RECALL_AT_1: recall, PRECISION_AT_3: float(weights @ hits / 3 / total)}
