"""Metrics against hand-computed numbers, scikit-learn and their own invariants."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as reference

from brgsa import metrics

# Few distinct scores, so that ties are the rule and not the exception.
TIED = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0])).filter(lambda y: 0 < y.sum() < y.size),
        hnp.arrays(np.float64, n, elements=st.sampled_from([-1.0, -0.25, 0.0, 1e-9, 0.1, 0.3, 1.0])),
    )
)
ANY = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0])).filter(lambda y: 0 < y.sum() < y.size),
        hnp.arrays(np.float64, n, elements=st.floats(-1, 1)),
    )
)


def study(volumes: int = 200, abnormalities: int = 4, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((volumes, abnormalities)) < 0.2).astype(float)
    return labels, labels * 0.7 + rng.normal(size=labels.shape)


def best_sensitivity(labels: np.ndarray, scores: np.ndarray) -> float:
    """Sensitivity at 90 % specificity, from scikit-learn's ROC."""
    fpr, tpr, _ = reference.roc_curve(labels, scores, drop_intermediate=False)
    return float(tpr[fpr <= 0.1 + 1e-9].max())


def test_hand_computed_figures() -> None:
    labels, scores = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]
    assert metrics.auroc(labels, scores) == pytest.approx(3 / 4)
    assert metrics.auprc(labels, scores) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.auroc([0, 1], [0.5, 0.5]) == 0.5
    # Ten negatives at 1 to 10: one may be called positive, so the cut lies below 10 and above 9.
    assert metrics.sensitivity_at([0] * 10 + [1, 1, 1, 1], [*range(1, 11), 11, 9.5, 10, 9]) == 3 / 4
    # A positive that ties with a negative too many is not found.
    assert metrics.sensitivity_at([0] * 10 + [1, 1], [*range(1, 9), 10, 10, 10, 11]) == 1 / 2


