"""What is right, lost, invented and turned round in a summary."""

from __future__ import annotations

import pytest

from brgsa.labels import CT_RATE
from brgsa.summaries import Status
from brgsa.summaries.fidelity import fidelity, judge_many, verdict

REPORT = "A nodule in the right lung. No pleural effusion. Emphysema in both lungs."


@pytest.mark.parametrize(
    ("truth", "said", "report", "found"),
    [
        (True, Status.PRESENT, None, "right"),
        (True, None, None, "lost"),
        (True, Status.UNCERTAIN, None, "lost"),
        (True, Status.ABSENT, None, "flipped"),
        (False, Status.PRESENT, None, "invented"),
        (False, Status.PRESENT, Status.ABSENT, "flipped"),
        (False, Status.ABSENT, None, "right"),
        (False, None, Status.ABSENT, ""),
        (False, Status.UNCERTAIN, None, ""),
    ],
)
def test_a_verdict(truth: bool, said: Status | None, report: Status | None, found: str) -> None:
    assert verdict(truth, said, report) == found


def test_a_summary_is_held_to_what_the_rules_read_where_there_are_no_labels() -> None:
    summary = "There is lung nodule. There is pleural effusion. There is hiatal hernia. There is no emphysema."
    (one,) = judge_many([REPORT], [summary], CT_RATE)
    assert one.verdicts == {
        "Lung nodule": "right",
        "Pleural effusion": "flipped",
        "Hiatal hernia": "invented",
        "Emphysema": "flipped",
    }
    assert one.wrong == 3


def test_a_summary_is_held_to_labels_where_they_are_known() -> None:
    labels = [{"Emphysema": False, "Cardiomegaly": True, "Lung nodule": None}]
    (one,) = judge_many([REPORT], ["There is emphysema."], ("Emphysema", "Cardiomegaly", "Lung nodule"), labels)
    assert one.verdicts == {"Emphysema": "invented", "Cardiomegaly": "lost", "Lung nodule": "lost"}


def test_what_the_report_doubts_is_not_held_against_a_summary() -> None:
    (one,) = judge_many(["Tuberculosis?"], ["There is tuberculosis."], ("Tuberculosis",))
    assert one.verdicts == {}


def test_the_figures() -> None:
    reports = [REPORT, REPORT + " Heart size is increased.", "Lungs are clear.", "Kein Erguss."]
    summaries = ["There is emphysema.", "There is emphysema.", "There is no abnormality.", ""]
    judged = judge_many(reports, summaries, CT_RATE)
    figures = fidelity(reports, summaries, judged, lambda text: len(text) > 20)
    assert (figures.reports, figures.judged, figures.statements) == (4, 3, 2)
    assert (figures.lost, figures.invented, figures.flipped) == (3, 0, 0)
    assert figures.lost_share == pytest.approx(3 / 5)
    assert figures.identical == pytest.approx(2 / 3)
    assert figures.nothing_found == pytest.approx(1 / 3)
    assert figures.over_limit == pytest.approx(1 / 3)
    assert figures.words_after == pytest.approx((3 + 3 + 4) / 3)
