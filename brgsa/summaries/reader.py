"""The rule-based reader: which abnormalities a chest CT report states, denies, doubts or reports from the past.

The vocabulary (`vocabulary.yaml`) finds mentions in a clause. negspacy judges them: one algorithm (NegEx, Chapman et al. 2001)
with three termsets (`assertion.yaml`), for denial, doubt and past.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any, NamedTuple

from brgsa.summaries.clauses import BRACKETED, NOW, clauses
from brgsa.summaries.pairs import Statement
from brgsa.summaries.statements import statements
from brgsa.summaries.vocabulary import DENIAL, Vocabulary, listed, pattern, read_yaml, vocabulary


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

    @property
    def statuses(self) -> dict[str, Status]:
        """Each abnormality that the report mentions, and its status."""
        return {name: finding.status for name, finding in merge(self.mentions).items()}


class _Named(NamedTuple):
    """The characters of a clause that name an abnormality."""

    start: int
    end: int
    name: str


@dataclass(frozen=True)
class _Part:
    """What is judged by itself: a clause, the words that belong before it, its organ group and the verdict passed on it."""

    context: str
    clause: str
    place: str
    verdict: str

    @property
    def text(self) -> str:
        """What the terms are searched in: the words before it and the clause, in lower case."""
        return f"{self.context} {self.clause}".strip().lower()


# Where a report mentions one abnormality several times, the first of these counts.
PRECEDENCE = (Status.PRESENT, Status.UNCERTAIN, Status.ABSENT, Status.HISTORY)

_ASPECTS = ("negated", "hedged", "past")  # the termsets of assertion.yaml

# "Not observed in the previous examination" says that the finding is new, which is no negation.
_NEW = re.compile(
    r"\b(?:(?:was|were|is|are|did|may|could) )?not (?:\w+ ){0,2}"
    r"(?:previously|before|(?:in|on) (?:[\w'/]+ ){0,2}(?:previous|prior|old|earlier|former)\b)"
)
_RESOLVED = re.compile(r"\b(?:resolved|cleared)(?: \w+)? $")
_EARLIER_DENIAL = re.compile(
    r"\b(?:no|not|without|none)\b.*\b(?:before|then|was|were|initially|in \d{4}|previous(?:ly)?|prior|earlier|former(?:ly)?|"
    r"last|old)\b|\b(?:before|was|were|had|initially|previous(?:ly)?|prior|earlier|formerly|last|old)\b.*\b(?:no|not|without|none)\b"
)
_EARLIER = re.compile(r"\b(?:previous(?:ly)?|prior|earlier|former)\b")
# "No effusion except for a trace" does not deny it.
_BUT_ONE = re.compile(
    r"^[^,;]*\b(?:except|other than|apart from|aside from|save for) (?:for )?(?:an? |the |some )?"
    r"(?:trace|tiny|small|minimal|minute|few|single|solitary|known|subtle|slight)\b"
)
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
    return [reading.statuses for reading in read(reports)]


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


def is_normal(text: str) -> bool:
    """Whether a sentence calls the scan or an organ normal."""
    return _ways("normal").search(text.lower()) is not None


def read(reports: Sequence[str], words: Vocabulary | None = None) -> list[Reading]:
    """Each report as read, in one batch.

    Args:
        words: the abnormalities that are looked for; default the 33 of `vocabulary`.
    """
    stated = [statements(report) for report in reports]
    located = [_parts(of_report) for of_report in stated]
    judged = _judge({part for parts in located for _, part in parts}, words or vocabulary())
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
    out: list[tuple[int, _Part]] = []
    place = ""
    for number, statement in enumerate(of_report):
        whole = statement.verdict != ""
        for clause, named in (
            [(statement.body, words.place(statement.body.lower()))] if whole else _clauses(statement.body)
        ):
            if (
                out
                and NOW.match(clause)
                and (before := out[-1][1]).verdict == ""
                and _EARLIER_DENIAL.search(before.text)
            ):
                out[-1] = (out[-1][0], replace(before, verdict="present"))
                continue
            place = named or words.place(statement.context) or place
            out.append((number, _Part(statement.context, clause, place, statement.verdict)))
    return out


@lru_cache(maxsize=4096)  # reports repeat each other's sentences
def _clauses(sentence: str) -> tuple[tuple[str, str], ...]:
    """The sentence's clauses, each with the organ group that it names."""
    return tuple((clause, vocabulary().place(clause.lower())) for clause in clauses(sentence))


def _understood(parts: Sequence[tuple[int, _Part]]) -> bool:
    words, normal = vocabulary(), _ways("normal")
    return any(
        normal.search(part.text)
        or any(entry.find(part.text, part.place) or entry.denies(part.text) for entry in words.candidates(part.text))
        for _, part in parts
    )


@cache
def _ways(aspect: str) -> re.Pattern[str]:
    """Any of the phrases that `assertion.yaml` lists for an aspect in the vocabulary's notation."""
    return re.compile("|".join(pattern(way, {}) for way in listed(read_yaml("assertion.yaml")[aspect])))


@cache
def _pipeline() -> Any:
    """spaCy's blank English with a negspacy component for each termset; it judges the spans of the group "findings"."""
    import negspacy.negation  # noqa: F401  (registers the factory "negex")
    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": ["\n"]})
    for aspect in _ASPECTS:
        termset = read_yaml("assertion.yaml")[aspect]
        nlp.add_pipe(
            "negex", name=aspect, config={"neg_termset": termset, "extension_name": aspect, "span_keys": ["findings"]}
        )
    return nlp