@given(st.one_of(TIED, ANY))
@settings(max_examples=60, deadline=None)
def test_agrees_with_scikit_learn(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = sample
    assert metrics.auroc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-9)
    assert metrics.auprc(labels, scores) == pytest.approx(reference.average_precision_score(labels, scores), abs=1e-9)
    assert metrics.sensitivity_at(labels, scores) == pytest.approx(best_sensitivity(labels, scores), abs=1e-9)
    fpr, tpr, thresholds = reference.roc_curve(labels, scores, drop_intermediate=False)
    curve = metrics.roc_curve(labels, scores)
    np.testing.assert_allclose(curve.fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(curve.tpr, tpr, atol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds)


@given(st.one_of(TIED, ANY), st.sampled_from([-1.0, -0.25, 0.0, 0.2, 1.0]))
@settings(max_examples=60, deadline=None)
def test_figures_at_a_threshold_agree_with_scikit_learn(
    sample: tuple[np.ndarray, np.ndarray], threshold: float
) -> None:
    labels, scores = sample
    called = (scores > threshold).astype(float)
    figures = metrics.at_threshold(labels, scores, threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "f1": reference.f1_score(labels, called, average="weighted"),
            "accuracy": reference.accuracy_score(labels, called),
            "precision": reference.precision_score(labels, called),
            "recall": reference.recall_score(labels, called),
        }
    assert figures == pytest.approx(expected, abs=1e-9)


@given(TIED)
@settings(max_examples=60, deadline=None)
def test_corner_threshold_is_the_best_of_all_candidates(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = sample
    positives, negatives = labels.sum(), (1 - labels).sum()

    def distance(threshold: float) -> float:
        called = scores > threshold
        misses, alarms = (labels * ~called).sum(), ((1 - labels) * called).sum()
        return float((misses * negatives) ** 2 + (alarms * positives) ** 2)

    chosen = metrics.corner_threshold(labels, scores)
    best = min(distance(score) for score in scores)
    assert chosen == max(score for score in scores if distance(score) == best)


def test_corner_threshold_by_hand() -> None:
    # Strictly above 0.4 lies the positive alone.
    assert metrics.corner_threshold([0, 0, 1], [0.1, 0.4, 0.9]) == 0.4
    # Above 0.1: misses 0 of 2, alarms 1 of 2; above 0.3: misses 1 of 2, alarms 0 of 2. Equally far: the larger wins.
    labels, scores = [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]
    assert metrics.corner_threshold(labels, scores) == 0.3
    assert metrics.at_threshold(labels, scores, 0.3) == pytest.approx(
        {"accuracy": 0.75, "precision": 1.0, "recall": 0.5, "f1": 0.5 * 2 / 3 + 0.5 * 4 / 5}
    )


@given(st.one_of(TIED, ANY))
@settings(max_examples=100, deadline=None)
def test_ranking_survives_a_monotone_transform(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = sample
    ranks = np.unique(scores, return_inverse=True)[1].astype(float)  # the steepest monotone transform there is
    assert metrics.auroc(labels, ranks**3 + 7) == pytest.approx(metrics.auroc(labels, scores), abs=1e-12)
    assert metrics.auprc(labels, ranks**3 + 7) == pytest.approx(metrics.auprc(labels, scores), abs=1e-12)
    assert metrics.auroc(labels, -scores) == pytest.approx(1 - metrics.auroc(labels, scores), abs=1e-12)


def test_an_absent_class_is_not_a_number() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metrics.auroc([1, 1], [0.1, 0.2]))
        assert np.isnan(metrics.auroc([0, 0], [0.1, 0.2]))
        assert np.isnan(metrics.auprc([0, 0], [0.1, 0.2]))
        assert metrics.auprc([1, 1], [0.1, 0.2]) == 1.0
        assert np.isnan(metrics.corner_threshold([0, 0], [0.1, 0.2]))
        assert np.isnan(metrics.auroc([], []))
        assert all(np.isnan(v) for v in metrics.at_threshold([0, 1], [0.1, 0.2], float("nan")).values())
        assert metrics.at_threshold([0, 0], [0.1, 0.2], 0.5)["accuracy"] == 1.0
        assert np.isnan(metrics.roc_curve([0, 0], [0.1, 0.2]).tpr).all()


def test_unknown_labels_are_left_out() -> None:
    assert metrics.auroc([0, np.nan, 1], [0.1, 9.0, 0.3]) == metrics.auroc([0, 1], [0.1, 0.3])


@pytest.mark.parametrize(
    ("labels", "scores"), [([0, 2], [0.1, 0.2]), ([0, 1], [0.1, np.nan]), ([0, 1], [0.1, 0.2, 0.3])]
)
def test_nonsense_is_refused(labels: list[float], scores: list[float]) -> None:
    with pytest.raises(ValueError):
        metrics.auroc(labels, scores)


@pytest.mark.parametrize("decimals", [1, 12])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_bootstrap_draw_is_the_figure_of_that_resample(decimals: int, grouped: bool) -> None:
    """The running-sum formulation against scikit-learn on the very same resampled volumes."""
    labels, scores = study(60, 3)
    scores = scores.round(decimals)
    labels[::7, 1] = np.nan
    groups = np.repeat(np.arange(30), 2) if grouped else np.arange(60)
    cuts = np.array([0.1, 0.2, 0.3])
    resampled = metrics.bootstrap(labels, scores, metrics.Drawing(20, seed=5), groups=groups, thresholds=cuts)

    size = groups.max() + 1
    drawn = np.random.default_rng(5).integers(0, size, (20, size))
    for r, chosen in enumerate(drawn):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in chosen])
        for p in range(3):
            keep = rows[~np.isnan(labels[rows, p])]
            y, s = labels[keep, p], scores[keep, p]
            assert resampled.draws["auroc"][r, p] == pytest.approx(reference.roc_auc_score(y, s), abs=1e-9)
            assert resampled.draws["auprc"][r, p] == pytest.approx(reference.average_precision_score(y, s), abs=1e-9)
            sensitivity = best_sensitivity(y, s)
            assert resampled.draws[metrics.SENSITIVITY][r, p] == pytest.approx(sensitivity, abs=1e-9)
            here = metrics.at_threshold(y, s, cuts[p])
            assert {m: resampled.draws[m][r, p] for m in metrics.AT_THRESHOLD} == pytest.approx(here, abs=1e-12)


def test_bootstrap_points_are_the_figures_of_all_volumes() -> None:
    labels, scores = study()
    resampled = metrics.bootstrap(labels, scores, metrics.Drawing(10), thresholds=np.zeros(4))
    for p in range(4):
        assert resampled.point["auroc"][p] == metrics.auroc(labels[:, p], scores[:, p])
        assert resampled.point["auprc"][p] == metrics.auprc(labels[:, p], scores[:, p])
        here = metrics.at_threshold(labels[:, p], scores[:, p], 0.0)
        assert {m: resampled.point[m][p] for m in metrics.AT_THRESHOLD} == pytest.approx(here)


def test_intervals_hold_the_point_and_shrink_with_more_volumes() -> None:
    widths = []
    for volumes in (100, 1600):
        labels, scores = study(volumes)
        macro = metrics.bootstrap(labels, scores, metrics.Drawing(500)).interval("auroc")
        assert macro.low < macro.value < macro.high
        assert macro.mean == pytest.approx(macro.value, abs=0.01)
        widths.append(macro.high - macro.low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.35)  # one over the root of sixteen


def test_bootstrap_agrees_with_the_variance_of_hanley_and_mcneil() -> None:
    labels, scores = study(800, 1)
    interval = metrics.bootstrap(labels, scores, metrics.Drawing(1000)).interval("auroc")
    area, positives, negatives = interval.value, labels.sum(), (1 - labels).sum()
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)) / (
        positives * negatives
    )
    assert interval.sd == pytest.approx(variance**0.5, rel=0.1)


