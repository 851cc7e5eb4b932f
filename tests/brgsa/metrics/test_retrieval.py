"""Retrieval against the full matrix, and its memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from brgsa.metrics.retrieval import overlap_at, recall_at

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_recall_is_that_of_the_full_matrix(chunk: int) -> None:
    texts = RNG.normal(size=(30, 8))
    scans = np.repeat(np.arange(30), 2)[RNG.permutation(60)]
    volumes = texts[scans] + 2 * RNG.normal(size=(60, 8))
    similarity = volumes.astype(np.float32) @ texts.T.astype(np.float32)
    ranks = np.array([(similarity[i] > similarity[i, scans[i]]).sum() for i in range(60)])
    found = recall_at(volumes, texts, scans, np.arange(30), ks=(1, 5, 10), chunk=chunk)
    assert found == pytest.approx({k: (ranks < k).mean() for k in (1, 5, 10)})
    best = np.array([max(similarity[i, t] for i in range(60) if scans[i] == t) for t in range(30)])
    other = [sum(similarity[i, t] > best[t] for i in range(60)) for t in range(30)]
    back = recall_at(texts, volumes, np.arange(30), scans, ks=(1, 5), chunk=chunk)
    assert back == pytest.approx({k: np.mean([o < k for o in other]) for k in (1, 5)})


def test_a_collapsed_model_finds_nothing() -> None:
    same = np.ones((20, 4))
    assert recall_at(same, same, np.arange(20), np.arange(20), ks=(1, 5, 20)) == {1: 0, 5: 0, 20: 1}


def test_a_query_without_a_candidate_is_refused() -> None:
    with pytest.raises(ValueError):
        recall_at(np.ones((2, 3)), np.ones((2, 3)), [0, 1], [0, 2])


@pytest.mark.parametrize("chunk", [3, 1000])
def test_overlap_by_a_plain_loop(chunk: int) -> None:
    volumes, labels = RNG.normal(size=(25, 6)), (RNG.random((25, 4)) < 0.4).astype(float)
    labels[3] = 0
    scans = np.arange(25) // 2
    unit = volumes / np.linalg.norm(volumes, axis=1, keepdims=True)

    def expected(k: int, own: bool) -> float:
        shares = []
        for i in range(25):
            others = [j for j in range(25) if labels[j].any() and (own or scans[i] != scans[j])]
            nearest = sorted(others, key=lambda j: -unit[i] @ unit[j])[:k]
            either = [max(np.maximum(labels[i], labels[j]).sum(), 1) for j in nearest]
            shares.append(np.mean([(labels[i] * labels[j]).sum() / e for j, e in zip(nearest, either, strict=True)]))
        return float(np.mean(shares))

    for groups in (scans, None):
        found = overlap_at(volumes, labels, groups, ks=(1, 5, 40), chunk=chunk)
        assert found[1] == pytest.approx(expected(1, groups is None), abs=1e-6)
        assert found[5] == pytest.approx(expected(5, groups is None), abs=1e-6)
        assert np.isnan(found[40])


def test_memory_grows_with_the_chunk_and_not_with_the_square() -> None:
    points = RNG.normal(size=(6000, 8)).astype(np.float32)
    tracemalloc.start()
    recall_at(points, points, np.arange(6000), np.arange(6000), chunk=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000 * 6000 * 4 / 10
