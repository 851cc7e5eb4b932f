"""The sentences of a report of which the rules are not sure: these alone a hybrid asks a language model about."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache

from brgsa.summaries.llm.claims import Claims
from brgsa.summaries.llm.grounding import INJECTION, Checked, with_words
from brgsa.summaries.llm.prompts import tries_to_instruct, without_instructions
from brgsa.summaries.reader import Mention, Reading, Status, is_normal, read
from brgsa.summaries.styles import Style, summarize_many
from brgsa.summaries.styles.writing import write_statements
from brgsa.summaries.vocabulary import listed, open_vocabulary, pattern, read_yaml

_DENIAL = re.compile(r"\b(?:no|not|without|normal|natural|absence of|free of)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Doubtful:
    """Sentences that the rules leave open.

    Attributes:
        text: the sentences, in order; "" where the rules are sure of all.
        why: "uncertain", "contradiction", "not understood" → sentences.
        sentences: of the whole report.
    """

    text: str
    why: Counter[str]
    sentences: int


def doubtful(report: str, reading: Reading | None = None) -> Doubtful:
    """The sentences of a report that the rules call uncertain, contradict themselves on, or do not understand."""
    reading = reading or read([report], open_vocabulary())[0]
    why: dict[int, str] = {}
    by_sentence: dict[int, list[Mention]] = defaultdict(list)
    for mention in reading.mentions:
        by_sentence[mention.sentence].append(mention)
    for number, one in enumerate(reading.statements):
        text = f"{one.context} {one.text}".strip()
        if not by_sentence[number] and _sounds_abnormal(text) and not _DENIAL.search(text) and not is_normal(text):
            why[number] = "not understood"
        elif any(mention.status is Status.UNCERTAIN for mention in by_sentence[number]):
            why[number] = "uncertain"
    for number in _contradictions(reading):
        why.setdefault(number, "contradiction")
    texts = [f"{reading.statements[n].context} {reading.statements[n].text}".strip(" .") + "." for n in sorted(why)]
    return Doubtful(" ".join(texts), Counter(why.values()), len(reading.statements))


def _contradictions(reading: Reading) -> set[int]:
    """The sentences that deny what another one of the same side asserts."""
    by_name: dict[str, list[Mention]] = defaultdict(list)
    for mention in reading.mentions:
        by_name[mention.name].append(mention)
    out: set[int] = set()
    for mentions in by_name.values():
        for denied in (m for m in mentions if m.status is Status.ABSENT):
            for stated in (m for m in mentions if m.status is Status.PRESENT and m.sentence != denied.sentence):
                if denied.side == stated.side:
                    out |= {denied.sentence, stated.sentence}
    return out


@cache
def _abnormal() -> re.Pattern[str]:
    return re.compile("|".join(pattern(word, {}) for word in listed(read_yaml("llm/abnormal.yaml")["words"])))


def _sounds_abnormal(text: str) -> bool:
    return bool(_abnormal().search(text.lower()))


def combine(report: str, answer: Claims, style: Style) -> Checked:
    """The rules' reading of a report, with a language model's verdict on what they left open.

    A claim counts where the doubtful sentences name its finding; whether they assert it is what the model was asked. A report
    that addresses a language model is read by the rules alone, without those sentences.
    """
    if tries_to_instruct(report):
        summary = summarize_many([without_instructions(report)], style)[0]
        return Checked(summary, len(answer.claims), flagged=len(answer.claims), source="rules", fault=INJECTION)
    reading = read([report], open_vocabulary())[0]
    open_part = doubtful(report, reading)
    found = reading.statuses
    in_doubt = read([open_part.text], open_vocabulary())[0].statuses if open_part.text else {}
    labels = [claim.label for claim in answer.claims if claim.label]
    named = set(in_doubt) | with_words(open_part.text, labels)
    supported = flagged = 0
    free: dict[str, Status] = {}
    for claim in answer.claims:
        names = [name for name, _ in claim.findings] or [claim.label]
        if not all(name in named for name in names):
            flagged += 1
            continue
        supported += 1
        for name, status in claim.findings or ((claim.label, claim.status),):
            (found if name in found else free)[name] = status
    wanted = set(style.names)
    said = {name: found[name] for name in style.names if name in found}
    said |= {name: status for name, status in free.items() if name not in wanted or name not in said}
    summary = write_statements(said, style) if reading.understood or said else ""
    source = "llm" if open_part.text and not answer.fault else "rules"
    return Checked(
        summary, len(answer.claims), by_overlap=supported, flagged=flagged, source=source, fault=answer.fault
    )
