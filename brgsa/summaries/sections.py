"""The parts of a report that speak of this scan: history, indication, technique, comparison and recommendation do not.

A header is known by its words (`structure.yaml`), before a colon or a dash, or on a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from brgsa.summaries.vocabulary import listed, read_yaml, vocabulary

_SEPARATOR = re.compile(r":|[ \t][-–—](?=[ \t])")
# Where the name before a separator may begin.
_BOUNDARY = re.compile(r"[.!?;)\]\"\n|][ \t\-*•#|]*|[ \t]{2,}|(?:^|\n)[ \t]*\(?\d{1,2}[.)]")
_NAME = re.compile(r"[A-Za-z][A-Za-z/&,()' -]*[ \t]*")
# A header in the middle of a sentence that has no full stop: "Lungs are clear IMPRESSION: Normal".
_LOUD = re.compile(
    r"\b(?:(?:[A-Z]{3,}[ /])*[A-Z]{4,}|Findings?|Impressions?|Conclusions?|History|Indications?|Technique|Comparison|"
    r"Recommendations?)[ \t]*$"
)
_PLAIN = re.compile(
    r"(?:(?<=[.!?:\"]\s)|^)(?i:findings?|impressions?|conclusions?|results?|comments?)(?=\s+[A-Z])", re.MULTILINE
)
_LINE = re.compile(r"^[ \t*#=_-]*([A-Za-z][A-Za-z/&,()' -]{1,60}?)[ \t*#=_-]*$", re.MULTILINE)
_BARE = re.compile(r"^[ \t]*((?:[A-Z]{2,} ){0,2}[A-Z]{2,})(?= +[A-Z0-9]?[a-z0-9])", re.MULTILINE)  # "HISTORY Emphysema"
_PARAGRAPH_END = re.compile(r"(?<=\S)[ \t]*\n[ \t]*\n|(?<=[.!?])[ \t]*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
# "Comparison with CT of 12.03.2019": what follows is that examination's, where the findings of this one are still to come.
_EARLIER = re.compile(
    r"(?:^|(?<=[\n.!?;]))[ \t\-*•#]*((?:in )?(?:comparison|compared|prior|previous|earlier|old|last)\b"
    r"(?=[^:\n]*\d)(?:[\w ,/()'-]|\.(?=\d))*)$",
    re.IGNORECASE,
)
_CONCLUDING = re.compile(r"\b(?:impressions?|conclusions?|opinion|summary|diagnos[ie]s|results?)\b", re.IGNORECASE)
_POINT = re.compile(r"[\"“”•]")  # before the first point of an impression without a header
_REACH = 70  # characters before a separator in which its name begins


class Header(NamedTuple):
    """Where a header begins and ends, and what it begins: "spoken" (said of this scan), "silent", "brief" (silent for a
    sentence where nothing else tells how long), "earlier" (silent where the first spoken part follows), or an "organ"."""

    start: int
    end: int
    kind: str


def spoken_sections(text: str) -> list[str]:
    """The parts of a clean report that speak of this scan, in order, without their headers; those that name an organ stay."""
    headers = sorted(_headers(text))
    first = next((header.start for header in headers if header.kind == "spoken"), None)
    headers = [h for h in headers if h.kind != "earlier" or (first is not None and h.start < first)]
    out: list[str] = []
    start, kind = 0, "spoken"
    for header in headers:
        if header.start >= start:
            out.append(_spoken_part(text[start : header.start], kind, first is not None))
            start, kind = (header.start if header.kind == "organ" else header.end), header.kind
    out.append(_spoken_part(text[start:], kind, first is not None))
    return [part for part in out if part.strip()]


def impression(text: str) -> str:
    """The impression of a clean report: what stands under such a header, or after the first quotation mark or bullet, as in
    CT-RATE's reports; "" where it has none."""
    headers = sorted(_headers(text))
    for number, header in enumerate(headers):
        if header.kind == "spoken" and _CONCLUDING.search(text[header.start : header.end]):
            end = headers[number + 1].start if number + 1 < len(headers) else len(text)
            return text[header.end : end].strip(' :\n"“”•·*')
    point = _POINT.search(text)
    return text[point.end() :].strip() if point and text[: point.start()].strip() else ""


