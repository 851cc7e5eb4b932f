"""A report as statements about this scan: sentences, key-value pairs ("Effusion: none"), table rows and ticked boxes.

Report → clean text (`markup`) → sections that speak of this scan (`sections`) → lines (`lines`) → statements (`pairs`) in
English (`english`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from brgsa.summaries.clauses import NOW, sentences, tidy
from brgsa.summaries.english import english_ones
from brgsa.summaries.lines import BULLET, TICK, TICKED, items, paragraphs
from brgsa.summaries.markup import clean
from brgsa.summaries.pairs import (
    Statement,
    is_verdict_pair,
    pairs_of,
    row_statements,
    statements_of_pair,
    verdict_of_pair,
)
from brgsa.summaries.sections import spoken_sections
from brgsa.summaries.vocabulary import listed, read_yaml

_LONGEST_OPENING = 8  # words


def statements(report: str) -> list[Statement]:
    """What a report says of this scan, in order; what is not in English is left out."""
    found = [one for section in spoken_sections(clean(report)) for one in _of_section(section)]
    english = english_ones([one.text for one in found])
    out: list[Statement] = []
    for one in (one for one, is_english in zip(found, english, strict=True) if is_english):
        if (
            out and NOW.match(one.body) and not out[-1].verdict
        ):  # "It is now present.", which the sentence before explains
            before = out.pop()
            one = replace(before, text=f"{before.text}; {_small(one.text)}", body=f"{before.body}; {_small(one.body)}")
        out.append(one)
    return out


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _of_section(section: str) -> Iterator[Statement]:
    for paragraph in paragraphs(section):
        context = ""
        columns: list[str] = []
        for line in paragraph:
            if (cells := _cells(line, columns)) is not None:
                found = row_statements(cells, columns)
                columns = columns or (["-"] if found else cells)
                yield from found
                continue
            columns = []
            if "|" in line:
                for cell in line.split("|"):
                    yield from _of_line(cell.strip(), context)
                continue
            bulleted = BULLET.match(line) is not None
            text = line if TICK.match(line) else BULLET.sub("", line)
            if not bulleted and text.endswith(":") and len(text.split()) <= _LONGEST_OPENING:
                context = text.rstrip(" :").lower()  # "Pleura:" or "There is no:", of the lines below
                continue
            if not bulleted and ":" in text:
                context = ""
            yield from _of_line(text, context)


def _cells(line: str, columns: list[str]) -> list[str] | None:
    """The cells of a table's row; None where the line is none. Pairs in a row ("Effusion: no | Nodule: yes") are no table."""
    cells = [tidy(cell) for cell in line.strip("| ").split("|")]
    is_row = line.count("|") >= 2 or ("|" in line and bool(columns)) or is_verdict_pair(": ".join(cells))
    return cells if is_row and not any(is_verdict_pair(cell) for cell in cells) else None


def _of_line(line: str, context: str) -> Iterator[Statement]:
    if tick := TICK.match(line):
        if (tick["in"] or tick["box"]) in TICKED:
            what = tidy(tick["what"])
            yield Statement(what, what, context, "" if verdict_of_pair(what) else "present")
        return
    for item in items(line):
        here = context
        for sentence in sentences(item):
            if _signature().match(sentence):
                continue
            pairs = pairs_of(sentence)
            if pairs is None:
                yield Statement(sentence, sentence, here)
                continue
            for key, value in pairs:
                found, here = statements_of_pair(key, value, here)
                yield from found


@cache
def _signature() -> re.Pattern[str]:
    """How a line begins that says nothing of the scan: "Dictated by"."""
    phrases = "|".join(map(re.escape, listed(read_yaml("structure.yaml")["sections"]["signatures"])))
    return re.compile(rf"(?:{phrases})\b", re.IGNORECASE)
