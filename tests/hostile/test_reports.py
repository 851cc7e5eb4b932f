"""Reports composed of statements whose truth is known, in every documented form, are read as what was put in."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hostile import sample
from hypothesis import given
from hypothesis import strategies as st

from brgsa.summaries import NOTHING_FOUND, Status, read_findings, statement, summarize_many, understood

P, A, U, H = Status.PRESENT, Status.ABSENT, Status.UNCERTAIN, Status.HISTORY

# Abnormality → its words in a report.
FINDINGS = {
    "Pleural effusion": ("pleural effusion", "effusion in the pleural space"),
    "Pericardial effusion": ("pericardial effusion",),
    "Lung nodule": ("lung nodule", "pulmonary nodule"),
    "Lung mass": ("lung mass", "pulmonary mass"),
    "Emphysema": ("emphysema", "centrilobular emphysema"),
    "Consolidation": ("consolidation", "lobar consolidation"),
    "Pneumothorax": ("pneumothorax",),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis", "linear atelectasis"),
    "Cardiomegaly": ("cardiomegaly",),
    "Lymphadenopathy": ("mediastinal lymphadenopathy",),
    "Hiatal hernia": ("hiatal hernia",),
    "Bronchiectasis": ("bronchiectasis", "cylindrical bronchiectasis"),
    "Tuberculosis": ("tuberculosis",),
}
SENTENCES = {
    P: (
        "There is {x}.",
        "{x} is present.",
        "{x} is seen.",
        "{x} is observed, unchanged.",
        "Stable {x}.",
        "There is {x} on the left.",
        "No change in the {x}.",
        "No interval change in the {x}.",
        "The {x} has not resolved.",
        "Again seen is {x}.",
        "Mild {x}.",
    ),
    A: (
        "There is no {x}.",
        "No {x}.",
        "No evidence of {x}.",
        "{x} is not seen.",
        "{x} was not detected.",
        "There isn't any {x}.",
        "Negative for {x}.",
        "Without {x}.",
        "w/o {x}.",
        "No {x} is seen.",
        "{x} is absent.",
        "{x} has been ruled out.",
        "Absence of {x}.",
        "Lack of {x}.",
        "Free of {x}.",
        "{x} isn't seen.",
        "No definite {x} is identified.",
        "No e/o {x}.",
    ),
    U: (
        "{x} cannot be excluded.",
        "Cannot rule out {x}.",
        "Can't exclude {x}.",
        "Possible {x}.",
        "Suspicious for {x}.",
        "Rule out {x}.",
        "Questionable {x}.",
        "{x}?",
    ),
    H: (
        "History of {x}.",
        "h/o {x}.",
        "{x} is no longer seen.",
        "{x} has resolved.",
        "The patient's father had {x}.",
        "Prior CT showed {x}.",
        "Resolved {x}.",
    ),
}
VALUES = {
    P: ("present", "yes", "Positive", "YES", "mild", "small", "4 mm", "seen", "true", "+", "no change", "unchanged"),
    A: (
        "none",
        "None",
        "no",
        "absent",
        "NEGATIVE",
        "nil",
        "0",
        "not seen",
        "not present",
        "neg",
        "no evidence",
        "false",
        "not identified",
    ),
    U: ("possible", "?", "cannot be excluded", "equivocal", "suspected"),
    H: ("resolved", "no longer seen"),
}
VERDICTS = {P: ("yes", "present", "positive"), A: ("no", "none", "absent", "negative")}
SILENT = (
    "INDICATION",
    "Clinical history",
    "HISTORY",
    "Reason for exam",
    "TECHNIQUE",
    "Comparison",
    "CLINICAL INFORMATION",
    "Exam",
    "Hx",
)
AFTER = ("RECOMMENDATION", "Recommendations", "Follow-up", "Advice")
SPOKEN = (
    "FINDINGS",
    "Findings",
    "IMPRESSION",
    "Impression",
    "Conclusion",
    "RESULT",
    "Opinion",
    "Report",
    "CT FINDINGS",
)
FOREIGN = (
    "Kein Pneumothorax.",
    "Pleuraerguss beidseits.",
    "Rundherd im rechten Oberlappen.",
    "Sağ akciğerde nodül izlenmektedir.",
    "Plevral efüzyon saptanmadı.",
    "Pas de pneumothorax.",
    "Épanchement pleural bilatéral.",
    "Sin derrame pleural.",
    "No se observan nódulos.",
    "Não há pneumotórax.",
    "Sem consolidação.",
    "Geen pneumothorax.",
    "Nessun versamento pleurico.",
    "双肺未见明显结节。",
    "Выпота нет. Эмфизема.",
    "Ingen pneumothorax.",
)


@dataclass(frozen=True)
class Composed:
    """Lines of statements and the truth about each abnormality that they name."""

    lines: tuple[str, ...]
    truth: dict[str, Status]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


@st.composite
def stated(draw: st.DrawFn, name: str, status: Status) -> str:
    """A line that states one abnormality, as a sentence or as key and value."""
    words = draw(st.sampled_from(FINDINGS[name]))
    if draw(st.booleans()):
        return _capital(draw(st.sampled_from(SENTENCES[status])).format(x=words))
    if status in VERDICTS and draw(st.booleans()):
        separator = draw(st.sampled_from([" - ", "\t", " = ", " ..... ", "? ", " – ", "    "]))
        return f"{_capital(words)}{separator}{draw(st.sampled_from(VERDICTS[status]))}"
    value = draw(st.sampled_from(VALUES[status]))
    return f"{_capital(words)}{draw(st.sampled_from([': ', ':', ' : ']))}{value}{draw(st.sampled_from(['', '.']))}"


@st.composite
def composed(draw: st.DrawFn, statuses: tuple[Status, ...] = (P, A, U, H)) -> Composed:
    """One to six abnormalities, each stated in a line, or several denied in one."""
    names = draw(st.lists(st.sampled_from(sorted(FINDINGS)), min_size=1, max_size=6, unique=True))
    truth = {name: draw(st.sampled_from(statuses)) for name in names}
    absent = [name for name in names if truth[name] is A]
    lines, together = [], len(absent) > 1 and draw(st.booleans())
    if together:
        words = [draw(st.sampled_from(FINDINGS[name])) for name in absent]
        joined = f"{', '.join(words[:-1])} or {words[-1]}"
        lines.append(
            draw(
                st.sampled_from(
                    [
                        f"No {joined}.",
                        f"There is no {joined}.",
                        f"Absent: {', '.join(words)}.",
                        f"Neither {' nor '.join(words)}.",
                    ]
                )
            )
        )
    lines += [draw(stated(name, truth[name])) for name in names if not (together and name in absent)]
    return Composed(tuple(draw(st.permutations(lines))), truth)


def _bulleted(lines: tuple[str, ...], mark: str) -> str:
    return "\n".join(f"{mark} {line}" for line in lines)


LAYOUTS: dict[str, Callable[[tuple[str, ...]], str]] = {
    "lines": "\n".join,
    "paragraphs": "\n\n".join,
    "carriage returns": "\r\n".join,
    "spelled line ends": lambda lines: "\\n".join(_ended(lines)),
    "breaks": "<br>".join,
    "escaped breaks": "&lt;br/&gt;".join,
    "HTML list": lambda lines: f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>",
    "dashes": lambda lines: _bulleted(lines, "-"),
    "stars": lambda lines: _bulleted(lines, "*"),
    "dots": lambda lines: _bulleted(lines, "•"),
    "numbers": lambda lines: "\n".join(f"{i}. {line}" for i, line in enumerate(lines, start=1)),
    "numbers in a row": lambda lines: " ".join(f"{i}. {line}" for i, line in enumerate(_ended(lines), start=1)),
    "one line": lambda lines: " ".join(_ended(lines)),
    "run together": lambda lines: "".join(_ended(lines)),
    "wrapped": lambda lines: textwrap.fill(" ".join(_ended(lines)), 34, break_long_words=False, break_on_hyphens=False),
    "bold": lambda lines: "\n".join(f"**{line}**" for line in lines),
}


def _ended(lines: tuple[str, ...]) -> list[str]:
    return [line if line.endswith((".", "?")) else f"{line}." for line in lines]


def _is_prose(line: str) -> bool:
    return "\t" not in line and "  " not in line and "....." not in line and ":" not in line


@sample()
@given(composed(), st.sampled_from(sorted(LAYOUTS)), st.booleans())
def test_composed_statements_are_read_as_put_in(report: Composed, layout: str, capitals: bool) -> None:
    # Tabs, wide space and dots separate columns: they belong on lines of their own.
    if layout in ("one line", "run together", "wrapped", "numbers in a row", "spelled line ends"):
        report = Composed(tuple(line for line in report.lines if _is_prose(line)), report.truth)
    text = LAYOUTS[layout](report.lines)
    if capitals and layout not in ("spelled line ends", "run together"):
        text = text.upper() if "&" not in text else text
    kept = " ".join(report.lines).lower()
    truth = {name: status for name, status in report.truth.items() if any(words in kept for words in FINDINGS[name])}
    found = {name: status for name, status in read_findings(text).items() if name in FINDINGS}
    assert found == truth, text


@sample()
@given(composed(), composed((P,)), composed((P,)), st.data())
def test_what_was_asked_or_known_is_not_found(
    report: Composed, asked: Composed, advised: Composed, data: st.DataObject
) -> None:
    before, after = data.draw(st.sampled_from(SILENT)), data.draw(st.sampled_from(AFTER))
    spoken = data.draw(st.sampled_from(SPOKEN))
    end = data.draw(st.sampled_from(["\n", "\n\n", "\r\n"]))
    form = data.draw(st.sampled_from(["{h}: ", "{h}:\n", "**{h}:** ", "<b>{h}:</b> ", "## {h}\n"]))
    sections = [
        form.format(h=before) + " ".join(_ended(tuple(filter(_is_prose, asked.lines)))),
        form.format(h=spoken) + "\n".join(report.lines),
        form.format(h=after) + " ".join(_ended(tuple(filter(_is_prose, advised.lines)))),
    ]
    text = end.join(sections)
    found = {name: status for name, status in read_findings(text).items() if name in FINDINGS}
    assert found == report.truth, text


@sample(0.5)
@given(st.lists(st.sampled_from(FOREIGN), min_size=1, max_size=5), st.sampled_from(["\n", " ", "<br>", "\n\n"]))
def test_another_language_is_never_a_finding(lines: list[str], joint: str) -> None:
    text = joint.join(lines)
    assert not understood(text), text
    assert summarize_many([text], "positives") == summarize_many([text], "findings") == [""]


@sample(0.5)
@given(st.lists(st.sampled_from(FOREIGN), min_size=1, max_size=2), composed((P, A)), st.booleans())
def test_of_a_mixed_report_the_english_part_is_read(foreign: list[str], report: Composed, first: bool) -> None:
    sentences = [
        "In the lungs there is {x}." if status is P else "There is no evidence of {x} on this scan."
        for status in report.truth.values()
    ]
    english = [sentence.format(x=FINDINGS[name][0]) for sentence, name in zip(sentences, report.truth, strict=True)]
    text = "\n".join([*foreign, *english] if first else [*english, *foreign])
    assert {name: status for name, status in read_findings(text).items() if name in report.truth} == report.truth, text


@sample(0.5)
@given(composed())
def test_the_summary_states_what_was_put_in(report: Composed) -> None:
    (summary,) = summarize_many(["\n".join(report.lines)], "positives+negatives", sorted(FINDINGS))
    said = [
        statement(name, present=status is P)
        for status in (P, A)
        for name in sorted(FINDINGS)
        if report.truth.get(name) is status
    ]
    assert summary == (" ".join(said) or NOTHING_FOUND)


# What reports are made of, in no order: some of it is understood, and some is not.
NOISE = (
    *(
        "no",
        "not",
        "pleural effusion",
        "nodule",
        "lungs",
        "clear",
        "normal",
        "mm",
        "4",
        "seen",
        "previously",
        "resolved",
    ),
    *(
        "FINDINGS:",
        "History:",
        "Comparison with 2019:",
        "kein",
        "(",
        ")",
        ":",
        ";",
        ",",
        ".",
        "?",
        "|",
        "[x]",
        "**",
        "<br>",
        "\t",
        "- ",
    ),
)


@pytest.mark.parametrize("style", ["findings", "positives", "positives+negatives"])
@sample(0.2)
@given(
    parts=st.lists(st.sampled_from(NOISE) | st.text(max_size=6), max_size=14), joint=st.sampled_from([" ", "", "\n"])
)
def test_any_text_gives_a_summary_or_none(style: str, parts: list[str], joint: str) -> None:
    text = joint.join(parts)
    (summary,) = summarize_many([text], style)
    assert (summary == "") == (not understood(text))