def _spoken_part(section: str, kind: str, structured: bool) -> str:
    """What a section says of this scan. Without FINDINGS or IMPRESSION, a silent one ends with its paragraph or line."""
    if kind in ("spoken", "organ"):
        return section
    if structured:
        return ""
    end = _PARAGRAPH_END.search(section) or (_SENTENCE_END.search(section) if kind == "brief" else None)
    return section[end.end() :] if end else ""


def _headers(text: str) -> Iterator[Header]:
    for mark in _SEPARATOR.finditer(text):
        reach = max(0, mark.start() - _REACH)
        before = text[reach : mark.start()]
        bounds = [bound.end() for bound in _BOUNDARY.finditer(before) if bound.end() < len(before)]
        start = bounds[-1] if bounds else 0
        start += len(before[start:]) - len(before[start:].lstrip(" \t-*•#|"))
        if (bounds or reach == 0) and (kind := _kind(before[start:], free=mark[0] == ":")):
            yield Header(reach + start, mark.end(), kind)
        elif mark[0] == ":" and (earlier := _EARLIER.search(before)):
            yield Header(reach + earlier.start(1), mark.end(), "earlier")
        elif (loud := _LOUD.search(before)) and (kind := _kind(loud[0], free=False)):
            yield Header(reach + loud.start(), mark.end(), kind)
    for plain in _PLAIN.finditer(text):
        yield Header(plain.start(), plain.end(), "spoken")
    for whole in _BARE.finditer(text) if text.isupper() is False else ():
        if kind := _kind(whole[1], free=False):
            yield Header(whole.start(), whole.end(), kind)
    if "\n" in text:
        for line in _LINE.finditer(text):
            if kind := _kind(line[1], free=False):
                yield Header(line.start(), line.end(), kind)


def _kind(name: str, free: bool) -> str:
    """What the header `name` begins, "" where it is none; a `free` one may have up to three words that are no header's."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", name.lower())
    if not words or len(words) > 7 or not _NAME.fullmatch(name):
        return ""
    tiers = _tiers()
    if any(word in tiers["never"] for word in words):
        return ""
    if all(any(word in tier for tier in tiers.values()) for word in words) or (
        free and (len(words) <= 3 or name.isupper())
    ):
        for tier, kind in (("silent first", "silent"), ("spoken", "spoken"), ("silent", "silent")):
            if any(word in tiers[tier] for word in words):
                brief = kind == "silent" and all(word in tiers["brief"] or word in tiers["beside"] for word in words)
                return "brief" if brief else kind
    return "organ" if free and is_organ(name) else ""


def is_organ(name: str) -> bool:
    """Whether a header names organs and nothing else: "Lungs and pleura"."""
    words = [word for word in re.findall(r"[a-z-]+", name.lower()) if word not in {"and", "the", "of", "or"}]
    if not words or len(words) > 6 or not all(_organ_words().fullmatch(word) for word in words):
        return False
    return not vocabulary().names(name)


@cache
def _organ_words() -> re.Pattern[str]:
    named = "|".join(words.pattern for words in vocabulary().places.values())
    more = "|".join(listed(read_yaml("structure.yaml")["organs"]))
    return re.compile(rf"(?:{named}|{more})")


@cache
def _tiers() -> dict[str, frozenset[str]]:
    """Words of headers in the order in which they decide, and those that only stand beside them."""
    sections = read_yaml("structure.yaml")["sections"]
    return {
        tier: frozenset(sections[tier].split())
        for tier in ("never", "silent first", "spoken", "silent", "brief", "beside")
    }
