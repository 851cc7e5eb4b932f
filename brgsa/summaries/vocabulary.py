"""The reader's vocabulary: `vocabulary.yaml` compiled into regular expressions.

The head of the YAML explains its notation. spaCy's entity ruler cannot replace it: that gives each word to one entity only,
while one clause may name several abnormalities ("calcification of the aorta and coronary arteries").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

DENIAL = re.compile(r"\b(?:no|not|without|free of|clear of)\b")
BEGINNING = 3
_WORD = re.compile(r"\w+")
SEPARATOR = r"[\s\-/,]+"


@dataclass(frozen=True)
class Term:
    """Ways to name an abnormality (`words`), and what the same clause must (`required`) or must not (`forbidden`) contain."""

    words: re.Pattern[str]
    required: re.Pattern[str] | None
    forbidden: re.Pattern[str] | None

    def fits(self, clause: str) -> bool:
        """Whether `clause` (lower case) contains what it must, and nothing that it must not."""
        return not (self.required and not self.required.search(clause)) and not (
            self.forbidden and self.forbidden.search(clause)
        )


@dataclass(frozen=True)
class Entry:
    """One abnormality's vocabulary; see the head of `vocabulary.yaml`.

    Attributes:
        beginnings: first letters (`BEGINNING` of them) of words, of which any clause that names the abnormality or calls its
            organ normal has one.
    """

    name: str
    terms: tuple[Term, ...]
    normal: re.Pattern[str] | None
    never: re.Pattern[str] | None
    unless: re.Pattern[str] | None
    places: frozenset[str]
    beginnings: frozenset[str]

    def find(self, clause: str, place: str) -> list[tuple[int, int]]:
        """Character spans in `clause` (lower case) that name the abnormality; `place` is the clause's organ group."""
        if self.places and place and place not in self.places:
            return []
        if not any(term.words.search(clause) for term in self.terms):  # most clauses, so this comes first
            return []
        if self.unless and self.unless.search(clause):
            return []
        clause = self._masked(clause)
        return [match.span() for term in self.terms if term.fits(clause) for match in term.words.finditer(clause)]

    def denies(self, clause: str) -> bool:
        """Whether `clause` (lower case) calls the organ normal: "heart size is normal" denies cardiomegaly."""
        if not self.normal:
            return False
        normal = self.normal.search(self._masked(clause))
        return normal is not None and not DENIAL.search(normal[0])

    def _masked(self, clause: str) -> str:
        return self.never.sub(lambda match: "_" * len(match[0]), clause) if self.never else clause


@dataclass(frozen=True)
class Vocabulary:
    """All entries, in the YAML's order, and the words by which a clause names an organ group."""

    entries: tuple[Entry, ...]
    places: dict[str, re.Pattern[str]]
    by_beginning: dict[str, tuple[int, ...]]

    def candidates(self, clause: str) -> list[Entry]:
        """The entries that `clause` (lower case) may name, in the YAML's order; all others it does not."""
        found = {word[:BEGINNING] for word in _WORD.findall(clause)} & self.by_beginning.keys()
        return [self.entries[place] for place in sorted({place for part in found for place in self.by_beginning[part]})]

    def names(self, text: str) -> frozenset[str]:
        """The abnormalities that a text names, whatever it says of them."""
        text = text.lower()
        return frozenset(entry.name for entry in self.candidates(text) if entry.find(text, self.place(text)))

    def place(self, clause: str) -> str:
        """The organ group that `clause` (lower case) names first in the YAML's order, or "" for none."""
        return next((name for name, words in self.places.items() if words.search(clause)), "")


def pattern(text: str, words: dict[str, str]) -> str:
    """The regular expression of one term in the vocabulary's notation."""
    out, glue = "", ""
    for token in text.format(**words).split():
        if token.startswith(".."):
            glue = rf"(?:{SEPARATOR}[^\s\-/,]+){{0,{int(token[2:])}}}{SEPARATOR}"
            continue
        optional = token.endswith("?")
        choices = "|".join(re.escape(word).replace(r"\*", r"\w*") for word in token.removesuffix("?").split("|"))
        out += rf"(?:{glue}\b(?:{choices})\b)?" if optional else rf"{glue}\b(?:{choices})\b"
        glue = SEPARATOR
    return out


def beginnings(text: str, words: dict[str, str]) -> set[str]:
    """First letters of the words with which a term in the vocabulary's notation begins."""
    first = next(
        token for token in text.format(**words).split() if not token.startswith("..") and not token.endswith("?")
    )
    return {word.removesuffix("*")[:BEGINNING] for word in first.split("|")}


def listed(text: str) -> list[str]:
    """The items of a comma-separated list, as the YAML files write them."""
    return [item for raw in text.split(",") if (item := raw.strip())]


def _any(terms: str, words: dict[str, str]) -> re.Pattern[str] | None:
    return re.compile("|".join(pattern(term, words) for term in listed(terms))) if terms else None


def _entry(name: str, raw: dict[str, str], words: dict[str, str]) -> Entry:
    alike: dict[tuple[str, str], list[str]] = {}
    for term in listed(raw["terms"]):
        term, _, forbidden = term.partition(" ! ")
        term, _, required = term.partition(" & ")
        alike.setdefault((required, forbidden), []).append(term)
    terms = (
        Term(re.compile("|".join(pattern(way, words) for way in ways)), _any(required, words), _any(forbidden, words))
        for (required, forbidden), ways in alike.items()
    )
    return Entry(
        name,
        tuple(terms),
        _any(raw.get("normal", ""), words),
        _any(raw.get("never", ""), words),
        _any(raw.get("unless", ""), words),
        frozenset(listed(raw.get("places", ""))),
        frozenset(
            part
            for ways in (*alike.values(), listed(raw.get("normal", "")))
            for way in ways
            for part in beginnings(way, words)
        ),
    )


@cache
def vocabulary() -> Vocabulary:
    """The vocabulary of CT-RATE's and CT-RATE-LT's 33 abnormalities, read once."""
    raw = read_yaml("vocabulary.yaml")
    places = {
        name: re.compile("|".join(pattern(word, {}) for word in listed(words))) for name, words in raw["places"].items()
    }
    return _indexed(_entries(raw), places)


@cache
def open_vocabulary() -> Vocabulary:
    """The 33 abnormalities and those of `open_vocabulary.yaml`, read once."""
    base = vocabulary()
    return _indexed((*base.entries, *_entries(read_yaml("open_vocabulary.yaml"))), base.places)


def _entries(raw: Any) -> tuple[Entry, ...]:
    return tuple(_entry(name, entry, raw["words"]) for name, entry in raw["abnormalities"].items())


def _indexed(entries: tuple[Entry, ...], places: dict[str, re.Pattern[str]]) -> Vocabulary:
    by_beginning: dict[str, tuple[int, ...]] = {}
    for number, entry in enumerate(entries):
        for part in entry.beginnings:
            by_beginning[part] = (*by_beginning.get(part, ()), number)
    return Vocabulary(entries, places, by_beginning)


@cache
def read_yaml(name: str) -> Any:
    """The contents of a YAML file of this package, read once."""
    import yaml

    return yaml.safe_load(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))
