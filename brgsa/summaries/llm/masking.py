"""What must not leave the house: names after titles, dates, phone and record numbers are replaced in a report.

Rules of spelling find what identifies a patient in most reports, not all: a bare name in mid-sentence is not found.
"""

from __future__ import annotations

import re
from collections import Counter

KINDS = ("name", "date", "phone", "number", "address")

_NAME_WORD = r"(?:[A-ZÀ-ÖØ-ÝĞİŞ]\.|[A-ZÀ-ÖØ-ÝĞİŞ][\w'’-]+)"
_TITLE = (
    r"(?:[Dd]rs?|DR|[Pp]rof|PROF|[Mm]rs?|MRS?|[Mm]s|[Mm]iss|[Dd]oktor|[Dd]octor|[Uu]zm|[Hh]err|[Ff]rau|[Pp]rofessor|"
    r"[Pp]hysician|[Rr]adiologist|[Nn]urse)\b\.?"
)
_LABEL = (
    r"(?i:(?:patient(?:'s)? )?name|patient|referring physician|referred by|dictated by|signed by|reported by|read by|"
    r"verified by|approved by)"
)
_MONTH = (
    r"(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
_RECORD = (
    r"(?i:\b(?:mrn|medical record|record|patient|file|protocol|accession|admission|case|study|chart|hospital|passport|"
    r"insurance|id|tc)(?: (?:number|no|nr|id|identity))?\b\.?\s*[:#]?\s*)"
)
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("address", re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")),
    (
        "date",
        re.compile(
            r"\b(?:\d{1,2}([./-])\d{1,2}\1(?:19|20)?\d{2}|(?:19|20)\d{2}([./-])\d{1,2}\2\d{1,2})\b(?!\s*(?:mm|cm))"
        ),
    ),
    ("date", re.compile(rf"\b\d{{1,2}}(?:st|nd|rd|th)?[ .]+(?:of )?{_MONTH}\b\.?,?(?: (?:19|20)\d{{2}})?")),
    ("date", re.compile(rf"\b{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?(?:, ?(?:19|20)\d{{2}})?\b(?!\s*(?:mm|cm))")),
    ("phone", re.compile(r"(?<![\w.])(?:\+|00)\d{1,3}[ ()/-]*\d(?:[ ()/-]*\d){6,12}\b")),
    (
        "phone",
        re.compile(
            r"(?i:\b(?:phone|tel|telephone|mobile|fax|gsm)\b\.?\s*(?:no\.?|number)?\s*:?\s*)[\d+(][\d ()/+-]{5,}\d"
        ),
    ),
    ("phone", re.compile(r"(?<![\w.])\(?0\d{2,4}\)?[ /-]\d{3,4}[ -]?\d{2}[ -]?\d{2}\b")),
    ("number", re.compile(rf"{_RECORD}(?=[A-Z0-9/-]*\d{{3}})[A-Z0-9][A-Z0-9/-]{{3,}}\b")),
    ("number", re.compile(r"(?<![\w.,])\d{6,}\b(?!\s*(?:mm|cm))")),
    ("name", re.compile(rf"\b{_TITLE}\s+(?:{_TITLE}\s+)*{_NAME_WORD}(?:[ -]{_NAME_WORD}){{0,2}}")),
    ("name", re.compile(rf"\b{_LABEL}\s*:\s*(?:{_TITLE}\s+)*{_NAME_WORD}(?:[ -]{_NAME_WORD}){{0,2}}")),
)


def mask(text: str) -> tuple[str, Counter[str]]:
    """The text with `[name]`, `[date]`, `[phone]`, `[number]` and `[address]` in their places, and how many of each kind."""
    counts: Counter[str] = Counter()
    for kind, rule in _RULES:
        text, found = rule.subn(f"[{kind}]", text)
        counts[kind] += found
    return text, +counts
