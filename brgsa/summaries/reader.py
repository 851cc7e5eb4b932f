"""The rule-based reader: which abnormalities a chest CT report states, denies, doubts or reports from the past.

The vocabulary (`vocabulary.yaml`) finds mentions in a clause. negspacy judges them: one algorithm (NegEx, Chapman et al. 2001)
with three termsets (`assertion.yaml`), for denial, doubt and past.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any

from brgsa.summaries.clauses import clauses
from brgsa.summaries.statements import Statement, statements
from brgsa.summaries.vocabulary import DENIAL, listed, pattern, read_yaml, vocabulary


class Status(StrEnum):
    """What a report says about an abnormality."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"
    HISTORY = "history"


@dataclass(frozen=True)
class Mention:
    """One mention of an abnormality.

    Attributes:
        side: "left", "right", "bilateral", or "" where the report does not tell.
        clause: the text of its clause.
        sentence: the number of its statement in the report, from 0.
    """

    name: str
    status: Status
    side: str
    clause: str
    sentence: int


@dataclass(frozen=True)
class Finding:
    """What the whole report says about an abnormality; the side is as in `Mention`."""

    status: Status
    side: str


@dataclass(frozen=True)
class Reading:
    """What was read in one report.

    Attributes:
        statements: what it says of this scan, in English.
        mentions: the abnormalities in them, in order.
        understood: whether any statement was understood: one that mentions an abnormality, or calls something normal. A report
            of which none was (another language, "See dictated report.") says nothing about the patient.
    """

    statements: tuple[Statement, ...]
    mentions: tuple[Mention, ...]
    understood: bool


@dataclass(frozen=True)
class _Part:
    """What is judged by itself: a clause, with the words that belong before it, its organ group and the verdict passed on it."""

    context: str
    clause: str
    place: str
    verdict: str

    @property
    def text(self) -> str:
        return f"{self.context} {self.clause}".strip().lower()


# Where a report mentions one abnormality several times, the first of these counts.
PRECEDENCE = (Status.PRESENT, Status.UNCERTAIN, Status.ABSENT, Status.HISTORY)

# "Not observed in the previous examination" says that the finding is new, which is no negation.
_NEW = re.compile(
    r"\b(?:(?:was|were|is|are|did|may|could) )?not (?:\w+ ){0,2}"
    r"(?:previously|before|(?:in|on) (?:[\w'/]+ ){0,2}(?:previous|prior|old|earlier|former)\b)"
)
_EARLIER = re.compile(r"\b(?:previous(?:ly)?|prior|earlier|former)\b")
_NOT_ASSESSED = re.compile(
    r"\b(?:(?:can|could) ?not be (?:\w+ly )?(?:evaluated|assessed)|(?:evaluated as )?suboptimal)\b"
)
_SIDES = re.compile(
    r"\b(?:(right)|(left)|(bilateral(?:ly)?|both (?:lungs?|hemithora\w+|sides|upper|lower|apic\w+|apex)))\b"
    r"(?! (?:facing|atri\w+|ventric\w+|heart|kidney|adrenal|main coronary|anterior descending))"
)
_PREMODIFIER = re.compile(r"\b(?:right|left|bilateral|both)(?: sided?)?(?: \w+){0,2} ?$")


def read_findings(report: str) -> dict[str, Status]:
    """Each abnormality that the report mentions, and its status; what the report does not mention is not in the result.

    Names are those of CT_RATE and CT_RATE_LT in `brgsa.labels`. An empty report gives an empty result.
    """
    return read_many([report])[0]


def read_many(reports: Sequence[str]) -> list[dict[str, Status]]:
    """`read_findings` of each report, in one batch: clauses that reports share are judged once."""
    return [{name: finding.status for name, finding in merge(mentions).items()} for mentions in read_mentions(reports)]


def read_findings_detailed(report: str) -> dict[str, Finding]:
    """Like `read_findings`, with the side of the mentions of that status; right and left together are bilateral."""
    return merge(read_mentions([report])[0])


def merge(mentions: Iterable[Mention]) -> dict[str, Finding]:
    """The mentions of one report as one finding per abnormality, by `PRECEDENCE`."""
    by_name: dict[str, list[Mention]] = {}
    for mention in mentions:
        by_name.setdefault(mention.name, []).append(mention)
    out = {}
    for name, same in by_name.items():
        status = min((mention.status for mention in same), key=PRECEDENCE.index)
        out[name] = Finding(status, _one_side({mention.side for mention in same if mention.status is status}))
    return out


def read_mentions(reports: Sequence[str]) -> list[list[Mention]]:
    """All mentions in each report, in the order of its clauses."""
    return [list(reading.mentions) for reading in read(reports)]


def understood(report: str) -> bool:
    """Whether anything in a report is understood; see `Reading`. Far quicker than reading it."""
    return _understood(_parts(statements(report)))


