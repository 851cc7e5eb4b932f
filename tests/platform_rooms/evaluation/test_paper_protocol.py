"""The protocol `brgsa-paper` against the published procedure, written out plainly with scikit-learn."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from brgsa import metrics
from brgsa.protocols import load_protocol
from brgsa_platform.evaluation.evaluate_scores import ScoreFiles, evaluate_scores

NAMES = ["Cardiomegaly", "Lung nodule", "Empyema"]
DRAWS = 60
RNG = np.random.default_rng(4)
LABELS = np.column_stack([RNG.random((50, 2)) < 0.4, np.arange(50) < 2]).astype(int)  # hardly any empyema
SCORES = LABELS + RNG.normal(size=LABELS.shape).round(2)


def published(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """The figures of one abnormality on the volumes of a draw."""
    fpr, tpr, _ = reference.roc_curve(labels, scores)
    called = (scores > threshold).astype(int)
    return {
        "auroc": reference.auc(fpr, tpr),
        "auprc": reference.average_precision_score(labels, scores),
        "f1": reference.f1_score(labels, called, average="weighted"),
        "accuracy": reference.accuracy_score(labels, called),
        "precision": reference.precision_score(labels, called),
        "recall": reference.recall_score(labels, called),
    }


def test_every_figure_is_the_published_one(tmp_path: Path) -> None:
    ids = [f"valid_{i}_a_1" for i in range(50)]
    for name, cells in (("labels", LABELS), ("scores", SCORES)):
        pd.DataFrame(cells, index=pd.Index(ids, name="VolumeName"), columns=NAMES).to_csv(tmp_path / f"{name}.csv")
    paper = load_protocol("brgsa-paper")
    short = replace(paper, bootstrap=replace(paper.bootstrap, resamples=DRAWS))
    result = evaluate_scores(ScoreFiles(tmp_path / "scores.csv", tmp_path / "labels.csv"), short)

    cuts = [metrics.corner_threshold(LABELS[:, i], SCORES[:, i]) for i in range(3)]
    draws: dict[str, list[list[float]]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(DRAWS):
            np.random.seed(seed)
            rows = np.random.choice(range(50), size=50, replace=True)
            found = [published(LABELS[rows, i], SCORES[rows, i], cuts[i]) for i in range(3)]
            for figure in found[0]:
                draws.setdefault(figure, []).append([one[figure] for one in found])
    assert np.isnan(np.array(draws["auroc"])[:, 2]).any()  # some draw has no empyema
    for figure, values in draws.items():
        table = pd.DataFrame(values)
        low, high = np.percentile(table, [2.5, 97.5], axis=0)
        for i, row in enumerate(result.abnormalities):
            expected = [table.mean()[i], table.mean()[i], table.std()[i], low[i], high[i]]
            assert list(row.figures[figure]) == pytest.approx(expected, abs=1e-9, nan_ok=True), (figure, row.name)
        overall = [table.mean().mean(), table.mean().mean(), table.std().mean(), low.mean(), high.mean()]
        assert list(result.means["macro"][figure]) == pytest.approx(overall, abs=1e-9, nan_ok=True), figure
