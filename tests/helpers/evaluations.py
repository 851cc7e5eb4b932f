"""Evaluations of made-up scores, as `brgsa evaluate --scores … --out` leaves them: no model, no store."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from brgsa.protocols import load_protocol
from brgsa_platform.evaluation.evaluate_scores import ScoreFiles, evaluate_scores

NAMES = ("Cardiomegaly", "Lung nodule", "Pleural effusion")
VOLUMES = 60


def evaluated(
    folder: Path,
    name: str = "first",
    *,
    noise: float = 1.0,
    names: Sequence[str] = NAMES,
    volumes: range = range(VOLUMES),
    protocol: str = "honest",
) -> Path:
    """The folder of an evaluation of `noise` times a Gaussian beside the labels, which are the same for one volume everywhere.

    Half as many other volumes serve as validation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    truth = (rng.random((1000, len(names))) < 0.4).astype(int)
    scores = truth + noise * rng.normal(size=truth.shape)
    held = range(900, 900 + len(volumes) // 2)
    ids = {row: f"valid_{row // 2}_a_{row % 2 + 1}.nii.gz" for row in (*volumes, *held)}
    for file, rows, cells in (
        ("labels", ids, truth),
        (name, volumes, scores),
        (f"{name}-validation", held, scores),
    ):
        with (folder / f"{file}.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows([["VolumeName", *names], *([ids[row], *cells[row]] for row in rows)])
    chosen = load_protocol(protocol)
    few = replace(chosen, bootstrap=replace(chosen.bootstrap, resamples=100))
    files = ScoreFiles(folder / f"{name}.csv", folder / "labels.csv", folder / f"{name}-validation.csv")
    evaluate_scores(files, few, out=folder / name)
    return folder / name
