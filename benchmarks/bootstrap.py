"""How much faster the bootstrap is than the usual loop over scikit-learn, and whether both give the same figures.

    python benchmarks/bootstrap.py [--volumes N] [--abnormalities P] [--resamples R] [--timed T] [--json]

Labels and scores are drawn at random: prevalences from 3 % to 50 %, scores cut after the fourth digit, so that there are ties.
All figures of every abnormality are measured on R draws by `brgsa.metrics.bootstrap`. The reference measures the first T of the
very same draws with scikit-learn, a call a figure, and its time is scaled by R / T. `vs_reference` is the quotient.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn import metrics as reference

from brgsa import metrics
from brgsa.metrics.bootstrap import FIGURES

SEED = 0


def study(volumes: int, abnormalities: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores (N, P)."""
    rng = np.random.default_rng(SEED)
    labels = (rng.random((volumes, abnormalities)) < np.geomspace(0.03, 0.5, abnormalities)).astype(float)
    return labels, (labels + rng.normal(size=labels.shape)).round(4)


def reference_figures(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """All figures of one abnormality on one draw, by scikit-learn."""
    called = scores > threshold
    fpr, tpr, _ = reference.roc_curve(labels, scores, drop_intermediate=False)
    return {
        "auroc": reference.roc_auc_score(labels, scores),
        "auprc": reference.average_precision_score(labels, scores),
        metrics.SENSITIVITY: tpr[fpr <= 1 - metrics.SPECIFICITY + 1e-12].max(),
        "f1": reference.f1_score(labels, called, average="weighted"),
        "accuracy": reference.accuracy_score(labels, called),
        "precision": reference.precision_score(labels, called),
        "recall": reference.recall_score(labels, called),
    }


def compare(volumes: int, abnormalities: int, resamples: int, timed: int) -> dict[str, float]:
    """Seconds of both, and the largest difference of any figure on the draws that both measured."""
    labels, scores = study(volumes, abnormalities)
    cuts = [metrics.corner_threshold(labels[:, p], scores[:, p]) for p in range(abnormalities)]
    start = time.perf_counter()
    ours = metrics.bootstrap(labels, scores, metrics.Drawing(resamples, SEED), thresholds=cuts)
    seconds = time.perf_counter() - start

    drawn = np.random.default_rng(SEED).integers(0, volumes, (timed, volumes))  # the first draws of that stream
    theirs = {name: np.empty((timed, abnormalities)) for name in FIGURES}
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for r, rows in enumerate(drawn):
            for p in range(abnormalities):
                for name, value in reference_figures(labels[rows, p], scores[rows, p], cuts[p]).items():
                    theirs[name][r, p] = value
    reference_seconds = (time.perf_counter() - start) * resamples / timed
    difference = max(float(np.abs(ours.draws[name][:timed] - theirs[name]).max()) for name in FIGURES)
    return {
        "volumes": volumes,
        "abnormalities": abnormalities,
        "resamples": resamples,
        "figures": len(FIGURES),
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "reference_resamples_timed": timed,
        "largest_difference": difference,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=3039)
    parser.add_argument("--abnormalities", type=int, default=18)
    parser.add_argument("--resamples", type=int, default=5000)
    parser.add_argument("--timed", type=int, default=20, help="draws that the reference measures")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    figures = compare(options.volumes, options.abnormalities, options.resamples, min(options.timed, options.resamples))
    ratios = {"vs_reference": figures["reference_seconds"] / figures["seconds"]}
    for name, value in (figures | ratios).items():
        print(f"{name.replace('_', ' ')}: {value:.4g}")
    if options.json:
        print(json.dumps({"benchmark": "bootstrap", "ratios": ratios, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
