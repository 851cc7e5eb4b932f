"""Whether a sentence is English: by its words (`english.yaml`), for no model is sure of "Kein Pneumothorax"."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from brgsa.summaries.vocabulary import read_yaml

_WORD = re.compile(r"[^\W\d_]{2,}")
_DENIALS = ("without", "not", "no")
_SHORTEST = 5  # letters of each half of a word that lost its blank
KNOWN_SHARE = (
    0.3  # of a text's words; English reports have two thirds, other languages with the same Latin terms a fifth
)


@dataclass(frozen=True)
class Evidence:
    """How many words of a text are known, and how many of them are in English only or in other languages only."""

    words: int
    known: int
    english: int
    other: int

    def __add__(self, more: Evidence) -> Evidence:
        return Evidence(
            self.words + more.words, self.known + more.known, self.english + more.english, self.other + more.other
        )

    @property
    def is_english(self) -> bool:
        """Enough known words, and few of other languages alone."""
        return self.known >= KNOWN_SHARE * self.words and (self.english > self.other or self.other <= self.known / 5)

    @property
    def is_foreign(self) -> bool:
        """Words of other languages, and as many as of English or more."""
        return self.other > 0 and self.other >= self.english


NO_EVIDENCE = Evidence(0, 0, 0, 0)


@lru_cache(maxsize=4096)  # reports repeat each other's sentences
def evidence(text: str) -> Evidence:
    """The evidence in one text."""
    words = _words()
    english, known, other, found = 0, 0, 0, _WORD.findall(_plain(text))
    for word in found:
        kind = words.get(word)
        english += kind == "english"
        known += kind in ("english", "known")
        other += kind == "other" or not word.isascii()
    return Evidence(len(found), known, english, other)


def english_ones(texts: Sequence[str]) -> list[bool]:
    """Which sentences of a report are English; one that does not tell is what the report is as a whole."""
    each = [evidence(text) for text in texts]
    whole = sum(each, NO_EVIDENCE)
    if whole.is_english:
        return [not one.is_foreign for one in each]
    return [one.english > 0 and one.is_english for one in each]


def _plain(text: str) -> str:
    """Lower case, letters without their accents."""
    text = text.lower()
    if text.isascii():
        return text
    return "".join(
        c
        for c in unicodedata.normalize("NFKD", text.replace("ı", "i").replace("ß", "ss"))
        if not unicodedata.combining(c)
    )


@cache
def _words() -> dict[str, str]:
    """word → "english" (no other language has it), "known" (in English too) or "other" (not in English)."""
    raw = read_yaml("english.yaml")
    english, radiology = set(raw["english"].split()), set(raw["radiology"].split())
    other = {word for words in raw["others"].values() for word in words.split()}
    return {
        **dict.fromkeys(other, "other"),
        **dict.fromkeys(radiology | english, "known"),
        **dict.fromkeys(english - other - radiology, "english"),
    }


def is_known(word: str) -> bool:
    """Whether this is a word of English radiology."""
    return _words().get(_plain(word)) in ("english", "known")


@lru_cache(maxsize=16384)  # reports share their words
def apart(word: str) -> str:
    """Two words between which the blank was lost: "NOPLEURAL", "pleuraleffusion". Any other word as it is."""
    if is_known(word):
        return word
    for denial in _DENIALS:
        begin, rest = word[: len(denial)], word[len(denial) :]
        if begin.lower() == denial and len(rest) > 3 and (is_known(rest) or apart(rest) != rest):
            return f"{begin} {apart(rest)}"
    for cut in range(_SHORTEST, len(word) - _SHORTEST + 1):
        if is_known(word[:cut]) and is_known(word[cut:]):
            return f"{word[:cut]} {word[cut:]}"
    return word
