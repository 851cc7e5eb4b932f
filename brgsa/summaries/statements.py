"""A report as statements about this scan: sentences, key-value pairs ("Effusion: none"), table rows and ticked boxes.

Report → clean text (`markup`) → sections that speak of this scan (`sections`) → lines → statements in English (`english`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from brgsa.summaries.clauses import sentences, tidy
from brgsa.summaries.english import english_ones
from brgsa.summaries.markup import clean
from brgsa.summaries.sections import is_organ, spoken_sections
from brgsa.summaries.vocabulary import listed, read_yaml, vocabulary

_BULLET = re.compile(
    r"^[ \t]*(?:[-–—•·*►▪●○◦‣>+]+(?=[ \t\w(\[])|\(?\d{1,2}[.)](?=[ \t]*[A-Za-z(\[])|\(?[a-z][)](?=[ \t]))[ \t]*"
)
_INLINE_NUMBER = re.compile(r"(?<=\S)\s+(?=\(?\d{1,2}[.)]\s*[A-Za-z(])")
_ITEM = re.compile(r"(?:^|\s)\(?([12])[.)]\s*[A-Za-z(]")
_OPEN_END = re.compile(
    r"(?:,|/|\b(?:no|not|of|the|a|an|and|or|nor|with|without|in|on|at|to|for|from|by|is|are|was|were|has|have|had|be|been|"
    r"both|right|left|which|that|evidence|any))$",
    re.IGNORECASE,
)
_FULL_STOP = re.compile(r"[.!?:;|]$")
_TICK = re.compile(r"^[ \t]*[-*•]?[ \t]*(?:[\[(](?P<in>[ xX✓✔_-]?)[\])]|(?P<box>[☐☑☒✓✔✗✘□■]))[ \t]*(?P<what>\S.*)$")
_TICKED = frozenset("xX✓✔☑☒■")
_PAIR = re.compile(r"^(?P<key>[^:;|=?\t]{2,80}?)(?P<sep>\s*[:=]+>?\s*|\s+[-–—]+>?\s*)(?P<value>.*)$", re.DOTALL)
# What may stand for the colon before a verdict at the end of a line: a question mark, a tab, dots, wide space.
_WORD_OF_VERDICT = r"(?:none|no|nil|yes|absent|present|negative|positive|neg|pos)"
_SPACED = re.compile(
    r"(?<=\w)(?:[ ]*\?[ \t]*|[ ]*\t\s*|[ ]{2,}|[ ]*\.{3,}[ ]*|[ ]+[-–—]+>?[ ]*)"
    rf"(?=(?:{_WORD_OF_VERDICT}|[+0])[ \t]*(?:[.;,|\n]|$))",
    re.IGNORECASE,
)
_VERDICT_ALONE = re.compile(rf"{_WORD_OF_VERDICT}\.?$", re.IGNORECASE)
_CELLS = re.compile(
    rf"^([A-Za-z /()]{{3,50}}?)[ \t]*[,;][ \t]*((?:{_WORD_OF_VERDICT}|[01])\.?)[ \t]*$", re.IGNORECASE | re.MULTILINE
)
_ABBREVIATED = re.compile(r"\b(?:neg|pos)\.(?=\s|$)", re.IGNORECASE)
_SIDED = re.compile(r"^\(?(?:right|left|bilateral|bilaterally|r|l)\)?\s*[:=-]?\s*(?=\S)", re.IGNORECASE)
_LETTER = re.compile(r"[^\W\d_]")


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


def statements(report: str) -> list[Statement]:
    """What a report says of this scan, in order; what is not in English is left out."""
    found = [
        one for section in spoken_sections(clean(report)) for one in _of_section(section) if _LETTER.search(one.text)
    ]
    keep = english_ones([one.text for one in found])
    return [one for one, english in zip(found, keep, strict=True) if english]


def _of_section(section: str) -> Iterator[Statement]:
    context, columns = "", []  # type: str, list[str]
    if "\n" in section or len(section) < 80:
        section = _CELLS.sub(r"\1: \2", section)
    if any(mark in section for mark in ("?", "\t", "  ", "...", " -", " –", " —")):
        section = _SPACED.sub(": ", section)
    section = _ABBREVIATED.sub(lambda short: "negative" if short[0][0] in "nN" else "positive", section)
    for paragraph in re.split(r"\n[ \t]*\n", section):
        for line in _lines(paragraph):
            if "|" in line and any(_pair(tidy(cell)) for cell in line.split("|")):
                line = line.replace("|", "\n").strip()
                for cell in line.split("\n"):
                    yield from _of_line(cell.strip(), context)
                continue
            if line.count("|") >= 2 or (columns and "|" in line):
                cells = [tidy(cell) for cell in line.strip().strip("|").split("|")]
                if all(re.fullmatch(r":?-*:?", cell) for cell in cells):
                    continue
                yield from _row(cells, columns)
                columns = columns or (cells if not _names(cells[0]) else [""])
                continue
            columns = []
            bulleted = bool(_BULLET.match(line))
            text = _BULLET.sub("", line).strip() if not _TICK.match(line) else line.strip()
            if not bulleted and _opens(text):
                context = text.rstrip(" :").lower()
                continue
            if not bulleted and context and _PAIR.match(text) and ":" in text:
                context = ""
            yield from _of_line(text, context)
        context = ""


def _opens(line: str) -> bool:
    """Whether a line ends with a colon and speaks of the lines below it: "Pleura:", "There is no:"."""
    return line.endswith(":") and len(line.split()) <= 8


def _lines(paragraph: str) -> list[str]:
    """A paragraph's lines, those that a margin broke joined again."""
    out: list[str] = []
    raw = [line for raw_line in paragraph.split("\n") if (line := raw_line.strip())]
    stops = sum(line.endswith(".") for line in raw)
    for line in raw:
        if not _LETTER.search(line) and not line.strip("-=_*~ "):
            continue  # a rule
        if out and _VERDICT_ALONE.match(line) and not re.search(r"[.!?:]$", out[-1]) and not _BULLET.match(line):
            out[-1] = f"{out[-1]}: {line}"
        elif out and _continues(out[-1], line, punctuated=stops > 0):
            out[-1] = f"{out[-1]} {line}"
        else:
            out.append(line)
    return out


