"""The order of training: every row at most once, no scan twice in a batch, the same for a seed, local in its shards."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa_platform.loading.order import epoch_batches, shuffled, steps_per_epoch

SPLITS = st.lists(st.integers(0, 8), min_size=1, max_size=40)


def codes(scans: list[int]) -> np.ndarray:
    return np.unique(np.array(scans), return_inverse=True)[1].astype(np.int64)


@settings(deadline=None, max_examples=300)  # the machine may be busy
@given(SPLITS, st.integers(1, 6), st.integers(0, 3), st.integers(1, 50), st.integers(1, 12))
def test_batches_hold_distinct_scans_and_no_row_twice(
    scan_numbers: list[int], batch_size: int, epoch: int, buffer: int, volumes_a_shard: int
) -> None:
    scans = codes(scan_numbers)
    shard = np.arange(len(scans)) // volumes_a_shard
    if scans.max() + 1 < batch_size:
        with refused("batch-too-large", field="train.batch_size", value=batch_size):
            steps_per_epoch(scans, batch_size)
        return
    steps = steps_per_epoch(scans, batch_size)
    batches = epoch_batches(shard, scans, batch_size, 7, epoch, buffer)
    assert batches.shape == (steps, batch_size)
    assert len(np.unique(batches)) == batches.size
    assert all(len(set(scans[batch])) == batch_size for batch in batches)
    # No more batches could be filled: one more needs more distinct volumes than there are.
    assert np.minimum(np.bincount(scans), steps + 1).sum() < (steps + 1) * batch_size


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 20), st.integers(0, 5))
def test_a_shuffle_is_a_permutation(rows: int, buffer: int, volumes_a_shard: int, seed: int) -> None:
    order = shuffled(np.arange(rows) // volumes_a_shard, buffer, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(rows))


def test_distinct_scans_make_full_epochs() -> None:
    scans = np.arange(70)
    assert steps_per_epoch(scans, 8) == 8
    seen = [epoch_batches(scans, scans, 8, 0, epoch, 100).ravel() for epoch in range(40)]
    assert set(np.concatenate(seen).tolist()) == set(range(70))  # what an epoch leaves out comes in another


def test_seed_and_epoch_decide() -> None:
    shard, scans = np.arange(60) // 6, np.arange(60) // 2

    def batches(seed: int, epoch: int, buffer: int) -> list[list[int]]:
        batches: list[list[int]] = epoch_batches(shard, scans, 4, seed, epoch, buffer).tolist()
        return batches

    for buffer in (10, 100):
        assert batches(1, 2, buffer) == batches(1, 2, buffer)
        assert batches(1, 2, buffer) != batches(1, 3, buffer)
        assert batches(1, 2, buffer) != batches(2, 2, buffer)


def test_a_split_that_fits_the_buffer_is_fully_permuted() -> None:
    rng = np.random.default_rng(0)
    firsts = [int(shuffled(np.arange(20) // 4, 20, rng)[0]) for _ in range(2000)]
    counts = np.bincount(firsts, minlength=20)
    assert counts.min() > 60  # each of 20 rows comes first in about 100 of 2000
    assert counts.max() < 150


def test_reading_is_local_and_mixed() -> None:
    shard = np.arange(50_000) // 35
    order = shuffled(shard, 4096, np.random.default_rng(0))
    window = shard[order][20_000:20_064]
    assert len(set(window.tolist())) > 40  # a batch mixes many shards
    # Nearly all of a shard is read while a few buffers' worth of volumes goes by.
    places = np.argsort(order)
    spans = [np.ptp(np.sort(places[shard == s])[3:-3]) for s in range(0, 1428, 50)]
    assert np.median(spans) < 4 * 4096


def test_an_archives_order_is_made_in_a_second() -> None:
    rng = np.random.default_rng(0)
    scans = np.sort(rng.integers(0, 25_000, 50_000))
    scans = np.unique(scans, return_inverse=True)[1]
    started = time.process_time()
    batches = epoch_batches(np.arange(50_000) // 35, scans, 64, 0, 0, 4096)
    assert time.process_time() - started < 2.0  # measured 0.1 s
    assert batches.shape == (781, 64)
