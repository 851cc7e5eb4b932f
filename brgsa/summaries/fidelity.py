"""How true summaries are: what they lose, invent and turn round, against labels or what the rules read in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from brgsa.summaries.hierarchy import ancestors
from brgsa.summaries.reader import Status, read
from brgsa.summaries.styles import NOTHING_FOUND
from brgsa.summaries.styles.writing import words_of

RIGHT, LOST, INVENTED, FLIPPED = "right", "lost", "invented", "flipped"
VERDICTS = (RIGHT, LOST, INVENTED, FLIPPED)


@dataclass(frozen=True)
class Judged:
    """One summary, held to the truth.

    Attributes:
        verdicts: abnormality → "right" (said as it is), "lost" (present, and not said), "invented" (said to be present, and
            it is not), "flipped" (said to be absent though present, or present though the report denies it).
    """

    verdicts: dict[str, str]

    @property
    def counts(self) -> Counter[str]:
        """How many of each verdict."""
        return Counter(self.verdicts.values())

    @property
    def wrong(self) -> int:
        """Abnormalities that are lost, invented or flipped."""
        return sum(verdict != RIGHT for verdict in self.verdicts.values())


def verdict(truth: bool, said: Status | None, report: Status | None) -> str:
    """The verdict on one abnormality; "" where nothing was to be said and nothing was.

    Args:
        truth: whether it is there.
        said: what the summary says, None where it says nothing of it.
        report: what the rules read in the report.
    """
    if truth:
        return RIGHT if said is Status.PRESENT else FLIPPED if said is Status.ABSENT else LOST
    if said is Status.PRESENT:
        return FLIPPED if report is Status.ABSENT else INVENTED
    return RIGHT if said is Status.ABSENT else ""


def judge_many(
    reports: Sequence[str],
    summaries: Sequence[str],
    names: Sequence[str],
    labels: Sequence[Mapping[str, bool | None]] | None = None,
) -> list[Judged]:
    """Each summary, read back by the rules and held to its report's labels, or where there are none to what the rules read.

    An empty summary is not judged: its report was left out.

    Args:
        names: the abnormalities that count.
        labels: of each report, abnormality → present, absent, or None where it is unknown.
    """
    words = words_of(names)
    read_back = [_with_parents(reading.statuses) for reading in read(summaries, words)]
    of_reports = [_with_parents(reading.statuses) for reading in read(reports, words)]
    out = []
    for row, (summary, said, report) in enumerate(zip(summaries, read_back, of_reports, strict=True)):
        known = labels[row] if labels is not None else {}
        verdicts = {}
        for name in names if summary.strip() else ():
            truth = known.get(name)
            if truth is None:
                truth = truth_by_rules(report.get(name))
            if truth is not None and (found := verdict(truth, said.get(name), report.get(name))):
                verdicts[name] = found
        out.append(Judged(verdicts))
    return out


def truth_by_rules(status: Status | None) -> bool | None:
    """Whether the rules hold an abnormality to be there; None where the report doubts it or speaks of the past."""
    return None if status in (Status.UNCERTAIN, Status.HISTORY) else status is Status.PRESENT


def _with_parents(found: Mapping[str, Status]) -> dict[str, Status]:
    """Statuses, and those of what is present implies; a doubt implies nothing here, where `grounding` lets it."""
    out = dict(found)
    for name, status in found.items():
        if status is Status.PRESENT:
            out |= dict.fromkeys(ancestors(name), Status.PRESENT)
    return out


@dataclass(frozen=True)
class Fidelity:
    """The figures of a style's summaries, over N distinct reports.

    Attributes:
        reports: N, of which `judged` have a summary.
        statements: of abnormalities that count, right and wrong.
        lost, invented, flipped: how many.
        lost_share: of the abnormalities that are there; invented_share, flipped_share: of the summaries' statements.
        words_before, words_after: means.
        over_limit: share of the summaries that are longer than the text tower reads.
        identical: share of the summaries that another report shares word for word, those without a finding left out: in a batch
            they are false negatives.
        nothing_found: share that says only that.
    """

    reports: int
    judged: int
    statements: int
    lost: int
    invented: int
    flipped: int
    lost_share: float
    invented_share: float
    flipped_share: float
    words_before: float
    words_after: float
    over_limit: float
    identical: float
    nothing_found: float


def fidelity(
    reports: Sequence[str], summaries: Sequence[str], judged: Sequence[Judged], over_limit: Callable[[str], bool]
) -> Fidelity:
    """The figures of summaries.

    Args:
        over_limit: whether a summary is longer than the text tower reads.
    """
    counts = sum((one.counts for one in judged), Counter[str]())
    kept = [summary for summary in summaries if summary.strip()]
    found = Counter(summary for summary in kept if summary != NOTHING_FOUND)
    there = counts[RIGHT] + counts[LOST] + counts[FLIPPED]
    statements = counts[RIGHT] + counts[INVENTED] + counts[FLIPPED]
    return Fidelity(
        reports=len(reports),
        judged=len(kept),
        statements=statements,
        lost=counts[LOST],
        invented=counts[INVENTED],
        flipped=counts[FLIPPED],
        lost_share=counts[LOST] / max(1, there),
        invented_share=counts[INVENTED] / max(1, statements),
        flipped_share=counts[FLIPPED] / max(1, statements),
        words_before=sum(len(report.split()) for report in reports) / max(1, len(reports)),
        words_after=sum(len(summary.split()) for summary in kept) / max(1, len(kept)),
        over_limit=sum(map(over_limit, kept)) / max(1, len(kept)),
        identical=sum(n for n in found.values() if n > 1) / max(1, len(kept)),
        nothing_found=sum(summary == NOTHING_FOUND for summary in kept) / max(1, len(kept)),
    )