def _continues(before: str, line: str, punctuated: bool) -> bool:
    """Whether `line` goes on with the sentence of the line before it."""
    if _FULL_STOP.search(before) or _BULLET.match(line) or _TICK.match(line) or line.startswith("|"):
        return False
    if _is_verdict_pair(_BULLET.sub("", before)):
        return False
    if re.match(r"[^:]{2,40}:", line):
        return False
    if _OPEN_END.search(before):
        return True
    first = re.match(r"\W*([A-Za-z]+)", line)
    if first and first[1].islower():
        return True
    return (
        punctuated and ":" not in before and before.isupper() and line.isupper()
    )  # capitals do not tell where a sentence begins


def _of_line(line: str, context: str) -> Iterator[Statement]:
    if tick := _TICK.match(line):
        mark = tick["in"] if tick["in"] is not None else tick["box"]
        if mark in _TICKED:
            yield Statement(
                tidy(tick["what"]), tidy(tick["what"]), context, "" if _verdict_of(tick["what"]) else "present"
            )
        return
    marks = {mark[1] for mark in _ITEM.finditer(line)}
    for item in (
        _INLINE_NUMBER.split(line) if "2" in marks and ("1" in marks or _BULLET.match(line) is None) else [line]
    ):
        item_context = context
        for sentence in sentences(_BULLET.sub("", item)):
            found, item_context = _of_sentence(sentence, item_context)
            yield from found


def _of_sentence(sentence: str, context: str) -> tuple[list[Statement], str]:
    """The sentence's statements, and the context for the sentences after it on the line."""
    if _signature().match(sentence):
        return [], context
    parts = _pairs(sentence)
    if parts is None:
        return [Statement(sentence, sentence, context)], context
    out: list[Statement] = []
    for key, value in parts:
        found, context = _of_pair(key, value, context)
        out += found
    return out, context


def _pairs(sentence: str) -> list[tuple[str, str]] | None:
    """(key, value) of each part of a sentence that has any; a part without has the key ""."""
    if not _PAIR.match(sentence):
        return None
    parts = [part for part in re.split(r"\s*[;|]\s*", sentence) if part.strip()]
    smaller = [part for whole in parts for part in re.split(r",\s+", whole)]
    if sum(_is_verdict_pair(part) for part in smaller) > 1:
        parts = smaller
    out = []
    for part in parts:
        pair = _pair(part)
        out.append(pair if pair else ("", part))
    return out if any(key for key, _ in out) else None


def _pair(part: str) -> tuple[str, str] | None:
    """The key and the value of "KEY: value"; a dash or equals sign stands for the colon only before a verdict."""
    pair = _PAIR.match(part)
    if not pair or len(pair["key"].split()) > 8 or not _LETTER.search(pair["key"]):
        return None
    key, value = pair["key"].strip(" \"'.-"), pair["value"].strip(" \"'")
    names = _names(key)
    if ":" in pair["sep"]:
        return (key, value) if names or is_organ(key) or _list_verdict(key) or _denies(key) else None
    return (key, value) if names and (_verdict(value) or not value) else None


