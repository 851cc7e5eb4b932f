"""Whether a report supports what a language model says of it, and the summary that is made of what it does.

A claim that names abnormalities of the open vocabulary is held to what the rules read of them. Where the rules read nothing
of them, or the claim names none, its words must stand together in one clause (a statement) or sentence (prose) of the report,
and that must deny, doubt or assert as the claim does. Any other claim is flagged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from brgsa.summaries.english import evidence
from brgsa.summaries.hierarchy import ancestors, known_names
from brgsa.summaries.llm.claims import Claim, Claims
from brgsa.summaries.llm.prompts import tries_to_instruct, without_instructions
from brgsa.summaries.reader import PRECEDENCE, Reading, Status, read
from brgsa.summaries.styles import NOTHING_FOUND, Style, summarize_many, write
from brgsa.summaries.styles.writing import write_statements
from brgsa.summaries.vocabulary import BEGINNING, Entry, Term, Vocabulary, open_vocabulary

POLICIES = ("replace", "drop", "keep")  # what becomes of flagged claims
INJECTION = "injection"  # the fault of a report that addresses a language model
SHARE_IN_SENTENCE = 0.75  # of a prose claim's words that one sentence of the report must have
FEWEST_WORDS = 4  # that tell a language
_WORD = re.compile(r"[a-z]{3,}")
_STEM = 6  # letters by which words are the same: "effusion", "effusions"
_EMPTY_WORDS = frozenset([
    "the", "and", "are", "was", "were", "has", "have", "had", "with", "without", "for", "from", "that", "this", "there",
    "which", "not", "any", "some", "its", "both", "all", "been", "seen", "noted", "observed", "detected", "present",
    "absent", "finding", "findings", "evidence", "possible", "mild", "moderate", "severe", "small", "large", "minimal",
])  # fmt: skip
_DENIAL = re.compile(r"\b(?:no|not|without|nor|neither|negative for|absence of|free of)\b", re.IGNORECASE)


class Support(StrEnum):
    """What of a report supports a claim."""

    RULES = "rules"
    OVERLAP = "overlap"
    NONE = "none"


@dataclass(frozen=True)
class Checked:
    """A summary from a language model's claims, held to its report.

    Attributes:
        summary: in the style.
        claims, by_rules, by_overlap, flagged: number of its claims, and of those that the rules or overlap support, or nothing.
        source: what wrote the summary: "llm"; "unchecked", a language model on a report that the rules cannot read; "rules"
            where there was no answer to use.
        fault: why there was none (see `claims`), or "injection" where the report addresses a language model.
    """

    summary: str
    claims: int = 0
    by_rules: int = 0
    by_overlap: int = 0
    flagged: int = 0
    source: str = "llm"
    fault: str = ""


def check(report: str, answer: Claims, style: Style, policy: str, unread: bool = False) -> Checked:
    """The summary of a report from a model's claims.

    Args:
        unread: take its word for a report in another language, which nothing here can check.
        policy: what becomes of flagged claims: "replace" puts what the rules read of the same abnormalities in their place,
            "drop" leaves them out, "keep" keeps them.
    """
    injection = tries_to_instruct(report)
    if answer.fault or (injection and policy != "keep"):
        fault = INJECTION if injection else answer.fault
        readable = without_instructions(report) if injection else report
        summary = summarize_many([readable], style)[0] if policy == "replace" else ""
        return Checked(summary, len(answer.claims), flagged=len(answer.claims), source="rules", fault=fault)
    reading = read([report], open_vocabulary())[0]
    if unread and is_foreign(report) and not reading.understood:
        written = _prose if style.is_prose else _statements
        summary = written(answer.claims, set(), reading, style) if answer.claims else ""
        return Checked(summary, len(answer.claims), source="unchecked")
    supports = ground(answer.claims, report, reading)
    kept = [c for c, s in zip(answer.claims, supports, strict=True) if s is not Support.NONE or policy == "keep"]
    flagged = [c for c, s in zip(answer.claims, supports, strict=True) if s is Support.NONE]
    replaced = {name for claim in flagged for name, _ in claim.findings} if policy == "replace" else set()
    return Checked(
        _prose(kept, replaced, reading, style) if style.is_prose else _statements(kept, replaced, reading, style),
        claims=len(supports),
        by_rules=supports.count(Support.RULES),
        by_overlap=supports.count(Support.OVERLAP),
        flagged=len(flagged),
        fault=INJECTION if injection else "",
    )


def ground(claims: Sequence[Claim], report: str, reading: Reading | None = None) -> list[Support]:
    """What supports each claim.

    Args:
        reading: of the report with the open vocabulary, where it is known.
    """
    reading = reading or read([report], open_vocabulary())[0]
    found = with_ancestors(reading.statuses)
    free = {
        claim.label: claim for claim in claims if claim.label and not any(_known(n, found) for n, _ in claim.findings)
    }
    by_words = _read_words(report, free)
    return [_support(claim, found, by_words, reading) for claim in claims]


def with_ancestors(found: Mapping[str, Status]) -> dict[str, Status]:
    """Statuses, and those of what they imply: a rib fracture that is present makes a fracture present."""
    out = dict(found)
    for name, status in found.items():
        if status in (Status.PRESENT, Status.UNCERTAIN):
            for parent in ancestors(name):
                out[parent] = min((status, out.get(parent, status)), key=PRECEDENCE.index)
    return out


def is_foreign(report: str) -> bool:
    """Whether a report is in another language, by its words: a placeholder in English is not."""
    found = evidence(report)
    return found.words >= FEWEST_WORDS and not found.is_english


def _known(name: str, found: Mapping[str, Status]) -> bool:
    return name in found or any(found.get(parent) is Status.ABSENT for parent in ancestors(name))


def _support(claim: Claim, found: Mapping[str, Status], by_words: Mapping[str, Status], reading: Reading) -> Support:
    read_of = [(name, status) for name, status in claim.findings if _known(name, found)]
    if read_of:
        # A denied parent denies the child.
        fits = len(read_of) == len(claim.findings) and all(found.get(n, Status.ABSENT) is s for n, s in read_of)
        return Support.RULES if fits else Support.NONE
    if claim.label:
        return Support.OVERLAP if by_words.get(claim.label) is claim.status else Support.NONE
    return Support.OVERLAP if not claim.findings and _in_a_sentence(claim, reading) else Support.NONE


def _read_words(report: str, free: Iterable[str]) -> dict[str, Status]:
    """What the rules read of findings that no vocabulary has: a clause names one where it has all of its words."""
    entries = tuple(entry for label in free if (entry := _entry(label)))
    if not entries:
        return {}
    by_beginning: dict[str, tuple[int, ...]] = {}
    for number, entry in enumerate(entries):
        for beginning in entry.beginnings:
            by_beginning[beginning] = (*by_beginning.get(beginning, ()), number)
    words = Vocabulary(entries, open_vocabulary().places, by_beginning)
    return read([report], words)[0].statuses


def with_words(text: str, labels: Iterable[str]) -> set[str]:
    """The findings of which one clause of a text has all words, whatever it says of them."""
    return set(_read_words(text, labels)) if text else set()


def _entry(label: str) -> Entry | None:
    stems = _stems(label)
    if not stems:
        return None
    all_of = re.compile("^" + "".join(rf"(?=.*\b{stem})" for stem in stems), re.DOTALL)
    term = Term(re.compile(rf"\b{stems[-1]}\w*"), all_of, None)
    return Entry(label, (term,), None, None, None, frozenset(), frozenset({stems[-1][:BEGINNING]}))


def _stems(text: str) -> list[str]:
    """The beginnings of a text's words of content, in order, each once."""
    words = (word for word in _WORD.findall(text.lower()) if word not in _EMPTY_WORDS)
    return list(dict.fromkeys(word[:_STEM].removesuffix("s") for word in words))


