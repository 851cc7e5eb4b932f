"""Volumes to scans and patients."""

from __future__ import annotations

import numpy as np

from brgsa.metrics.units import mean_of, prevalence, smallest_of

LABELS = np.array([[0, 1], [1, np.nan], [0, 0], [np.nan, np.nan]])
SCORES = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
GROUPS = np.array([9, 2, 9, 2])


def test_a_group_has_the_mean_score_and_what_any_of_its_volumes_has() -> None:
    units = mean_of(LABELS, SCORES, GROUPS)
    np.testing.assert_array_equal(units.scores, [[3, 4], [5, 6]])
    np.testing.assert_array_equal(units.labels, [[0, 1], [1, np.nan]])
    assert units.first.tolist() == [0, 1]
    assert units.contradicting == 1  # the third volume has no abnormality 1, its scan does


def test_the_smallest_voxel_in_the_plane_then_along_z_then_the_first() -> None:
    def chosen(*sizes: tuple[float, float]) -> list[int]:
        return smallest_of(LABELS, SCORES, GROUPS, np.array(sizes)).first.tolist()

    assert chosen((0.5, 3), (0.5, 3), (0.4, 5), (0.5, 3)) == [2, 1]
    assert chosen((0.5, 3), (0.5, 3), (0.5, 1), (0.5, 3)) == [2, 1]
    assert chosen((np.nan, 1), (0.5, 3), (9, 9), (0.5, 1)) == [2, 3]


def test_prevalence_counts_a_scan_once() -> None:
    np.testing.assert_array_equal(prevalence(LABELS, GROUPS), [0.5, 1.0])
    assert np.isnan(prevalence(np.full((2, 1), np.nan), np.array([0, 1]))).all()
