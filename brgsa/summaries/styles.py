"""Summary styles, from the report as written to one plain sentence per abnormality."""

from __future__ import annotations

import re
from collections.abc import Sequence

from brgsa.errors import UserError
from brgsa.labels import CT_RATE, CT_RATE_LT
from brgsa.summaries.clauses import clauses, tidy
from brgsa.summaries.pairs import Statement
from brgsa.summaries.reader import Mention, Reading, Status, merge, read
from brgsa.summaries.vocabulary import vocabulary

STYLES: tuple[str, ...] = ("report", "findings", "positives", "positives+negatives")
NOTHING_FOUND = "There is no abnormality."
NAMES = CT_RATE + CT_RATE_LT

_DENIAL = re.compile(r"\b(?:no|not|without|normal)\b", re.IGNORECASE)


def summarize(report: str, style: str, names: Sequence[str] = NAMES) -> str:
    """The summary of one report.

    Args:
        style: one of `STYLES`.
        names: the abnormalities that count, in the order in which they are written.

    Raises:
        UserError: the report is empty, the style is unknown, or a name is not in the vocabulary.
    """
    if not report.strip():
        raise UserError("The report is empty: give its text, or leave the scan out.", code="empty-report")
    return summarize_many([report], style, names)[0]


def summarize_many(reports: Sequence[str], style: str, names: Sequence[str] = NAMES) -> list[str]:
    """`summarize` of each report, in one batch; an empty report gives an empty summary, not an error."""
    _check(style, names)
    if style == "report":
        return [tidy(report) for report in reports]
    write = _findings if style == "findings" else _positives if style == "positives" else _positives_and_negatives
    return [write(reading, names) if reading.understood else "" for reading in read(reports)]


def statement(name: str, present: bool = True) -> str:
    """ "There is X." or "There is no X.", the form of BrgSA's zero-shot prompts (Lai et al. 2025)."""
    return f"There is {'' if present else 'no '}{name.lower()}."


def _check(style: str, names: Sequence[str]) -> None:
    if style not in STYLES:
        raise UserError(
            f"Unknown summary style {style!r}: choose one of {', '.join(STYLES)}.",
            code="unknown-style",
            field="style",
            value=style,
        )
    known = {entry.name for entry in vocabulary().entries}
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"No vocabulary for abnormality {unknown[0]!r}: use names of CT-RATE or CT-RATE-LT (brgsa.labels).",
            code="unknown-abnormality",
            field="names",
            value=unknown[0],
        )


def _positives(reading: Reading, names: Sequence[str]) -> str:
    return " ".join(_statements(reading.mentions, names, Status.PRESENT)) or NOTHING_FOUND


def _positives_and_negatives(reading: Reading, names: Sequence[str]) -> str:
    positives = _statements(reading.mentions, names, Status.PRESENT)
    return " ".join([*positives, *_statements(reading.mentions, names, Status.ABSENT)]) or NOTHING_FOUND


def _statements(mentions: Sequence[Mention], names: Sequence[str], status: Status) -> list[str]:
    findings = merge(mentions)
    of_status = [name for name in names if name in findings and findings[name].status is status]
    return [statement(name, status is Status.PRESENT) for name in of_status]


def _findings(reading: Reading, names: Sequence[str]) -> str:
    by_statement: dict[int, list[Mention]] = {}
    for mention in reading.mentions:
        by_statement.setdefault(mention.sentence, []).append(mention)
    out: dict[str, None] = {}  # a set in order, as the impression often repeats a finding word for word
    for number, of_report in enumerate(reading.statements):
        if positive := _positive_part(of_report, by_statement.get(number, []), names):
            out[positive[0].upper() + positive[1:] + ("" if positive.endswith("?") else ".")] = None
    return " ".join(out) or NOTHING_FOUND


def _positive_part(of_report: Statement, mentions: list[Mention], names: Sequence[str]) -> str:
    """The statement without its opening phrase ("in the lung window;"); of one that also denies, the clauses that assert."""
    affirmed = {
        mention.clause: None
        for mention in mentions
        if mention.name in names and mention.status in (Status.PRESENT, Status.UNCERTAIN)
    }
    if not affirmed:
        return ""
    if of_report.verdict or (of_report.body != of_report.text and not of_report.context):
        return of_report.text.strip(" .,;")
    opening, sentence = f"{of_report.context}: " if of_report.context else "", of_report.body
    parts = list(clauses(sentence))
    past = {mention.clause for mention in mentions if mention.status is Status.HISTORY}
    if any(part in past or _DENIAL.search(part) for part in parts if part not in affirmed):
        return opening + ", ".join(clause.strip(" .,;") for clause in affirmed)
    if (
        parts[0] not in affirmed
        and sentence.startswith(parts[0])
        and sentence[len(parts[0]) :].lstrip()[:1] in {";", ":"}
    ):
        sentence = sentence[len(parts[0]) :].lstrip(" ;:")
    return opening + sentence.strip(" .,;")
