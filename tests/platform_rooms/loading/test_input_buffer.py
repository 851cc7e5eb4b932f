"""Batches come as tensors, each fetched while the one before it is at work."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from brgsa.errors import UserError
from brgsa_platform.loading.input_buffer import InputBuffer, as_tensors, tensor_batches
from brgsa_platform.loading.loaders import Batch, Batches
from tests.helpers.patience import until

CPU = torch.device("cpu")


def batch(number: int, sizes: tuple[int, ...] = (2, 1)) -> Batch:
    """A batch of blocks whose voxels all are the number."""
    blocks = [np.full((n, 4, 3, 2), number, dtype=np.int16) for n in sizes]
    return Batch(np.arange(sum(sizes)) + 10 * number, blocks)


class Source:
    """Batches 0 to n-1, and what is done with them."""

    def __init__(self, n: int, refused: int | None = None) -> None:
        self.n, self.refused = n, refused
        self.begun: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.closed = False

    def batches(self) -> Generator[Batch, None, None]:
        try:
            for number in range(self.n):
                self.begun.append(number)
                self.threads.add(threading.current_thread())
                if number == self.refused:
                    raise UserError("no", code="shard-damaged")
                yield batch(number)
        finally:
            self.closed = True


def test_each_batch_comes_once_and_in_its_order() -> None:
    source = Source(4)
    for number, (rows, blocks) in enumerate((b.rows, blocks) for b, blocks in tensor_batches(source.batches(), CPU)):
        assert rows.tolist() == [10 * number, 10 * number + 1, 10 * number + 2]
        assert [block.unique().tolist() for block in blocks] == [[number], [number]]
        assert torch.cat(list(blocks)).shape == (3, 4, 3, 2)
    assert number == 3
    assert source.closed


def test_blocks_are_not_copied_on_a_cpu() -> None:
    one = batch(7)
    given: Batches = (b for b in [one])
    ((found, blocks),) = tensor_batches(given, CPU)
    assert found is one
    assert [block.data_ptr() for block in blocks] == [block.ctypes.data for block in one.blocks]


@pytest.fixture
def each_warning() -> Iterator[None]:
    """Torch warns each time, not only once in a process."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("each_warning")
def test_a_read_only_block_lives_as_long_as_its_tensor_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    block = np.arange(24, dtype=np.int16).reshape(1, 4, 3, 2)
    block.flags.writeable = False
    kept = weakref.ref(block)
    (tensor,) = as_tensors([block])
    address = block.ctypes.data
    del block
    assert kept() is not None
    assert tensor.data_ptr() == address
    assert tensor.flatten().tolist() == list(range(24))
    del tensor
    assert kept() is None
    assert not recwarn.list


def test_the_next_batch_is_fetched_meanwhile_and_no_more() -> None:
    source = Source(4)
    with closing(tensor_batches(source.batches(), CPU)) as ahead:
        assert source.begun == []
        next(ahead)
        until(lambda: source.begun == [0, 1])
        assert threading.current_thread() not in source.threads
        next(ahead)
        until(lambda: source.begun == [0, 1, 2])
    assert source.closed
    assert source.begun == [0, 1, 2]
    assert not any(thread.is_alive() for thread in source.threads)


def test_closed_while_its_thread_fetches_it_waits_and_then_closes_the_source() -> None:
    inside, go_on, closed = threading.Event(), threading.Event(), []

    def slow() -> Batches:
        try:
            yield batch(0)
            inside.set()
            go_on.wait()
            yield batch(1)
        finally:
            closed.append(go_on.is_set())

    ahead = tensor_batches(slow(), CPU)
    next(ahead)
    inside.wait()
    closing_thread = threading.Thread(target=ahead.close)
    closing_thread.start()
    assert closed == []
    go_on.set()
    closing_thread.join()
    assert closed == [True]


def test_a_refusal_comes_in_its_turn_and_ends_the_source() -> None:
    source = Source(4, refused=2)
    ahead = tensor_batches(source.batches(), CPU)
    assert [next(ahead)[0].rows[0] for _ in range(2)] == [0, 10]
    with pytest.raises(UserError) as refusal:
        next(ahead)
    assert refusal.value.code == "shard-damaged"
    assert source.closed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_for_a_gpu_a_batch_is_pinned_in_one_piece() -> None:
    device = torch.device("cuda", 0)
    for number, (_, blocks) in enumerate(tensor_batches(Source(8).batches(), device)):
        (pinned,) = blocks
        assert pinned.is_pinned()
        floats = InputBuffer(device).fill([pinned])
        assert floats.shape == (3, 1, 4, 3, 2)
        assert floats.unique().tolist() == pytest.approx([number / 1000])