def _judge(parts: Iterable[_Part], words: Vocabulary) -> dict[_Part, list[Mention]]:
    """The mentions of each part, judged."""
    out: dict[_Part, list[Mention]] = {}
    doubted: list[tuple[_Part, str, list[_Named]]] = []
    for part in parts:
        text = part.text
        entries = words.candidates(text)
        named = sorted(_Named(*span, entry.name) for entry in entries for span in entry.find(text, part.place))
        if part.verdict:
            side = _one_side(_sides_in(text))
            out[part] = [Mention(one.name, Status(part.verdict), side, part.clause, 0) for one in named]
            continue
        out[part] = [Mention(entry.name, Status.ABSENT, "", part.clause, 0) for entry in entries if entry.denies(text)]
        if named and _triggers().search(text):
            doubted.append((part, _masked(text), named))
        else:
            out[part] += [Mention(one.name, Status.PRESENT, _side(one, text, named), part.clause, 0) for one in named]
    for (part, masked, named), aspects in zip(doubted, _aspects(doubted), strict=True):
        out[part] += [
            Mention(
                one.name,
                _bracketed(one, part.text, named) or _status(one, masked, of_one),
                _side(one, masked, named),
                part.clause,
                0,
            )
            for one, of_one in zip(named, aspects, strict=True)
        ]
    return out


def _aspects(doubted: Sequence[tuple[_Part, str, list[_Named]]]) -> Iterator[list[set[str]]]:
    """For each mention of each part, those of "negated", "hedged" and "past" that negspacy finds."""
    from spacy.tokens import Span

    nlp, docs = _pipeline(), []
    for _, masked, named in doubted:
        doc = nlp.make_doc(masked)
        starts = [token.idx for token in doc]
        doc.spans["findings"] = [
            Span(doc, bisect_right(starts, one.start) - 1, bisect_left(starts, one.end), label=one.name)
            for one in named
        ]
        docs.append(doc)
    for doc in nlp.pipe(docs):
        yield [{aspect for aspect in _ASPECTS if span._.get(aspect)} for span in doc.spans["findings"]]


@cache
def _triggers() -> re.Pattern[str]:
    """A word of each phrase that may make a mention other than present: most clauses have none, and need no judgement."""
    words = set()
    for aspect in _ASPECTS:
        termset = read_yaml("assertion.yaml")[aspect]
        for phrase in (*termset["preceding_negations"], *termset["following_negations"]):
            # The longest word, as "is" or "the" would be in every clause.
            words.add("not" if "not" in phrase.split() else max(phrase.split(), key=len))
    words.remove("not")  # which also ends "cannot"
    alone = [rf"{re.escape(word)}\b" if word.isalpha() else re.escape(word) for word in sorted(words)]
    # The second group: what `_status` looks for besides.
    return re.compile(
        rf"not\b|\?|\b(?:{'|'.join(alone)})|"
        r"\b(?:previous|prior|earlier|former|old|resolved|cleared|exclud|rule|assessed|evaluated|suboptimal)"
    )


def _masked(text: str) -> str:
    """The text without phrases that look like a denial and are none: "not observed previously", "no change in"."""
    text = BRACKETED.sub(lambda verdict: "_" * len(verdict[0]), text)
    if "no" in text or "without" in text:
        for phrases in (_NEW, _ways("changed")):
            text = phrases.sub(lambda phrase: "_" * len(phrase[0]), text)
    return text


def _bracketed(one: _Named, text: str, named: list[_Named]) -> Status | None:
    """The verdict in the brackets after a mention, or after the last comma; None where there is none, or it is another's."""
    verdict = BRACKETED.search(text, one.end)
    if not verdict or "," in text[one.end : verdict.start()]:
        return None
    other = any(one.end <= other.start < verdict.start() for other in named)
    return None if other else Status(str(verdict.lastgroup))


def _status(one: _Named, clause: str, aspects: set[str]) -> Status:
    """A mention's status, by what negspacy found around it."""
    before = clause[: one.start]
    if "past" in aspects or _RESOLVED.search(before) or _ways("recalled").search(before):
        return Status.HISTORY
    if _ways("open").search(clause):
        return Status.UNCERTAIN
    # negspacy looks before and after a mention; "heart size is not increased" denies within it.
    if "negated" in aspects or DENIAL.search(clause[one.start : one.end]):
        if _BUT_ONE.search(clause[one.end :]):
            return Status.UNCERTAIN
        return Status.HISTORY if _EARLIER.search(clause) else Status.ABSENT
    if "hedged" in aspects or _NOT_ASSESSED.search(clause):
        return Status.UNCERTAIN
    return Status.PRESENT


def _side(one: _Named, text: str, named: list[_Named]) -> str:
    """The side of one mention: named right before it, or else before the next mention, or else anywhere in the clause."""
    if before := _PREMODIFIER.search(text[: one.start]):
        return _one_side(_sides_in(text[before.start() : one.start]) or {"bilateral"})
    later = min((other.start for other in named if other.start >= one.end), default=len(text))
    after = _PREMODIFIER.sub("", text[one.start : later]) if later < len(text) else text[one.start :]
    return _one_side(_sides_in(after) or _sides_in(text))


def _sides_in(text: str) -> set[str]:
    return {"right" if right else "left" if left else "bilateral" for right, left, _ in _SIDES.findall(text)}


def _one_side(sides: set[str]) -> str:
    sides = sides - {""}
    return next(iter(sides)) if len(sides) == 1 else "bilateral" if sides else ""
