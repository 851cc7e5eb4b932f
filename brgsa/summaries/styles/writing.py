"""A summary in a style, from what was read in the report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from brgsa.errors import UserError
from brgsa.summaries.clauses import clauses, tidy
from brgsa.summaries.hierarchy import known_names, place_of, place_order, without_parents
from brgsa.summaries.markup import clean
from brgsa.summaries.pairs import Statement
from brgsa.summaries.reader import Mention, Reading, Status, read
from brgsa.summaries.sections import impression
from brgsa.summaries.styles.style import Style, load_style
from brgsa.summaries.vocabulary import Vocabulary, open_vocabulary, vocabulary

NOTHING_FOUND = "There is no abnormality."

_DENIAL = re.compile(r"\b(?:no|not|without|normal)\b", re.IGNORECASE)
_OPENINGS = {Status.PRESENT: "There is", Status.ABSENT: "There is no", Status.UNCERTAIN: "There may be"}
_PREFIXES = {Status.PRESENT: "", Status.ABSENT: "no ", Status.UNCERTAIN: "possible "}


def summarize(report: str, style: str | Path | Style, names: Sequence[str] | None = None) -> str:
    """The summary of one report, by rules.

    Args:
        style: the name of a shipped style, a YAML file, or a style.
        names: the abnormalities that count, in the order in which they are written; default the style's.

    Raises:
        UserError: the report is empty ("empty-report"), the style is unknown, or a name is not in the vocabulary
            ("unknown-abnormality").
    """
    if not report.strip():
        raise UserError("The report is empty: give its text, or leave the scan out.", code="empty-report")
    return summarize_many([report], style, names)[0]


def summarize_many(reports: Sequence[str], style: str | Path | Style, names: Sequence[str] | None = None) -> list[str]:
    """`summarize` of each report, in one batch; an empty report gives an empty summary, not an error."""
    chosen = load_style(style)
    if names is not None:
        _check_names(names)
        chosen = replace(chosen, names=tuple(names))
    if chosen.form == "report":
        return [tidy(report) for report in reports]
    texts = [impression(clean(report)) or report for report in reports] if chosen.form == "impression" else reports
    readings = read(texts, words_of(chosen.names))
    understood = [reading.understood for reading in (read(reports) if chosen.form == "impression" else readings)]
    return [write(reading, chosen) if known else "" for reading, known in zip(readings, understood, strict=True)]


def words_of(names: Sequence[str]) -> Vocabulary:
    """The smallest vocabulary that has these names."""
    base = {entry.name for entry in vocabulary().entries}
    return vocabulary() if base.issuperset(names) else open_vocabulary()


def write(reading: Reading, style: Style) -> str:
    """What was read in a report, in a style."""
    if style.is_prose:
        written = _impression(reading) if style.form == "impression" else _findings(reading, style.names)
        return " ".join(written[: style.most]) or NOTHING_FOUND
    found = reading.statuses
    return write_statements({name: found[name] for name in style.names if name in found}, style)


def write_statements(found: Mapping[str, Status], style: Style) -> str:
    """Abnormalities with their statuses, in the order given, as the statements of a style."""
    chosen = [(status, _of_status(found, status, style)) for status in map(Status, style.say)]
    if style.form == "line":
        parts = [f"{_PREFIXES[status]}{name.lower()}" for status, names in chosen for name in names]
        return _as_sentence("; ".join(parts[: style.most])) if parts else NOTHING_FOUND
    if style.form == "anatomy":
        written = [
            f"In {place}, {_listed(_OPENINGS[status].lower(), here)}."
            if place != "elsewhere"
            else f"{_listed(_OPENINGS[status], here)}."
            for status, names in chosen
            for place in place_order()
            if (here := [name for name in names if place_of(name) == place])
        ]
    else:
        written = [f"{_OPENINGS[status]} {name.lower()}." for status, names in chosen for name in names]
    return " ".join(written[: style.most]) or NOTHING_FOUND


def statement(name: str, present: bool = True) -> str:
    """ "There is X." or "There is no X.", the form of BrgSA's zero-shot prompts (Lai et al. 2025)."""
    return f"{_OPENINGS[Status.PRESENT if present else Status.ABSENT]} {name.lower()}."


def _of_status(found: Mapping[str, Status], status: Status, style: Style) -> list[str]:
    names = [name for name, of_name in found.items() if of_name is status]
    return without_parents(names) if style.parents == "drop" and status is Status.PRESENT else names


def _listed(opening: str, names: Sequence[str]) -> str:
    """ "There is a, b and c"; what is denied is joined by "or"."""
    lower = [name.lower() for name in names]
    last = " or " if opening.endswith("no") else " and "
    return f"{opening} " + (last.join([", ".join(lower[:-1]), lower[-1]]) if len(lower) > 1 else lower[0])


def _check_names(names: Sequence[str]) -> None:
    known = set(known_names())
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"No vocabulary for abnormality {unknown[0]!r}: use names of brgsa.summaries.known_names().",
            code="unknown-abnormality",
            field="names",
            value=unknown[0],
        )


def _impression(reading: Reading) -> list[str]:
    return list(dict.fromkeys(_as_sentence(one.text.strip(" .,;")) for one in reading.statements))


def _as_sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _findings(reading: Reading, names: Sequence[str]) -> list[str]:
    by_statement: dict[int, list[Mention]] = {}
    for mention in reading.mentions:
        by_statement.setdefault(mention.sentence, []).append(mention)
    out: dict[str, None] = {}  # a set in order, as the impression often repeats a finding word for word
    for number, of_report in enumerate(reading.statements):
        if positive := _positive_part(of_report, by_statement.get(number, []), names):
            out[_as_sentence(positive)] = None
    return list(out)


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
