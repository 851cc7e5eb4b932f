"""The text of each training volume, its sentences drawn and ordered anew each epoch where so configured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from brgsa.text import TextTower, Tokens, split_sentences
from brgsa_platform.config import DataSection
from brgsa_platform.loading.batches import SplitIndex
from brgsa_platform.loading.order import Ints
from brgsa_platform.loading.random_streams import Purpose, stream
from brgsa_platform.store.store import Store


class Texts:
    """The texts of a split's N rows, drawn anew each epoch as `data` says.

    Attributes:
        written: the texts as they stand in the store, in the order of the rows.
        current: the texts of this epoch.
        codes: int64 (N,), equal for two rows whose current texts say the same.
    """

    def __init__(self, written: list[str], data: DataSection, seed: int) -> None:
        self.written, self.data, self.seed = written, data, seed
        self.current = self.written
        self.codes = codes_of(self.current)

    def draw(self, epoch: int) -> None:
        """Make the texts of an epoch; they depend on seed and epoch alone, so every worker has the same."""
        if not self.data.shuffle_sentences and self.data.sentences is None:
            return
        counts = stream(Purpose.SENTENCE_COUNT, self.seed, epoch)
        order = stream(Purpose.SENTENCE_ORDER, self.seed, epoch)
        self.current = [drawn_text(text, self.data, counts, order) for text in self.written]
        self.codes = codes_of(self.current)

    def tokens(self, tower: TextTower, rows: Ints, prompts: Sequence[str] = ()) -> Tokens:
        """The current texts of b rows, and after them prompts, tokenised by a text tower, on the CPU."""
        return tower.tokenize([*(self.current[row] for row in rows), *prompts])


def drawn_text(text: str, data: DataSection, counts: np.random.Generator, order: np.random.Generator) -> str:
    """A drawing of a text's sentences, as `data` says.

    Args:
        counts, order: draw how many of the sentences there are, where that is drawn, and their order.
    """
    sentences = split_sentences(text)
    if data.shuffle_sentences:
        order.shuffle(sentences)
    if data.sentences is not None:
        number = data.sentences if data.drawn == "exactly" else counts.integers(1, data.sentences + 1)
        sentences = sentences[:number]
    return " ".join(sentences)


def written_texts(store: Store, style: str, rows: SplitIndex) -> list[str]:
    """The texts of a split's rows as they stand in the store, in a summary style or "report"."""
    by_volume = store.texts(style)
    return [by_volume[volume] for volume in rows.volume_ids]


def codes_of(texts: Sequence[str]) -> Ints:
    """int64 (N,) code of each text: equal for the same sentences in any order, and on every worker."""
    digests = (hashlib.blake2b(" ".join(sorted(split_sentences(text))).encode(), digest_size=8) for text in texts)
    return np.array([int.from_bytes(digest.digest(), "little", signed=True) for digest in digests], dtype=np.int64)
