"""The text of each training volume, its sentences drawn and ordered anew each epoch when so configured."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from brgsa.text import TextTower, Tokens
from brgsa_platform.config import RunConfig
from brgsa_platform.store.store import Store
from brgsa_platform.training.batches import SplitIndex


class Texts:
    """Texts of a split's rows; `current` and their `codes` are the epoch's."""

    def __init__(self, store: Store, config: RunConfig, rows: SplitIndex) -> None:
        self.data, self.seed = config.data, config.train.seed
        self._by_volume = store.texts(config.data.style)
        self.written = self.of(rows, np.arange(len(rows)))
        self.current = self.written
        self.codes = codes_of(self.current)

    def draw(self, epoch: int) -> None:
        """Make the epoch's texts; they depend on seed and epoch alone, so every worker has the same."""
        if not self.data.shuffle_sentences and self.data.sentences is None:
            return
        rng = np.random.default_rng([self.seed, epoch])
        self.current = [self._drawn(text, rng) for text in self.written]
        self.codes = codes_of(self.current)

    def tokens(self, tower: TextTower, rows: np.ndarray) -> Tokens:
        return tower.tokenize([self.current[row] for row in rows])

    def of(self, rows: SplitIndex, order: np.ndarray) -> list[str]:
        """The texts as written of some rows of any split."""
        return [self._by_volume[rows.volume_ids[i]] for i in order]

    def _drawn(self, text: str, rng: np.random.Generator) -> str:
        sentences = split_sentences(text)
        if self.data.shuffle_sentences:
            rng.shuffle(sentences)
        if self.data.sentences is not None:
            sentences = sentences[: rng.integers(1, self.data.sentences + 1)]
        return " ".join(sentences)


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, each with its full stop."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", text.strip())]


def codes_of(texts: Sequence[str]) -> np.ndarray:
    """int64 code of each text: equal for the same sentences in any order, and on every worker."""
    digests = (hashlib.blake2b(" ".join(sorted(split_sentences(text))).encode(), digest_size=8) for text in texts)
    return np.array([int.from_bytes(digest.digest(), "little", signed=True) for digest in digests], dtype=np.int64)