def _in_a_sentence(claim: Claim, reading: Reading) -> bool:
    wanted = set(_stems(claim.text))
    if not wanted:
        return False
    denies = bool(_DENIAL.search(claim.text))
    return any(
        len(wanted.intersection(_stems(f"{one.context} {one.text}"))) >= SHARE_IN_SENTENCE * len(wanted)
        and bool(_DENIAL.search(f"{one.context} {one.text}")) == denies
        for one in reading.statements
    )


def _statements(kept: Sequence[Claim], replaced: set[str], reading: Reading, style: Style) -> str:
    if not kept and not reading.understood:
        return ""
    by_rules = reading.statuses
    said: dict[str, Status] = {name: by_rules[name] for name in replaced if name in by_rules}
    for claim in kept:
        for name, status in ((claim.label, claim.status),) if claim.label else claim.findings:
            said.setdefault(name, status)
    place = {name: number for number, name in enumerate(known_names())}
    ordered = sorted(said, key=lambda name: place.get(name, len(place)))
    return write_statements({name: said[name] for name in ordered}, style)


def _prose(kept: Sequence[Claim], replaced: set[str], reading: Reading, style: Style) -> str:
    texts = [
        claim.text[0].upper() + claim.text[1:].rstrip(" .") + ("" if claim.text.endswith("?") else ".")
        for claim in kept
    ]
    if replaced:
        instead = write(reading, replace(style, form="sentences", names=tuple(replaced), most=None))
        texts += [instead] if instead != NOTHING_FOUND else []
    if not texts:
        return NOTHING_FOUND if reading.understood else ""
    return " ".join(dict.fromkeys(texts[: style.most]))
