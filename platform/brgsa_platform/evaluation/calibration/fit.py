"""Probabilities from the scores: scalings fitted on the validation split, judged on the observations under test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brgsa.metrics.calibration import Isotonic, Temperature, reliability
from brgsa.metrics.units import Units
from brgsa_platform.evaluation.result import Calibration

SCALINGS = ("temperature", "isotonic")


def calibrate(fitted: Units, judged: Units, columns: list[int]) -> Calibration | None:
    """The calibration of these abnormalities; None where no scaling can be fitted.

    Args:
        fitted: observations of the validation split; judged: those under test.
    """
    errors = {name: np.full(judged.labels.shape[1], np.nan) for name in SCALINGS}
    scales: dict[int, Temperature] = {}
    pooled: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {name: [] for name in SCALINGS}
    for i in columns:
        given = fitted.labels[:, i], fitted.scores[:, i]
        temperature, isotonic = Temperature.fit(*given), Isotonic.fit(*given)
        if temperature is None or isotonic is None:
            continue
        scales[i] = temperature
        scaled = (temperature(judged.scores[:, i]), isotonic(judged.scores[:, i]))
        for name, probabilities in zip(SCALINGS, scaled, strict=True):
            errors[name][i] = reliability(judged.labels[:, i], probabilities).error
            pooled[name].append((judged.labels[:, i], probabilities))
    if not scales:
        return None
    curves = {
        name: reliability(np.concatenate([one for one, _ in pairs]), np.concatenate([other for _, other in pairs]))
        for name, pairs in pooled.items()
    }
    return Calibration(errors, scales, curves)
