"""The texts of an epoch: a function of seed and epoch, in which how many sentences and in which order are independent."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brgsa.text import split_sentences
from brgsa_platform.config import DataSection
from brgsa_platform.loading.random_streams import Purpose, stream
from brgsa_platform.loading.texts import Texts, codes_of

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


@pytest.mark.parametrize(("how", "numbers"), [("up_to", {1, 2, 3}), ("exactly", {3})])
def test_a_drawing_is_so_many_of_the_sentences(how: str, numbers: set[int]) -> None:
    some = sentences(drawn(sentences=3, drawn=how))
    assert {len(each) for each in some} == numbers
    assert all(len(set(each)) == len(each) for each in some)  # drawn without replacement
    assert all(set(each) <= set(whole) for each, whole in zip(some, sentences(TEXTS), strict=True))


def test_a_text_of_fewer_sentences_is_drawn_whole() -> None:
    assert [sorted(each) for each in sentences(drawn(sentences=9))] == [sorted(each) for each in sentences(TEXTS)]


def test_every_choice_and_order_of_sentences_is_as_likely() -> None:
    """Two of three sentences: the six ordered choices, as `itertools.permutations` counts them."""
    texts = Texts(["A a. B b. C c."] * 300, DataSection(sentences=2), 0)
    counts: Counter[str] = Counter()
    for epoch in range(20):
        texts.draw(epoch)
        counts.update(texts.current)
    assert set(counts) == {" ".join(pair) for pair in itertools.permutations(["A a.", "B b.", "C c."], 2)}
    assert all(abs(count - 1000) < 150 for count in counts.values())


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_seed_and_epoch_decide(seed: int, epoch: int) -> None:
    assert drawn(epoch, seed, sentences=3) == drawn(epoch, seed, sentences=3)
    assert drawn(epoch, seed) != drawn(epoch + 1, seed)
    assert drawn(epoch, seed) != drawn(epoch, seed + 1)


def test_the_order_takes_nothing_from_the_drawing() -> None:
    """Shuffling must not change how many sentences are drawn, nor the number drawn their order."""
    some = {"sentences": 3, "drawn": "up_to"}
    shuffled, in_order = sentences(drawn(**some)), sentences(drawn(**some, shuffle_sentences=False))
    assert [len(each) for each in shuffled] == [len(each) for each in in_order]
    for few, many in zip(shuffled, sentences(drawn(sentences=6, drawn="up_to")), strict=True):
        shared = min(len(few), len(many))
        assert few[:shared] == many[:shared]


def test_no_purpose_shares_its_numbers() -> None:
    """Volumes are ordered by `default_rng([seed, epoch])` and augmented by `default_rng([seed, epoch, row])`."""
    generators = [stream(purpose, 5, 2) for purpose in Purpose]
    generators += [np.random.default_rng([5, 2]), *(np.random.default_rng([5, 2, row]) for row in range(1, 4))]
    assert len({generator.integers(2**60) for generator in generators}) == len(generators)