def _is_verdict_pair(part: str) -> bool:
    pair = _pair(part)
    return pair is not None and bool(_names(pair[0]) and _verdict(pair[1]))


def _of_pair(key: str, value: str, context: str) -> tuple[list[Statement], str]:
    if not key:
        return [Statement(value, value, context)], context
    text = f"{key}: {value}"
    if (listed_verdict := _list_verdict(key)) and not (_names(key) and not _names(value)):
        return [Statement(text, value, context, listed_verdict)], context
    if _names(key):
        return _of_finding(key, value, text, context), context
    if _denies(key):
        return [Statement(text, f"{key} {value}", context)], context
    return [Statement(text, value, key.lower())], key.lower()


def _of_finding(key: str, value: str, text: str, context: str) -> list[Statement]:
    """The statements of a key that names an abnormality."""
    verdict, named = _sided_verdict(value), _names(value)
    if verdict == "unsaid":
        return []
    if named & _names(key):  # "Effusion: no pleural effusion"
        return [Statement(text, value, context)]
    if not verdict:  # "Nodules: 4 mm", "Effusion: small"
        return [Statement(text, f"{key} {value}", context)]
    head, stop, rest = re.match(r"([^,;.(]*)([,;.(]?)\s*(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
    more = rest if stop and not _names(head) else value
    return [Statement(text, key, context, verdict), *([Statement(more, more, context)] if named else [])]


def _sided_verdict(value: str) -> str:
    """The verdict of a value, also of one that gives it per side: "right: none, left: small" is present."""
    sides = [part for part in re.split(r"[,;]\s*|\s+(?=(?:left|right)\s*[:=-])", value) if _SIDED.match(part)]
    if not sides:
        return _verdict(value)
    verdicts = {_verdict(_SIDED.sub("", part)) for part in sides}
    return verdicts.pop() if len(verdicts) == 1 else "present" if verdicts & {"", "present"} else "uncertain"


def _row(cells: list[str], columns: list[str]) -> Iterator[Statement]:
    """A table's row: the first cell that names an abnormality is the key, the next that has a verdict the value."""
    if not cells or not _names(cells[0]):
        return
    values = [(i, cell) for i, cell in enumerate(cells[1:], start=1) if cell.strip(" -–")]
    verdicts = [(i, cell) for i, cell in values if _verdict(cell)]
    if not verdicts:
        if values:
            yield Statement(": ".join([cells[0], values[0][1]]), f"{cells[0]} {values[0][1]}")
        return
    place, cell = verdicts[0]
    verdict = _verdict(cell)
    column = (_list_verdict(columns[place]) or _verdict(columns[place])) if place < len(columns) else ""
    if column == "absent" and verdict in ("present", "absent"):  # a column "Absent": yes there means no
        verdict = "absent" if verdict == "present" else "unsaid" if re.fullmatch(r"[xX]", cell) else "present"
    if verdict not in ("", "unsaid"):
        yield Statement(f"{cells[0]}: {cell}", cells[0], "", verdict)


def _names(text: str) -> frozenset[str]:
    """The abnormalities that a text names."""
    lower = text.lower()
    words = vocabulary()
    return frozenset(entry.name for entry in words.candidates(lower) if entry.find(lower, words.place(lower)))


def _denies(key: str) -> bool:
    return bool(re.search(r"\b(?:no|not|without|negative|absence|free)\b", key, re.IGNORECASE)) and not _names(key)


def _verdict_of(text: str) -> str:
    pair = _pair(text)
    return _verdict(pair[1]) if pair else ""


def _verdict(value: str) -> str:
    """What a value says by its first words: "absent", "present", "uncertain", "history", "unsaid"; else ""."""
    value = value.strip().lower()
    return next((verdict for verdict, words in _values().items() if words.match(value)), "")


def _list_verdict(key: str) -> str:
    return _verdict_keys().get(re.sub(r"[^a-z ]", "", key.lower()).strip(), "")


@cache
def _values() -> dict[str, re.Pattern[str]]:
    return {name: re.compile(words.replace("\n", "")) for name, words in read_yaml("structure.yaml")["values"].items()}


@cache
def _verdict_keys() -> dict[str, str]:
    return {
        word: verdict for verdict, words in read_yaml("structure.yaml")["verdicts"].items() for word in listed(words)
    }


@cache
def _signature() -> re.Pattern[str]:
    phrases = "|".join(map(re.escape, listed(read_yaml("structure.yaml")["sections"]["signatures"])))
    return re.compile(rf"(?:{phrases})\b", re.IGNORECASE)
