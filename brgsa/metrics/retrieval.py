"""Retrieval between volumes and reports, and among volumes, in chunks: the N × M similarities never exist at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

RECALL_KS = (5, 10, 50, 100)
MAP_KS = (1, 5, 10, 50)
CHUNK = 512  # queries compared at a time: 100 MB of similarities for 50,000 candidates

Singles = NDArray[np.float32]
Codes = NDArray[np.int64]


def recall_at(
    queries: ArrayLike,
    candidates: ArrayLike,
    query_groups: ArrayLike,
    candidate_groups: ArrayLike,
    ks: Sequence[int] = RECALL_KS,
    chunk: int = CHUNK,
) -> dict[int, float]:
    """K → share of the queries with a candidate of their own group among the K most similar; see `ranks`."""
    return recall_of(ranks(queries, candidates, query_groups, candidate_groups, chunk), ks)


def recall_of(found: Codes, ks: Sequence[int] = RECALL_KS) -> dict[int, float]:
    """K → share of the ranks (N,), counted from 0, that are below K."""
    return {k: float((found < k).mean()) if len(found) else float("nan") for k in ks}


def ranks(
    queries: ArrayLike,
    candidates: ArrayLike,
    query_groups: ArrayLike,
    candidate_groups: ArrayLike,
    chunk: int = CHUNK,
) -> Codes:
    """How many candidates of other groups are as similar to each query as the best of its own group, or more: int64 (N,).

    Of candidates of equal similarity those of other groups come first, so that a collapsed model finds nothing. Two
    reconstructions of one scan have one report: give reports once, and the scan as group.

    Args:
        queries, candidates: embeddings (N, D) and (M, D) whose dot product is the similarity.
        query_groups, candidate_groups: (N,) and (M,), what belongs together; every query has a candidate.

    Raises:
        ValueError: shapes do not fit, or a query has no candidate.
    """
    mine, theirs = np.asarray(query_groups), np.asarray(candidate_groups)
    if not np.isin(mine, theirs).all():
        raise ValueError("a query has no candidate of its group")
    found = np.empty(len(mine), np.int64)
    for rows, similarity in _similarities(queries, candidates, chunk):
        own = mine[rows, None] == theirs[None, :]
        best = np.where(own, similarity, -np.inf).max(axis=1, keepdims=True)
        found[rows] = ((similarity >= best) & ~own).sum(axis=1)
    return found


def overlap_at(
    volumes: ArrayLike, labels: ArrayLike, groups: ArrayLike | None, ks: Sequence[int] = MAP_KS, chunk: int = CHUNK
) -> dict[int, float]:
    """K → how much the abnormalities of a volume and of its K most similar volumes overlap: CT-CLIP's "MAP@K".

    Overlap is the abnormalities of both over those of either, averaged over the K, and then over all volumes. Candidates are
    the volumes that have an abnormality. A volume with an unknown label is left out.

    Args:
        volumes: embeddings (N, D), compared by their cosine.
        labels: (N, P).
        groups: (N,) scans: volumes of the query's own are no candidates. CT-CLIP's published code lets a volume find itself,
            which `None` does too.

    Returns:
        NaN for a K that exceeds the candidates of some volume.
    """
    truth = np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(truth).any(axis=1)
    points, truth = _directions(np.asarray(volumes)[known]), truth[known].astype(np.float32)
    scans = None if groups is None else np.asarray(groups)[known]
    sick = np.flatnonzero(truth.sum(axis=1) > 0)
    candidates, of_candidates = points[sick], truth[sick]
    most = min(max(ks), len(sick))
    sums = dict.fromkeys(ks, 0.0)
    for rows, similarity in _similarities(points, candidates, chunk):
        if scans is not None:
            similarity[scans[rows, None] == scans[None, sick]] = -np.inf
        if not most:
            break
        nearest = _largest(similarity, most)
        there = np.take_along_axis(similarity, nearest, axis=1) > -np.inf
        both = np.einsum("qp,qkp->qk", truth[rows], of_candidates[nearest])
        either = truth[rows].sum(axis=1)[:, None] + of_candidates.sum(axis=1)[nearest] - both
        shares = np.where(there, both / np.maximum(either, 1), np.nan)
        for k in ks:
            sums[k] += float(shares[:, :k].mean(axis=1).sum()) if k <= most else np.nan
    return {k: sums[k] / len(points) if len(points) and most else float("nan") for k in ks}


def _similarities(queries: ArrayLike, candidates: ArrayLike, chunk: int) -> Iterator[tuple[slice, Singles]]:
    one, other = np.asarray(queries, dtype=np.float32), np.asarray(candidates, dtype=np.float32)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(f"embeddings must be (points, width) of one width, not {one.shape} and {other.shape}")
    for start in range(0, len(one), chunk):
        rows = slice(start, min(start + chunk, len(one)))
        yield rows, one[rows] @ other.T


def _largest(similarity: Singles, count: int) -> NDArray[np.intp]:
    """Columns of the largest values of each row, falling."""
    chosen = np.argpartition(similarity, -count, axis=1)[:, -count:]
    order = np.argsort(-np.take_along_axis(similarity, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def _directions(embeddings: ArrayLike) -> Singles:
    cloud = np.asarray(embeddings, dtype=np.float32)
    lengths = np.linalg.norm(cloud, axis=1, keepdims=True)
    directions: Singles = cloud / np.maximum(lengths, np.finfo(np.float32).tiny)
    return directions
