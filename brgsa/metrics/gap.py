"""How embeddings lie: the modality gap between volumes and texts, its picture, and whether a cloud has collapsed.

The plain embeddings give the gap before CMKI, the bridged ones the gap after it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from brgsa.metrics.arrays import Floats

RIDGE = 1e-3  # of the classifier in `separability`


class Clouds(NamedTuple):
    """Two clouds of points in the plane, float64 (N, 2) and (M, 2), and the share of their variance that the plane shows."""

    volumes: Floats
    texts: Floats
    explained: float


def modality_gap(volumes: ArrayLike, texts: ArrayLike) -> float:
    """‖mean(v̂) - mean(t̂)‖ of the normalised embeddings (Liang et al. 2022), between 0 and 2.

    Args:
        volumes, texts: embeddings (N, D) and (M, D), not normalised; N and M may differ.

    Raises:
        ValueError: a cloud is empty or no matrix.
    """
    return float(np.linalg.norm(_directions(volumes).mean(axis=0) - _directions(texts).mean(axis=0)))


def separability(volumes: ArrayLike, texts: ArrayLike, groups: ArrayLike, folds: int = 5) -> float:
    """Share of embeddings whose modality a linear classifier tells, by cross-validation: 1 is parted by a plane, 0.5 is mixed.

    The classifier is a ridge regression on the normalised embeddings (labels 1 and -1).

    Args:
        volumes, texts: embeddings (N, D) of N volumes and of their texts, row by row.
        groups: (N,) scans; those of one are in the same fold, for their texts are equal.

    Returns:
        The mean of both modalities' shares; NaN with fewer groups than folds.

    Raises:
        ValueError: a cloud is empty or no matrix, or they differ in length.
    """
    image, text = _directions(volumes), _directions(texts)
    if len(image) != len(text):
        raise ValueError(f"a text for each volume is needed, not {len(text)} for {len(image)}")
    code = np.unique(np.asarray(groups), return_inverse=True)[1]
    if code.max() + 1 < folds:
        return float("nan")
    points = np.concatenate([image, text])
    points = np.concatenate([points - points.mean(axis=0), np.ones((len(points), 1))], axis=1)
    side = np.repeat([1.0, -1.0], len(image))
    fold = np.tile(np.random.default_rng(0).permutation(code.max() + 1)[code] % folds, 2)
    right = np.zeros(len(points), bool)
    ridge = RIDGE * np.eye(points.shape[1])
    for number in range(folds):
        held = fold == number
        rest = points[~held]
        weights = np.linalg.solve(rest.T @ rest + ridge, rest.T @ side[~held])
        right[held] = np.sign(points[held] @ weights) == side[held]
    return float(right.mean())


def effective_rank(cloud: ArrayLike) -> float:
    """How many directions N normalised embeddings (N, D) fill, from 1 (all are one) to min(N, D).

    The exponential of the entropy of the singular values' shares (Roy and Vetterli 2007; RankMe, Garrido et al. 2023). A
    collapsed tower has a value near 1.

    Raises:
        ValueError: the cloud is empty or no matrix.
    """
    strength = np.linalg.svd(_directions(cloud), compute_uv=False)
    share = strength / strength.sum() if strength.sum() else np.ones(1)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def mean_cosine(cloud: ArrayLike) -> float:
    """The mean cosine between two different of N embeddings (N, D): 1 where all point the same way; NaN for one alone.

    Raises:
        ValueError: the cloud is empty or no matrix.
    """
    directions = _directions(cloud)
    n = len(directions)
    if n < 2:
        return float("nan")
    total = float(np.sum(directions.sum(axis=0) ** 2) - np.sum(directions**2))
    return total / (n * (n - 1))


def project(volumes: ArrayLike, texts: ArrayLike) -> Clouds:
    """Both clouds of normalised embeddings on their first two common principal axes (PCA of the pooled points).

    Each axis has the direction in which its heaviest coordinate is positive, so that a picture does not flip between runs.

    Args:
        volumes, texts: embeddings (N, D) and (M, D), not normalised.

    Raises:
        ValueError: a cloud is empty or no matrix.
    """
    image, text = _directions(volumes), _directions(texts)
    pooled = np.concatenate([image, text])
    pooled -= pooled.mean(axis=0)
    _, strength, axes = np.linalg.svd(pooled, full_matrices=False)
    plane = axes[:2]
    plane *= np.sign(plane[np.arange(len(plane)), np.abs(plane).argmax(axis=1)])[:, None]
    points = np.zeros((len(pooled), 2))
    points[:, : len(plane)] = pooled @ plane.T
    variance = strength**2
    explained = float(variance[:2].sum() / variance.sum()) if variance.sum() > 0 else 1.0
    return Clouds(points[: len(image)], points[len(image) :], explained)


def _directions(embeddings: ArrayLike) -> Floats:
    cloud = np.asarray(embeddings, dtype=np.float64)
    if cloud.ndim != 2 or not len(cloud):
        raise ValueError(f"a cloud of embeddings must be (points, width) with at least one point, not {cloud.shape}")
    lengths: Floats = np.linalg.norm(cloud, axis=1, keepdims=True)
    return cloud / np.maximum(lengths, np.finfo(np.float64).tiny)
