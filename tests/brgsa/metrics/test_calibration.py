"""Calibration on probabilities that are known to hold, or not."""

from __future__ import annotations

import numpy as np
import pytest

from brgsa.metrics.calibration import Isotonic, Temperature, reliability

RNG = np.random.default_rng(0)


def test_reliability_by_hand() -> None:
    found = reliability([1, 0, 1, 1, np.nan], [0.9, 0.1, 0.2, 1.0, 0.3], bins=2)
    assert found.counts.tolist() == [2, 2]
    np.testing.assert_allclose(found.expected, [0.15, 0.95])
    np.testing.assert_allclose(found.observed, [0.5, 1.0])
    assert found.error == pytest.approx((0.35 + 0.05) / 2)
    assert np.isnan(reliability([], []).error)
    with pytest.raises(ValueError):
        reliability([0, 1], [0.5, 1.2])


def study(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores from which sigmoid(score / 0.02 - 1) is the true probability."""
    scores = RNG.normal(scale=0.03, size=n)
    return (RNG.random(n) < 1 / (1 + np.exp(1 - scores / 0.02))).astype(float), scores


def test_both_scalings_mend_scores_on_other_volumes() -> None:
    fitted, judged = study(4000), study(4000)
    raw = reliability(judged[0], np.clip(judged[1] + 0.5, 0, 1)).error
    temperature = Temperature.fit(*fitted)
    assert temperature is not None
    assert temperature == pytest.approx((0.02, -1), rel=0.15)
    isotonic = Isotonic.fit(*fitted)
    assert isotonic is not None
    for scaling in (temperature, isotonic):
        assert reliability(judged[0], scaling(judged[1])).error < 0.03 < raw
        assert (np.diff(scaling(np.linspace(-0.2, 0.2, 50))) >= 0).all()


def test_what_cannot_be_fitted() -> None:
    assert Temperature.fit([1, 1], [0.1, 0.2]) is None
    assert Temperature.fit([0, 1], [0.1, 0.1]) is None
    assert Isotonic.fit([0, 0], [0.1, 0.2]) is None
    separated = Temperature.fit([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])
    assert separated is not None
    assert np.isfinite(separated).all()
    against = Temperature.fit([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4])
    assert against is not None
    assert against.temperature < 0  # a model that is wrong throughout
