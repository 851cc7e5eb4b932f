"""From volumes to other units of observation: scans and patients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from brgsa.metrics.arrays import Floats, nanmean


class Units(NamedTuple):
    """U observations made of N volumes.

    Attributes:
        labels, scores: (U, P).
        first: (U,) row of the first of its volumes, or of the one chosen.
        contradicting: volumes whose known label differs from another's of the same unit, for some abnormality.
    """

    labels: Floats
    scores: Floats
    first: NDArray[np.intp]
    contradicting: int


def mean_of(labels: Floats, scores: Floats, groups: NDArray[np.int64]) -> Units:
    """A group's score is the mean over its volumes; a label is present where it is in one of them, unknown where in all.

    Args:
        labels, scores: (N, P).
        groups: (N,) code of each volume's scan or patient. Groups come in the order of their first volumes.
    """
    first, code = _in_order(groups)
    counts = np.bincount(code, minlength=len(first))[:, None]
    sums = np.zeros((len(first), scores.shape[1]))
    np.add.at(sums, code, scores)
    present = np.full((len(first), labels.shape[1]), -1.0)
    np.maximum.at(present, code, np.where(np.isnan(labels), -1.0, labels))
    merged = np.where(present < 0, np.nan, present)
    return Units(merged, sums / counts, first, _contradicting(labels, merged[code]))


def smallest_of(labels: Floats, scores: Floats, groups: NDArray[np.int64], voxels: Floats) -> Units:
    """Of each group one volume: that of the smallest voxel, in the plane first and then along z; of equal ones the first.

    Args:
        voxels: (N, 2) area in the plane and distance of slices; NaN counts as infinitely large.
    """
    first, code = _in_order(groups)
    size = np.nan_to_num(voxels, nan=np.inf)
    order = np.lexsort((np.arange(len(code)), size[:, 1], size[:, 0], code))
    chosen = order[np.searchsorted(code[order], np.arange(len(first)))]
    return Units(labels[chosen], scores[chosen], chosen, 0)


def _in_order(groups: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row of the first volume of each group, in rising order, and the number of each volume's group in it."""
    _, first, code = np.unique(groups, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[code]


def _contradicting(labels: Floats, of_unit: Floats) -> int:
    return int(np.any(~np.isnan(labels) & (labels != of_unit), axis=1).sum())


def prevalence(labels: Floats, groups: NDArray[np.int64]) -> Floats:
    """Share (P,) of groups, as scans, that have each abnormality, of those whose label is known; NaN where none is."""
    merged = mean_of(labels, np.zeros(labels.shape), groups).labels if len(labels) else labels
    return nanmean(merged.T)
