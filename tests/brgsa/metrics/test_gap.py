"""The modality gap and its picture."""

from __future__ import annotations

import numpy as np
import pytest

from brgsa.metrics.gap import effective_rank, mean_cosine, modality_gap, project, separability


def test_identical_clouds_have_no_gap() -> None:
    cloud = np.random.default_rng(0).normal(size=(20, 8))
    assert modality_gap(cloud, cloud) == 0.0
    assert modality_gap(cloud, 5 * cloud[::-1]) == pytest.approx(0.0, abs=1e-12)  # length and order do not matter


def test_gap_by_hand() -> None:
    assert modality_gap([[3.0, 0.0]], [[-2.0, 0.0]]) == 2.0
    assert modality_gap([[1.0, 0.0], [0.0, 7.0]], [[4.0, 0.0]]) == pytest.approx(np.hypot(0.5, 0.5))


def test_gap_does_not_turn_with_the_axes() -> None:
    rng = np.random.default_rng(1)
    volumes, texts = rng.normal(1, 1, (30, 6)), rng.normal(-1, 1, (10, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert modality_gap(volumes @ turn, texts @ turn) == pytest.approx(modality_gap(volumes, texts))
    assert modality_gap(texts, volumes) == pytest.approx(modality_gap(volumes, texts))


def test_projection_keeps_distances_of_clouds_in_a_plane() -> None:
    rng = np.random.default_rng(2)
    angle = rng.uniform(0, 2 * np.pi, 25)
    plane = np.linalg.qr(rng.normal(size=(7, 2)))[0]
    cloud = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ plane.T  # a circle within a plane of 7-space
    clouds = project(cloud[:15], cloud[15:])
    points = np.concatenate([clouds.volumes, clouds.texts])
    spread = np.linalg.norm(cloud[:, None] - cloud[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points[None], axis=-1), spread, atol=1e-12)
    assert clouds.explained == pytest.approx(1.0)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)


def test_projection_parts_the_modalities_along_the_first_axis() -> None:
    rng = np.random.default_rng(3)
    offset = np.eye(16)[0] * 10
    clouds = project(rng.normal(size=(40, 16)) + offset, rng.normal(size=(30, 16)) - offset)
    assert clouds.volumes.shape == (40, 2)
    assert clouds.texts.shape == (30, 2)
    assert clouds.volumes[:, 0].min() > clouds.texts[:, 0].max()  # the sign too is settled


def test_single_points_and_empty_clouds() -> None:
    assert project([[1.0]], [[2.0]]).volumes.shape == (1, 2)
    with pytest.raises(ValueError, match="at least one point"):
        modality_gap(np.empty((0, 4)), np.ones((2, 4)))


def test_a_plane_tells_parted_clouds_and_not_mixed_ones() -> None:
    rng = np.random.default_rng(0)
    cloud, scans = rng.normal(size=(200, 6)), np.arange(200) // 2
    assert separability(cloud + 3, cloud - 3, scans) == 1.0
    assert separability(cloud, rng.normal(size=(200, 6)), scans) == pytest.approx(0.5, abs=0.1)
    assert np.isnan(separability(cloud[:4], cloud[:4], scans[:4]))
    with pytest.raises(ValueError):
        separability(cloud, cloud[:5], scans)


def test_a_collapsed_cloud_has_one_direction() -> None:
    rng = np.random.default_rng(0)
    assert effective_rank(np.ones((50, 8))) == pytest.approx(1, abs=1e-6)
    assert mean_cosine(np.ones((50, 8))) == pytest.approx(1)
    assert effective_rank(np.eye(8)) == pytest.approx(8)
    assert mean_cosine(np.eye(8)) == pytest.approx(0)
    assert 6 < effective_rank(rng.normal(size=(500, 8))) <= 8
    assert np.isnan(mean_cosine(np.ones((1, 3))))
