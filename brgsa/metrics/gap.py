"""The modality gap: how far apart volumes and texts are on the unit sphere, and its picture in two dimensions.

The plain embeddings give the gap before CMKI, the bridged ones the gap after it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


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
