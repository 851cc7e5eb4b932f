"""The order of training: every row at most once, no scan twice in a batch, the same for a seed, local in its shards."""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa_platform.loading.order import Items, apart_batches, epoch_batches, shuffled, steps_per_epoch

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
    batches = epoch_batches(shard, Items.volumes(scans), batch_size, 7, epoch, buffer)
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
    seen = [epoch_batches(scans, Items.volumes(scans), 8, 0, epoch, 100).ravel() for epoch in range(40)]
    assert set(np.concatenate(seen).tolist()) == set(range(70))  # what an epoch leaves out comes in another


@pytest.mark.parametrize("drawn", [False, True])
def test_seed_and_epoch_decide(drawn: bool) -> None:
    shard, scans = np.arange(60) // 6, np.arange(60) // 2
    items = Items(scans, np.arange(30), drawn=True) if drawn else Items.volumes(scans)

    def batches(seed: int, epoch: int, buffer: int) -> list[list[int]]:
        batches: list[list[int]] = epoch_batches(shard, items, 4, seed, epoch, buffer).tolist()
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
    batches = epoch_batches(np.arange(50_000) // 35, Items.volumes(scans), 64, 0, 0, 4096)
    assert time.process_time() - started < 2.0  # measured 0.1 s
    assert batches.shape == (781, 64)


@settings(deadline=None, max_examples=200)  # the machine may be busy
@given(SPLITS, st.integers(1, 6), st.integers(0, 3), st.integers(1, 50), st.randoms())
def test_an_epoch_has_one_row_of_each_item(
    numbers: list[int], batch_size: int, epoch: int, buffer: int, random: Random
) -> None:
    of_rows = codes(numbers)
    apart = np.array([random.randrange(8) for _ in range(of_rows.max() + 1)])
    items = Items(of_rows, apart, drawn=True)
    if len(set(apart.tolist())) < batch_size:
        return
    batches = epoch_batches(np.arange(len(of_rows)) // 3, items, batch_size, 7, epoch, buffer)
    assert batches.shape == (steps_per_epoch(apart, batch_size), batch_size)
    chosen = of_rows[batches]
    assert len(np.unique(chosen)) == chosen.size
    assert all(len(set(apart[batch])) == batch_size for batch in chosen)


def test_each_reconstruction_is_drawn_as_often_and_anew_in_each_epoch() -> None:
    """As a plain draw of one of an item's rows: of items of 1, 2 and 5 rows, each row in its share of 4,000 epochs."""
    of_rows = np.array([2, 0, 1, 2, 2, 1, 2, 2])
    items = Items(of_rows, np.arange(3), drawn=True)
    shard = np.arange(8)
    seen = np.stack([epoch_batches(shard, items, 3, 5, epoch, 100)[0] for epoch in range(4000)])
    assert (np.sort(of_rows[seen], axis=1) == [0, 1, 2]).all()
    shares = np.bincount(seen.ravel(), minlength=8) / 4000
    np.testing.assert_allclose(shares, 1 / np.bincount(of_rows)[of_rows], atol=0.03)
    firsts = np.bincount(of_rows[seen[:, 0]], minlength=3) / 4000
    np.testing.assert_allclose(firsts, 1 / 3, atol=0.03)  # the order takes nothing from the draw


def test_the_order_of_single_volumes_stays_as_it_was() -> None:
    scans = np.arange(40)
    rows = np.random.default_rng([3, 2]).permutation(40)
    np.testing.assert_array_equal(epoch_batches(scans, Items.volumes(scans), 8, 3, 2, 100), rows.reshape(5, 8))


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 5))
def test_batches_of_all_rows_hold_equal_codes_apart(numbers: list[int], batch_size: int) -> None:
    found = apart_batches(np.array(numbers, dtype=np.int64), batch_size)
    assert sorted(row for batch in found for row in batch.tolist()) == list(range(len(numbers)))
    for batch in found:
        assert 0 < len(batch) <= batch_size
        assert len({numbers[row] for row in batch}) == len(batch)
    distinct = apart_batches(np.arange(len(numbers)), batch_size)
    assert [batch.tolist() for batch in distinct] == [
        list(range(len(numbers)))[start : start + batch_size] for start in range(0, len(numbers), batch_size)
    ]