def test_bootstrap_is_deterministic_in_its_seed() -> None:
    labels, scores = study()
    first, again, other = (metrics.bootstrap(labels, scores, metrics.Drawing(50, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.draws["auroc"], again.draws["auroc"])
    assert not np.array_equal(first.draws["auroc"], other.draws["auroc"])


def test_copies_of_a_scan_do_not_narrow_a_grouped_interval() -> None:
    labels, scores = study(150, 2)
    plain = metrics.bootstrap(labels, scores, metrics.Drawing(400, seed=1)).interval("auroc")
    copies = np.repeat(labels, 4, axis=0), np.repeat(scores, 4, axis=0)
    grouped = metrics.bootstrap(*copies, metrics.Drawing(400, seed=1), groups=np.repeat(np.arange(150), 4)).interval(
        "auroc"
    )
    naive = metrics.bootstrap(*copies, metrics.Drawing(400, seed=1)).interval("auroc")
    assert grouped == pytest.approx(plain, abs=1e-12)
    assert naive.sd < 0.6 * plain.sd


def test_a_resample_without_a_positive_is_left_out() -> None:
    labels, scores = study(40, 2)
    labels[:, 0] = 0
    labels[7, 0] = 1  # about e^-1 of the resamples miss it
    labels = np.column_stack([labels, np.zeros(40)])
    scores = np.column_stack([scores, scores[:, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resampled = metrics.bootstrap(labels, scores, metrics.Drawing(500))
        missing = np.isnan(resampled.draws["auroc"])
        assert 0.25 < missing[:, 0].mean() < 0.5
        assert missing[:, 2].all()
        assert np.isfinite(resampled.interval("auroc", 0)).all()
        assert np.isnan(resampled.interval("auroc", 2)).all()
        assert resampled.interval("auroc").value == pytest.approx(np.mean(resampled.point["auroc"][:2]))
        assert resampled.interval("auroc", [0, 1]) == resampled.interval("auroc")


def test_nothing_to_measure_is_not_a_number() -> None:
    empty = metrics.bootstrap(np.empty((0, 3)), np.empty((0, 3)), metrics.Drawing(10))
    assert np.isnan(empty.interval("auroc")).all()


def test_five_thousand_resamples_take_seconds() -> None:
    labels, scores = study(500, 18)
    start = time.perf_counter()
    metrics.bootstrap(labels, scores, metrics.Drawing(5000))
    assert time.perf_counter() - start < 15  # under 1 s on an idle core; the room is for a busy machine


def test_seeds_of_each_draw_are_those_of_the_published_code() -> None:
    labels, scores = study(70, 2)
    drawing = metrics.Drawing(3, seed=4, seed_each=True)
    drawn = metrics.bootstrap(labels, scores, drawing).draws["auroc"]
    for r in range(3):
        np.random.seed(4 + r)
        chosen = np.random.choice(range(70), size=70, replace=True)
        assert drawn[r, 1] == pytest.approx(reference.roc_auc_score(labels[chosen, 1], scores[chosen, 1]), abs=1e-12)


def test_the_paper_s_intervals() -> None:
    """Its overall row is the mean of the rows; a draw without a positive counts 0 and spoils AUROC's percentiles."""
    labels, scores = study(40, 3)
    labels[:, 0] = np.arange(40) == 7
    paper = metrics.bootstrap(labels, scores, metrics.Drawing(300), thresholds=np.zeros(3), rule=metrics.PAPER_RULE)
    honest = metrics.bootstrap(labels, scores, metrics.Drawing(300), thresholds=np.zeros(3))
    lost = np.isnan(honest.draws["auroc"][:, 0])
    assert lost.any()
    assert (paper.draws["auprc"][lost, 0] == 0).all()
    assert (paper.draws["recall"][lost, 0] == 0).all()
    rare = paper.interval("auroc", 0)
    assert rare.mean == honest.interval("auroc", 0).mean
    assert np.isnan(rare.low)
    common = [paper.interval("auroc", i) for i in (1, 2)]
    assert common[0].value == common[0].mean == honest.interval("auroc", 1).mean
    assert common[0].sd == pytest.approx(honest.draws["auroc"][:, 1].std(ddof=1), abs=1e-12)
    overall = paper.interval("auroc", [1, 2])
    np.testing.assert_allclose(overall, np.mean(common, axis=0), atol=1e-12)
    of_the_mean = honest.interval("auroc", [1, 2])
    assert overall.high - overall.low > of_the_mean.high - of_the_mean.low


def test_without_a_threshold_there_is_no_recall_even_where_draws_count_zero() -> None:
    labels, scores = study(40, 2)
    paper = metrics.bootstrap(labels, scores, metrics.Drawing(5), rule=metrics.PAPER_RULE)
    assert np.isnan(paper.interval("recall")).all()
