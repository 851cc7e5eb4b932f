"""Cohen's kappa against scikit-learn's, and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from brgsa.summaries.agreement import kappa


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_kappa(noise: float) -> None:
    rng = np.random.default_rng(0)
    one = rng.random(400) < 0.3
    other = one ^ (rng.random(400) < noise)
    found = kappa(one, other, np.arange(400))
    assert found.value == pytest.approx(cohen_kappa_score(one, other), abs=1e-9)
    assert found.low <= found.value <= found.high
    assert found.agreed == pytest.approx(np.mean(one == other))
    assert noise or found[:3] == (1.0, 1.0, 1.0)


def test_verdicts_of_one_report_belong_together() -> None:
    rng = np.random.default_rng(1)
    one = np.repeat(rng.random(40) < 0.5, 10)
    other = np.repeat(one[::10] ^ (rng.random(40) < 0.2), 10)
    alone, together = kappa(one, other, np.arange(400)), kappa(one, other, np.repeat(np.arange(40), 10))
    assert together.value == alone.value
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_one_class_has_no_kappa() -> None:
    found = kappa(np.zeros(5, bool), np.zeros(5, bool), np.arange(5))
    assert np.isnan(found.value)
    assert found.agreed == 1.0