def read(reports: Sequence[str]) -> list[Reading]:
    """Each report as read, in one batch."""
    stated = [statements(report) for report in reports]
    located = [_parts(of_report) for of_report in stated]
    judged = _judge({part for parts in located for _, part in parts})
    out = []
    for of_report, parts in zip(stated, located, strict=True):
        mentions = [
            replace(mention, side=mention.side or _one_side(_sides_in(of_report[number].text.lower())), sentence=number)
            for number, part in parts
            for mention in judged[part]
        ]
        out.append(Reading(tuple(of_report), tuple(mentions), bool(mentions) or _understood(parts)))
    return out


def _parts(of_report: Sequence[Statement]) -> list[tuple[int, _Part]]:
    """(number of the statement, part) of each clause; the organ group is the last one named."""
    words = vocabulary()
    out, place = [], ""
    for number, statement in enumerate(of_report):
        whole = statement.verdict or not statement.body
        for clause in [statement.body] if whole else clauses(statement.body):
            place = words.place(clause.lower()) or words.place(statement.context) or place
            out.append((number, _Part(statement.context, clause, place, statement.verdict)))
    return out


def _understood(parts: Sequence[tuple[int, _Part]]) -> bool:
    entries, normal = vocabulary().entries, _normal()
    return any(
        normal.search(part.text) or any(entry.find(part.text, part.place) or entry.denies(part.text) for entry in entries)
        for _, part in parts
    )


@cache
def _normal() -> re.Pattern[str]:
    """Ways to say that a scan or an organ is normal."""
    return re.compile("|".join(pattern(way, {}) for way in listed(read_yaml("assertion.yaml")["normal"])))


@cache
def _pipeline() -> Any:
    """spaCy's blank English with a negspacy component for each termset; it judges the spans of the group "findings"."""
    import negspacy.negation  # noqa: F401  (registers the factory "negex")
    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": ["\n"]})
    for aspect in ("negated", "hedged", "past"):
        termset = read_yaml("assertion.yaml")[aspect]
        nlp.add_pipe(
            "negex", name=aspect, config={"neg_termset": termset, "extension_name": aspect, "span_keys": ["findings"]}
        )
    return nlp


def _judge(parts: Iterable[_Part]) -> dict[_Part, list[Mention]]:
    """The mentions of each part, judged."""
    from spacy.tokens import Span

    nlp, entries = _pipeline(), vocabulary().entries
    out: dict[_Part, list[Mention]] = {}
    docs = []
    for part in parts:
        text = part.text
        named = sorted((span, entry.name) for entry in entries for span in entry.find(text, part.place))
        if part.verdict:
            status = Status(part.verdict)
            out[part] = [Mention(name, status, _one_side(_sides_in(text)), part.clause, 0) for _, name in named]
            continue
        out[part] = [Mention(entry.name, Status.ABSENT, "", part.clause, 0) for entry in entries if entry.denies(text)]
        if named:
            doc = nlp.make_doc(_masked(text))
            starts = [token.idx for token in doc]
            doc.spans["findings"] = [
                Span(doc, bisect_right(starts, start) - 1, bisect_left(starts, end), label=name)
                for (start, end), name in named
            ]
            docs.append((doc, part))
    for doc, part in nlp.pipe(docs, as_tuples=True):
        spans = list(doc.spans["findings"])
        out[part] += [Mention(span.label_, _status(span, doc.text), _side(span, spans), part.clause, 0) for span in spans]
    return out


def _masked(text: str) -> str:
    """The text without phrases that look like a denial and are none: "not observed in the previous examination", "no change in"."""
    for start, phrases in (("not", _NEW), ("no", _changed()), ("without", _changed())):
        if start in text:
            text = phrases.sub(lambda phrase: "_" * len(phrase[0]), text)
    return text


@cache
def _changed() -> re.Pattern[str]:
    ways = "|".join(pattern(way, {}) for way in listed(read_yaml("assertion.yaml")["changed"]))
    return re.compile(rf"\b(?=no|without)(?:{ways})")


def _status(span: Any, clause: str) -> Status:
    if span._.past:
        return Status.HISTORY
    # negspacy looks before and after a mention; "heart size is not increased" denies within it.
    if span._.negated or DENIAL.search(span.text):
        return Status.HISTORY if _EARLIER.search(clause) else Status.ABSENT
    if span._.hedged or _NOT_ASSESSED.search(clause):
        return Status.UNCERTAIN
    return Status.PRESENT


def _side(span: Any, spans: list[Any]) -> str:
    """The side of one mention: named right before it, or else before the next mention, or else anywhere in the clause."""
    text = span.doc.text
    if before := _PREMODIFIER.search(text[: span.start_char]):
        return _one_side(_sides_in(text[before.start() : span.start_char]) or {"bilateral"})
    later = min((other.start_char for other in spans if other.start_char >= span.end_char), default=len(text))
    after = _PREMODIFIER.sub("", text[span.start_char : later]) if later < len(text) else text[span.start_char :]
    return _one_side(_sides_in(after) or _sides_in(text))


def _sides_in(text: str) -> set[str]:
    return {"right" if right else "left" if left else "bilateral" for right, left, _ in _SIDES.findall(text)}


def _one_side(sides: set[str]) -> str:
    sides = sides - {""}
    return next(iter(sides)) if len(sides) == 1 else "bilateral" if sides else ""
