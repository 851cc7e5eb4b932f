"""Two models on the same volumes, against permutation, simulation and known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brgsa import metrics
from brgsa.metrics.paired import delong, difference, gain_over_seeds, holm


def pair(n: int, gain: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and the scores of two models of which the first is better by `gain`."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(float)
    common = rng.normal(size=n)
    return labels, labels * (1 + gain) + common + 0.5 * rng.normal(size=n), labels + common + 0.5 * rng.normal(size=n)


def test_delong_by_the_pairs_themselves() -> None:
    labels, one, other = pair(40, 0.4)
    one, other = one.round(1), other.round(1)  # ties
    positive, negative = labels > 0, labels == 0

    def wins(score: np.ndarray) -> np.ndarray:
        gap = score[positive][:, None] - score[negative][None, :]
        return (gap > 0) + 0.5 * (gap == 0)

    a, b = wins(one), wins(other)
    variance = sum(np.var(a.mean(axis=k) - b.mean(axis=k), ddof=1) / a.shape[1 - k] for k in (0, 1))
    found = delong(labels, one, other)
    assert (found.first, found.second) == pytest.approx((metrics.auroc(labels, one), metrics.auroc(labels, other)))
    assert found.sd == pytest.approx(variance**0.5)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.first - found.second) / variance**0.5))


def test_under_no_difference_p_is_uniform() -> None:
    p = [delong(*pair(150, 0.0, seed)).p for seed in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert delong(*pair(400, 0.8)).p < 0.001


def test_equal_models_and_absent_classes() -> None:
    labels, one, _ = pair(50, 0.0)
    assert delong(labels, one, one).p == 1.0
    assert delong(labels, one, np.exp(one)).p == 1.0
    assert np.isnan(delong(np.zeros(50), one, one)).all()


def test_paired_draws_agree_with_delong() -> None:
    labels, one, other = pair(400, 0.25, seed=3)
    drawing = metrics.Drawing(2000, seed=1)
    both = [metrics.bootstrap(labels[:, None], score[:, None], drawing) for score in (one, other)]
    found, p = difference(*both, "auroc", 0)
    exact = delong(labels, one, other)
    assert found.value == pytest.approx(exact.first - exact.second)
    assert found.sd == pytest.approx(exact.sd, rel=0.1)
    assert p == pytest.approx(exact.p, abs=0.03)
    none, p = difference(both[0], both[0], "auroc", 0)
    assert (none.low, none.high, p) == (0, 0, 1)


def test_the_gain_of_a_mean_is_the_mean_gain() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random((120, 3)) < 0.3).astype(float)
    labels[:, 2] = 0
    scores = [labels * g + rng.normal(size=labels.shape) for g in (2.0, 0.5)]
    both = [metrics.bootstrap(labels, score, metrics.Drawing(200)) for score in scores]
    found, p = difference(*both, "auroc", [0, 1, 2])
    assert found.value == pytest.approx(
        np.mean([both[0].point["auroc"][i] - both[1].point["auroc"][i] for i in (0, 1)])
    )
    assert p < 0.02
    unmeasured, p = difference(*both, "auroc", 2)
    assert np.isnan([*unmeasured, p]).all()


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, np.nan]), [0.03, 0.06, 0.06, np.nan])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert holm([]).size == 0


def trained(gain: float, seed: int, labels: np.ndarray) -> metrics.Bootstrap:
    """A training's scores, on the same draws as any other's."""
    scores = labels * (1 + gain) + np.random.default_rng(seed).normal(size=labels.shape)
    return metrics.bootstrap(labels, scores, metrics.Drawing(400))


def test_a_gain_is_over_seeds_and_volumes() -> None:
    labels = (np.random.default_rng(0).random((150, 3)) < 0.3).astype(float)
    better, base = ([trained(gain, 10 * k + s, labels) for s in range(3)] for k, gain in ((1, 1.0), (2, 0.0)))
    found, p = gain_over_seeds(better, base, "auroc", [0, 2])
    means = [[np.mean(one.point["auroc"][[0, 2]]) for one in of] for of in (better, base)]
    assert found.value == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
    assert found.low > 0
    assert p < 0.02
    none, p = gain_over_seeds(base, base, "auroc", [0, 2])
    assert (none.value, p) == (0, 1)
    alone, p_alone = gain_over_seeds(better[:1], base[:1], "auroc", [0, 2])
    expected, p_expected = difference(better[0], base[0], "auroc", [0, 2])
    assert (*alone, p_alone) == pytest.approx((*expected, p_expected))


def test_the_luck_of_seeds_widens_the_interval() -> None:
    labels = (np.random.default_rng(0).random((150, 2)) < 0.3).astype(float)
    base = [trained(0.0, s, labels) for s in range(3)]
    lucky = [trained(gain, 10 + s, labels) for s, gain in enumerate((-0.8, 0.0, 0.8))]
    steady = [trained(0.0, 20 + s, labels) for s in range(3)]
    wide, narrow = (gain_over_seeds(of, base, "auroc", [0, 1])[0] for of in (lucky, steady))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
