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

from brgsa.summaries.clauses import clauses, sentences
from brgsa.summaries.vocabulary import DENIAL, read_yaml, vocabulary


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
        sentence: the number of its sentence in the report, from 0.
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
    located = [_locate(report) for report in reports]
    judged = _judge({(clause, place) for parts in located for _, _, clause, place in parts})
    out = []
    for parts in located:
        mentions = []
        for number, sentence, clause, place in parts:
            for mention in judged[clause, place]:
                side = mention.side or _one_side(_sides_in(sentence.lower()))
                mentions.append(replace(mention, side=side, sentence=number))
        out.append(mentions)
    return out


def _locate(report: str) -> list[tuple[int, str, str, str]]:
    """(number of the sentence, sentence, clause, organ group) of each clause; the organ group is the last one named."""
    words = vocabulary()
    out, place = [], ""
    for number, sentence in enumerate(sentences(report)):
        for clause in clauses(sentence):
            place = words.place(clause.lower()) or place
            out.append((number, sentence, clause, place))
    return out


@cache
def _pipeline() -> Any:
    """spaCy's blank English with a negspacy component for each termset; it judges the spans of the group "findings"."""
    import negspacy.negation  # noqa: F401  (registers the factory "negex")
    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": ["\n"]})
    for aspect, termset in read_yaml("assertion.yaml").items():
        nlp.add_pipe(
            "negex", name=aspect, config={"neg_termset": termset, "extension_name": aspect, "span_keys": ["findings"]}
        )
    return nlp


def _judge(parts: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list[Mention]]:
    """The mentions of each (clause, organ group), judged."""
    from spacy.tokens import Span

    nlp, entries = _pipeline(), vocabulary().entries
    out: dict[tuple[str, str], list[Mention]] = {}
    docs = []
    for part in parts:
        clause = part[0].lower()
        out[part] = [Mention(entry.name, Status.ABSENT, "", part[0], 0) for entry in entries if entry.denies(clause)]
        named = sorted((span, entry.name) for entry in entries for span in entry.find(clause, part[1]))
        if named:
            doc = nlp.make_doc(_NEW.sub(lambda new: "_" * len(new[0]), clause))
            starts = [token.idx for token in doc]
            doc.spans["findings"] = [
                Span(doc, bisect_right(starts, start) - 1, bisect_left(starts, end), label=name)
                for (start, end), name in named
            ]
            docs.append((doc, part))
    for doc, part in nlp.pipe(docs, as_tuples=True):
        spans = list(doc.spans["findings"])
        out[part] += [Mention(span.label_, _status(span, doc.text), _side(span, spans), part[0], 0) for span in spans]
    return out


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
