"""A statement, and the pairs of key and value that give some: "Effusion: none", "Absent: effusion, nodule", a table's row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from brgsa.summaries.sections import is_organ
from brgsa.summaries.vocabulary import listed, open_vocabulary, read_yaml

VERDICT_WORD = r"(?:none|no|nil|yes|absent|present|negative|positive|neg|pos)"
_PAIR = re.compile(r"^(?P<key>[^:;|=?\t]{2,80}?)(?P<sep>\s*[:=]+>?\s*|\s+[-–—]+>?\s*)(?P<value>.*)$", re.DOTALL)
_TRAILERS = ("absent", "present", "negative", "positive", "none", "nil")
_TRAILING = re.compile(rf"^(?P<key>\S.{{2,60}}?)(?P<sep>\s+)(?P<value>{'|'.join(_TRAILERS)})$", re.IGNORECASE)
_SIDED = re.compile(r"^\(?(?:right|left|bilateral|bilaterally|r|l)\)?\s*[:=-]?\s*(?=\S)", re.IGNORECASE)
_SIDE = re.compile(r"\b(?:right|left)\b", re.IGNORECASE)
_DENYING = re.compile(r"\b(?:no|not|without|negative|absence|free)\b", re.IGNORECASE)
_LONGEST_KEY = 8  # words


@dataclass(frozen=True)
class Statement:
    """One statement of a report.

    Attributes:
        text: as a summary quotes it.
        body: what is read in it.
        context: words that belong before each clause of the body: an organ ("pericardium"), or an opening ("there is no").
        verdict: what it says of all that the body names ("absent", "present", "uncertain", "history"); "" where the body's
            own words tell.
    """

    text: str
    body: str
    context: str = ""
    verdict: str = ""


def pairs_of(sentence: str) -> list[tuple[str, str]] | None:
    """(key, value) of each part of a sentence that has any; a part without has the key ""."""
    if trailing := _trailing_pairs(sentence):
        return trailing
    if not _PAIR.match(sentence):
        return None
    parts = [part for part in re.split(r"\s*[;|]\s*", sentence) if part.strip()]
    smaller = [part for whole in parts for part in re.split(r",\s+", whole)]
    if sum(is_verdict_pair(part) for part in smaller) > 1:
        parts = smaller
    out = []
    for part in parts:
        pair = pair_of(part)
        out.append(pair if pair else ("", part))
    return out if any(key for key, _ in out) else None


def _trailing_pairs(sentence: str) -> list[tuple[str, str]]:
    """The pairs of "Effusion absent, nodule present"; none where a part is no such pair, or denies in words of its own."""
    lower = sentence.lower()
    if not lower.endswith(_TRAILERS) or _DENYING.search(lower.replace("negative", "")):
        return []
    pairs = [_TRAILING.match(part) for part in re.split(r"[,;]\s+", sentence)]
    return [(pair["key"], pair["value"]) for pair in pairs if pair] if len(pairs) > 1 and all(pairs) else []


def pair_of(part: str) -> tuple[str, str] | None:
    """The key and the value of "KEY: value"; a dash or equals sign stands for the colon only before a verdict."""
    pair = _PAIR.match(part)
    if not pair or len(pair["key"].split()) > _LONGEST_KEY:
        return None
    key, value = pair["key"].strip(" \"'.-"), pair["value"].strip(" \"'")
    names = open_vocabulary().names(key)
    if ":" in pair["sep"]:
        return (key, value) if names or is_organ(key) or _list_verdict(key) or _denies(key) else None
    return (key, value) if names and (_verdict(value) or not value) else None


def is_verdict_pair(part: str) -> bool:
    """Whether a text is an abnormality with a verdict: "Effusion: none"."""
    pair = pair_of(part)
    return pair is not None and bool(open_vocabulary().names(pair[0]) and _verdict(pair[1]))


def statements_of_pair(key: str, value: str, context: str) -> tuple[list[Statement], str]:
    """The statements of a pair, and the context for what follows on its line; a pair without a key is its value alone."""
    if not key:
        return [Statement(value, value, context)], context
    text = f"{key}: {value}"
    if (listed_verdict := _list_verdict(key)) and not (
        open_vocabulary().names(key) and not open_vocabulary().names(value)
    ):
        return [Statement(text, value, context, listed_verdict)], context
    if open_vocabulary().names(key):
        return _of_finding(key, value, text, context), context
    if _denies(key):
        return [Statement(text, f"{key} {value}", context)], context
    return [Statement(text, value, key.lower())], key.lower()


def _of_finding(key: str, value: str, text: str, context: str) -> list[Statement]:
    """The statements of a key that names an abnormality."""
    verdict, named = _sided_verdict(value), open_vocabulary().names(value)
    if verdict == "unsaid":
        return []
    if named & open_vocabulary().names(key):  # "Effusion: no pleural effusion"
        return [Statement(text, value, context)]
    if not verdict:  # "Nodules: 4 mm", "Effusion: small"
        return [Statement(text, f"{key} {value}", context)]
    head, stop, rest = re.match(r"([^,;.(]*)([,;.(]?)\s*(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
    more = rest if stop and not open_vocabulary().names(head) else value
    return [Statement(text, key, context, verdict), *([Statement(more, more, context)] if named else [])]


def _sided_verdict(value: str) -> str:
    """The verdict of a value, also of one that gives it per side: "right: none, left: small" is present."""
    parts = re.split(r"[,;]\s*|\s+(?=(?:left|right)\s*[:=-])", value)
    sides = [part for part in parts if _SIDED.match(part)]
    if sum(_SIDE.search(part) is not None for part in parts) > 1:  # "none on the right, moderate on the left"
        sides = [part for part in parts if _SIDE.search(part)]
    if not sides:
        return _verdict(value)
    verdicts = {_verdict(_SIDED.sub("", part)) or _verdict(part.split()[-1]) for part in sides}
    return verdicts.pop() if len(verdicts) == 1 else "present" if verdicts & {"", "present"} else "uncertain"


def row_statements(cells: list[str], columns: list[str]) -> list[Statement]:
    """A table's row: the first cell names an abnormality, the next that has a verdict says what of it.

    Args:
        columns: the cells of the table's head; in a column "Absent", "yes" denies.
    """
    if not cells or not open_vocabulary().names(cells[0]):
        return []
    filled = [(place, cell) for place, cell in enumerate(cells[1:], start=1) if cell.strip(" -–")]
    place, cell = next(((place, cell) for place, cell in filled if _verdict(cell)), (filled or [(0, "")])[0])
    verdict = _verdict(cell)
    head = columns[place] if place < len(columns) else ""
    if verdict in ("present", "absent") and "absent" in (_list_verdict(head), _verdict(head)):
        verdict = "absent" if verdict == "present" else "present"
    if not cell or verdict == "unsaid":
        return []
    text = f"{cells[0]}: {cell}"
    return [Statement(text, cells[0], "", verdict) if verdict else Statement(text, f"{cells[0]} {cell}")]


def _denies(key: str) -> bool:
    """Whether a key denies what follows it: "No evidence of"."""
    return _DENYING.search(key) is not None and not open_vocabulary().names(key)


def verdict_of_pair(text: str) -> str:
    """The verdict of "Effusion: none"; "" where the text is no such pair."""
    pair = pair_of(text)
    return _verdict(pair[1]) if pair else ""


def _verdict(value: str) -> str:
    """What a value says by its first words: "absent", "present", "uncertain", "history", "unsaid"; else ""."""
    value = value.strip().lower()
    return next((verdict for verdict, words in _values().items() if words.match(value)), "")


def _list_verdict(key: str) -> str:
    """The verdict that a key passes on the list after it: "Absent: effusion, nodule"."""
    return _verdict_keys().get(re.sub(r"[^a-z ]", "", key.lower()).strip(), "")


@cache
def _values() -> dict[str, re.Pattern[str]]:
    return {name: re.compile(words) for name, words in read_yaml("structure.yaml")["values"].items()}


@cache
def _verdict_keys() -> dict[str, str]:
    return {
        word: verdict for verdict, words in read_yaml("structure.yaml")["verdicts"].items() for word in listed(words)
    }
