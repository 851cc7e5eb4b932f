"""What a language model is told: a style's instruction, the report between two marks, and the form of its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from brgsa.summaries.clauses import sentences
from brgsa.summaries.hierarchy import known_names
from brgsa.summaries.markup import clean
from brgsa.summaries.styles import Style
from brgsa.summaries.vocabulary import read_yaml

WORDS_AT_ONCE = 1500  # a longer report is asked about in parts: small models forget, and many endpoints refuse
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MARKS = re.compile(r"</?\s*report\s*>", re.IGNORECASE)

NOT_MENTIONED = "not mentioned"
_STATUSES = ["present", "absent", "uncertain"]
_PROSE = 'Answer with JSON alone, of this form: {"sentences": ["SENTENCE", "SENTENCE"]}'
_OPEN = 'Answer with JSON alone, of this form: {"statements": [{"finding": "NAME", "status": "STATUS"}]}'
_CLOSED = (
    'Answer with JSON alone, one key for each of the names: {"NAME": "STATUS"}. '
    f"STATUS is {', '.join(_STATUSES)} or {NOT_MENTIONED}."
)


def schema(style: Style) -> dict[str, Any]:
    """The JSON schema of an answer in a style."""
    if style.is_prose:
        return _list_of("sentences", {"type": "string"})
    if style.closed:
        return _object({name.lower(): {"type": "string", "enum": [*_STATUSES, NOT_MENTIONED]} for name in style.names})
    status = {"type": "string", "enum": _STATUSES}
    return _list_of("statements", _object({"finding": {"type": "string"}, "status": status}))


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _list_of(name: str, items: dict[str, Any]) -> dict[str, Any]:
    return _object({name: {"type": "array", "items": items}})


def instruction(style: Style) -> str:
    """The system message of a style."""
    names = [name.lower() for name in style.names] if style.closed else known_names()
    form = _PROSE if style.is_prose else _CLOSED if style.closed else _OPEN
    return f"{style.instruction.replace('{names}', ', '.join(names))}\n{form}"


def messages(style: Style, text: str) -> list[dict[str, str]]:
    """The chat about one part of a report."""
    return [
        {"role": "system", "content": instruction(style)},
        {"role": "user", "content": f"<report>\n{text}\n</report>"},
    ]


def parts(report: str, words_at_once: int = WORDS_AT_ONCE) -> list[str]:
    """What of a report is sent: clean text without control characters and without our own marks, in parts of whole sentences.

    An empty report has no part.
    """
    text = _MARKS.sub(" ", _CONTROL.sub(" ", clean(report))).strip()
    if len(text.split()) <= words_at_once:
        return [text] if text else []
    out: list[list[str]] = [[]]
    room = words_at_once
    for piece in _pieces(sentences(text), words_at_once):
        length = len(piece.split())
        if length > room and out[-1]:
            out.append([])
            room = words_at_once
        out[-1].append(piece)
        room -= length
    return [" ".join(part) for part in out if part]


def _pieces(texts: Sequence[str], most: int) -> list[str]:
    """The sentences, a very long one cut by words."""
    out = []
    for text in texts:
        words = text.split()
        out += [" ".join(words[i : i + most]) + "." for i in range(0, len(words), most)]
    return out


def tries_to_instruct(report: str) -> bool:
    """Whether a report holds words that address a language model: an instruction to it, or our own marks."""
    text = clean(report)
    return bool(_MARKS.search(text) or _injection().search(text))


def without_instructions(report: str) -> str:
    """The report's sentences without those that address a language model."""
    return " ".join(one + "." for one in sentences(clean(report)) if not tries_to_instruct(one))


@cache
def _injection() -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{phrase})" for phrase in read_yaml("llm/injection.yaml")), re.IGNORECASE)
