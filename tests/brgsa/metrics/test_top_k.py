"""Strict Recall@1 and Precision@3 against a plain loop over the drawn volumes."""

from __future__ import annotations

import numpy as np
import pytest

from brgsa.metrics import Drawing
from brgsa.metrics.top_k import PRECISION_AT_3, RECALL_AT_1, top_k


def plain(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Both figures of these very volumes."""
    z = (scores - scores.mean(axis=0)) / (scores.std(axis=0) + 1e-8)
    ranked = np.argsort(-z, axis=1)
    recalls = [labels[i, ranked[i, 0]] / labels[i].sum() for i in range(len(labels)) if labels[i].any()]
    precisions = [labels[i, ranked[i, :3]].sum() / 3 for i in range(len(labels))]
    return float(np.mean(recalls)), float(np.mean(precisions))


@pytest.mark.parametrize("grouped", [False, True])
def test_each_draw_is_the_figure_of_its_volumes(grouped: bool) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 5)) < 0.3).astype(float)
    scores = labels + rng.normal(size=labels.shape) + np.arange(5)  # prompts of other levels
    groups = np.repeat(np.arange(30), 2) if grouped else None
    found = top_k(labels, scores, Drawing(70, seed=3), groups=groups)
    assert (found.point[RECALL_AT_1][0], found.point[PRECISION_AT_3][0]) == pytest.approx(plain(labels, scores))
    size = 30 if grouped else 60
    for r, chosen in enumerate(np.random.default_rng(3).integers(0, size, (70, size))):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in chosen]) if groups is not None else chosen
        expected = plain(labels[rows], scores[rows])
        assert (found.draws[RECALL_AT_1][r, 0], found.draws[PRECISION_AT_3][r, 0]) == pytest.approx(expected)


def test_what_cannot_be_counted() -> None:
    scores = np.random.default_rng(0).normal(size=(6, 2))
    found = top_k(np.zeros((6, 2)), scores, Drawing(3))
    assert np.isnan(found.interval(RECALL_AT_1)).all()
    assert np.isnan(found.interval(PRECISION_AT_3)).all()
    unknown = np.full((6, 2), np.nan)
    assert np.isnan(top_k(unknown, scores, Drawing(3)).interval(RECALL_AT_1)).all()
