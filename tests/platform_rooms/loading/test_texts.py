"""The texts of an epoch: a function of seed and epoch, in which how many sentences and in which order are independent."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from brgsa_platform.config import DataSection
from brgsa_platform.loading.random_streams import Purpose, stream
from brgsa_platform.loading.texts import Texts, codes_of, split_sentences

TEXTS = [" ".join(f"There is finding {i} of scan {scan}." for i in range(8)) for scan in range(40)]


def drawn(epoch: int = 3, seed: int = 1, **data: object) -> list[str]:
    texts = Texts(TEXTS, DataSection.model_validate(data), seed)
    texts.draw(epoch)
    return texts.current


def sentences(texts: list[str]) -> list[list[str]]:
    return [split_sentences(text) for text in texts]


def test_as_written_when_nothing_is_drawn() -> None:
    assert drawn(shuffle_sentences=False) == TEXTS


def test_an_order_holds_the_same_sentences() -> None:
    texts = drawn()
    assert texts != TEXTS
    assert [sorted(each) for each in sentences(texts)] == [sorted(each) for each in sentences(TEXTS)]
    np.testing.assert_array_equal(codes_of(texts), codes_of(TEXTS))


def test_a_drawing_is_one_to_so_many_of_the_sentences() -> None:
    counts = [len(each) for each in sentences(drawn(sentences=3))]
    assert set(counts) == {1, 2, 3}
    assert all(
        set(some) <= set(all_of) for some, all_of in zip(sentences(drawn(sentences=3)), sentences(TEXTS), strict=True)
    )


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_seed_and_epoch_decide(seed: int, epoch: int) -> None:
    assert drawn(epoch, seed, sentences=3) == drawn(epoch, seed, sentences=3)
    assert drawn(epoch, seed) != drawn(epoch + 1, seed)
    assert drawn(epoch, seed) != drawn(epoch, seed + 1)


def test_the_order_takes_nothing_from_the_drawing() -> None:
    """Shuffling must not change how many sentences are drawn, nor the number drawn their order."""
    shuffled, in_order = sentences(drawn(sentences=3)), sentences(drawn(sentences=3, shuffle_sentences=False))
    assert [len(each) for each in shuffled] == [len(each) for each in in_order]
    for few, many in zip(shuffled, sentences(drawn(sentences=6)), strict=True):
        shared = min(len(few), len(many))
        assert few[:shared] == many[:shared]


def test_no_purpose_shares_its_numbers() -> None:
    """Volumes are ordered by `default_rng([seed, epoch])` and augmented by `default_rng([seed, epoch, row])`."""
    generators = [stream(purpose, 5, 2) for purpose in Purpose]
    generators += [np.random.default_rng([5, 2]), *(np.random.default_rng([5, 2, row]) for row in range(1, 4))]
    assert len({generator.integers(2**60) for generator in generators}) == len(generators)
