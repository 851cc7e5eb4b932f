"""The rule-based reader and the summary styles, on sentences whose meaning is plain to a radiologist."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa.labels import CT_RATE, CT_RATE_LT
from brgsa.summaries import (
    NOTHING_FOUND,
    STYLES,
    Status,
    read_findings,
    read_findings_detailed,
    read_many,
    statement,
    summarize,
    summarize_many,
)
from brgsa.summaries.clauses import clauses, sentences
from brgsa.summaries.vocabulary import pattern, vocabulary

P, A, U, H = Status.PRESENT, Status.ABSENT, Status.UNCERTAIN, Status.HISTORY
NODULE, EFFUSION, OPACITY = "Lung nodule", "Pleural effusion", "Lung opacity"

SENTENCES: list[tuple[str, dict[str, Status]]] = [
    # plain presence and negation, before and after the finding
    ("A 4 mm nodule is observed in the right lung.", {NODULE: P}),
    ("No nodule was detected in the lungs.", {NODULE: A}),
    ("Pleural effusion-thickening was not detected.", {EFFUSION: A}),
    ("Pericardial effusion was not observed.", {"Pericardial effusion": A}),
    ("Lungs are clear without consolidation.", {"Consolidation": A}),
    ("There is no evidence of emphysema.", {"Emphysema": A}),
    ("Absence of bronchiectasis.", {"Bronchiectasis": A}),
    ("The lungs are free of nodules.", {NODULE: A}),
    ("Neither atelectasis nor consolidation is seen.", {"Atelectasis": A, "Consolidation": A}),
    ("Pneumothorax is unlikely.", {"Pneumothorax": A}),
    # lists under one negation
    (
        "No nodule, mass or consolidation was detected in either lung.",
        {NODULE: A, "Lung mass": A, "Consolidation": A},
    ),
    (
        "There is no pleural effusion, pneumothorax or consolidation.",
        {EFFUSION: A, "Pneumothorax": A, "Consolidation": A},
    ),
    ("No pleural or pericardial effusion was detected.", {EFFUSION: A, "Pericardial effusion": A}),
    ("Pleural and pericardial effusions are observed.", {EFFUSION: P, "Pericardial effusion": P}),
    (
        "There is no pericardial effusion, and the heart is of normal size.",
        {"Pericardial effusion": A, "Cardiomegaly": A},
    ),
    # a negation holds in its clause only
    ("Nodules are observed in both lungs and pleural effusion was not detected.", {NODULE: P, EFFUSION: A}),
    ("No pleural effusion was detected, but a nodule is present.", {EFFUSION: A, NODULE: P}),
    (
        "Heart size is normal, there is no pericardial effusion; hiatal hernia is observed.",
        {"Cardiomegaly": A, "Pericardial effusion": A, "Hiatal hernia": P},
    ),
    ("Emphysematous changes in both lungs, no consolidation.", {"Emphysema": P, "Consolidation": A}),
    ("Consolidation is observed in the right lower lobe without pleural effusion.", {"Consolidation": P, EFFUSION: A}),
    ("No consolidation; ground-glass opacities are present.", {"Consolidation": A, OPACITY: P}),
    # exceptions and double negation
    (
        "Except for a millimetric nodule, pleural effusion or consolidation was not detected in the lungs.",
        {NODULE: P, EFFUSION: A, "Consolidation": A},
    ),
    ("No abnormality except linear atelectasis in the lingula.", {"Atelectasis": P}),
    ("Apart from emphysema, no finding was detected in the lungs.", {"Emphysema": P}),
    ("Not only consolidation but also pleural effusion is observed.", {"Consolidation": P, EFFUSION: P}),
    ("There is no change in the pleural effusion.", {EFFUSION: P}),
    ("No significant change was observed in the nodules of both lungs.", {NODULE: P}),
    ("No increase in size of the lung nodules.", {NODULE: P}),
    # hedges
    ("Pneumonia cannot be excluded.", {"Pneumonia": U}),
    ("Tuberculosis could not be ruled out.", {"Tuberculosis": U}),
    ("Findings suspicious for empyema.", {"Empyema": U}),
    ("Possible rib fracture on the left.", {"Rib fracture": U}),
    ("Consolidation in the left lower lobe (pneumonia?).", {"Consolidation": P, "Pneumonia": U}),
    ("Consolidation in the left lower lobe, pneumonia?", {"Consolidation": P, "Pneumonia": U}),
    ("Ground glass areas are observed which may be compatible with pneumonia.", {OPACITY: P, "Pneumonia": U}),
    ("Pleural effusion ?", {EFFUSION: U}),
    ("Other viral pneumonias should be excluded.", {"Pneumonia": U}),
    ("Although there are no typical findings, pneumonia is observed.", {"Pneumonia": P}),
    ("Past tuberculosis sequelae in the right lung.", {"Tuberculosis": H, "Pulmonary fibrotic sequela": P}),
    ("Pleural effusion could not be evaluated.", {EFFUSION: U}),
    # history
    ("The nodule observed in the previous examination was not observed in the current examination.", {NODULE: H}),
    (
        "Pneumothorax, which was observed in the previous examination, was not detected in the current examination.",
        {"Pneumothorax": H},
    ),
    ("Pleural effusion is no longer observed.", {EFFUSION: H}),
    ("History of tuberculosis.", {"Tuberculosis": H}),
    ("Status post resection of a lung mass.", {"Lung mass": H}),
    ("The previously described consolidation has completely resolved.", {"Consolidation": H}),
    ("Operated lung mass.", {"Lung mass": H}),
    ("In the patient with a history of pneumonia, nodules are observed in both lungs.", {"Pneumonia": H, NODULE: P}),
    # the traps of these reports
    ("A nodule that was not observed in the previous examination is present in the right lung.", {NODULE: P}),
    ("Consolidation in the left lower lobe was not detected in his previous examination.", {"Consolidation": P}),
    ("Lymph nodes that did not reach pathological size are observed.", {"Lymphadenopathy": P}),
    ("No pathologically enlarged lymph nodes were detected.", {"Lymphadenopathy": A}),
    ("No pathological LAP was detected in the mediastinum.", {"Lymphadenopathy": A}),
    ("A fissural nodule (intrapulmonary lymph node?) in the lung.", {NODULE: P}),
    ("Fibroatelectatic changes in the middle lobe.", {"Pulmonary fibrotic sequela": P}),
    ("Frosted glass areas in both lungs.", {OPACITY: P}),
    ("The heart has a natural appearance.", {"Cardiomegaly": A}),
    ("CTR is within normal limits.", {"Cardiomegaly": A}),
    ("Heart size is not increased.", {"Cardiomegaly": A}),
    ("The heart is larger than normal.", {"Cardiomegaly": P}),
    ("Heart size is not normal.", {}),
    ("CTR increased in favor of the heart.", {"Cardiomegaly": P}),
    ("Heart size increased.", {"Cardiomegaly": P}),
    ("Non-specific nodule in the left lung.", {NODULE: P}),
    # other organs, other meanings
    ("Nodules are observed in the thyroid gland.", {}),
    ("Thyroid gland is enlarged. Nodules are observed in the left lobe.", {}),
    ("In the lungs; emphysema. In both kidneys, simple cysts.", {"Emphysema": P}),
    ("Subcutaneous emphysema is observed.", {}),
    ("A mass is observed in the liver.", {}),
    ("Calcification is observed in the aortic valve.", {}),
    ("Inguinal hernia is observed.", {}),
    ("Collapse of the T6 vertebra.", {}),
    # one phrase, several abnormalities
    (
        "Calcific atheroma plaques are observed in the aorta and coronary arteries.",
        {"Arterial wall calcification": P, "Coronary artery wall calcification": P, "Atherosclerosis": P},
    ),
    ("Wall calcification in the coronary arteries.", {"Coronary artery wall calcification": P}),
    (
        "Crazy paving with interlobular septal thickening in the lung.",
        {OPACITY: P, "Interlobular septal thickening": P},
    ),
    # each further CT-RATE abnormality in its usual words
    ("A port catheter ends in the superior vena cava.", {"Medical material": P}),
    ("Sliding type hiatal hernia at the lower end of the esophagus.", {"Hiatal hernia": P}),
    ("Mosaic attenuation pattern in both lungs (small airway disease?).", {"Mosaic attenuation pattern": P}),
    ("Peribronchial thickenings are observed.", {"Peribronchial thickening": P}),
    ("Tubular bronchiectasis in the lower lobes.", {"Bronchiectasis": P}),
    ("Pleuroparenchymal sequelae in the apex of both lungs.", {"Pulmonary fibrotic sequela": P}),
    # CT-RATE-LT
    ("Findings consistent with pneumonia.", {"Pneumonia": P}),
    ("Minimal pneumothorax on the right.", {"Pneumothorax": P}),
    ("Loculated collection in the pleural space, empyema.", {"Empyema": P}),
    ("Cavity in the right upper lobe in favor of tuberculosis.", {"Tuberculosis": P}),
    ("Interstitial fibrosis at the lung bases.", {"Pulmonary fibrosis": P}),
    ("Millimetric air cysts in both lungs.", {"Lung cyst": P}),
    ("Thickening of the bronchial walls is observed.", {"Bronchial thickening": P}),
    ("A spiculated mass of 4 cm in the right upper lobe.", {"Lung mass": P}),
    ("No mass was detected in both lungs.", {"Lung mass": A}),
    ("Osteophytes at the vertebral corners.", {"Osteophyte": P}),
    ("Fracture of the left 6th rib.", {"Rib fracture": P}),
    ("Displaced fractures in the right ribs.", {"Rib fracture": P}),
    ("Atherosclerosis.", {"Atherosclerosis": P}),
    ("Calcification of the pericardium.", {"Pericardial calcification": P}),
    ("Spondylotic changes in the thoracic spine.", {"Spondylosis": P}),
    ("Calcific pleural plaques.", {"Pleural calcification": P}),
    ("Pneumomediastinum is observed.", {"Pneumomediastinum": P}),
    ("Free air is observed in the mediastinum.", {"Pneumomediastinum": P}),
]


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES, ids=[s for s, _ in SENTENCES])
def test_reads_a_sentence(sentence: str, expected: dict[str, Status]) -> None:
    assert read_findings(sentence) == expected


@pytest.mark.parametrize(
    ("sentence", "name", "side"),
    [
        ("Pleural effusion on the right.", EFFUSION, "right"),
        ("Left pleural effusion.", EFFUSION, "left"),
        ("Bilateral pleural effusion.", EFFUSION, "bilateral"),
        ("Pleural effusion, 3 cm on the right and 2 cm on the left.", EFFUSION, "bilateral"),
        ("Pleural effusion on the right. Pleural effusion on the left.", EFFUSION, "bilateral"),
        ("Nodules in both lungs.", NODULE, "bilateral"),
        ("A nodule in the right lung and left pleural effusion.", NODULE, "right"),
        ("A nodule in the right lung and left pleural effusion.", EFFUSION, "left"),
        ("Hydropneumothorax on the right, pleural effusion on the left.", "Pneumothorax", "right"),
        ("In the left lung, a nodule and consolidation are observed.", "Consolidation", "left"),
        ("Consolidation of the left lung (pneumonia?).", "Pneumonia", "left"),
        ("Pleural effusion. Left-facing scoliosis.", EFFUSION, ""),
        ("Pleural effusion on the left is present, pleural effusion was not observed on the right.", EFFUSION, "left"),
    ],
)
def test_reads_the_side(sentence: str, name: str, side: str) -> None:
    assert read_findings_detailed(sentence)[name].side == side


def test_presence_anywhere_outweighs_denial_and_denial_outweighs_history() -> None:
    assert read_findings("No nodule in the right lung. A nodule in the left lung.") == {NODULE: P}
    assert read_findings("Pneumonia? Pneumonia was not detected.") == {"Pneumonia": U}
    assert read_findings("History of pneumothorax. No pneumothorax was detected.") == {"Pneumothorax": A}


@pytest.mark.parametrize(
    "report",
    [
        'No pleural effusion was detected. " Nodules in both lungs "Emphysema.',
        "No pleural effusion was detected. • Nodules in both lungs. • Emphysema",
        "Findings: No pleural effusion was detected. Impression: Nodules in both lungs. Emphysema.",
        "Findings No pleural effusion was detected. Impression Nodules in both lungs. Emphysema.",
        "No pleural effusion was detected\nNodules in both lungs\nEmphysema",
    ],
)
def test_impression_after_any_mark_is_read(report: str) -> None:
    assert read_findings(report) == {EFFUSION: A, NODULE: P, "Emphysema": P}


def test_sentences_keep_decimals_and_numbered_vertebrae_whole() -> None:
    text = "A nodule of 5.5 mm. Height loss in T12.vertebra is seen. Findings may be compatible with pneumonia."
    assert sentences(text) == [
        "A nodule of 5.5 mm",
        "Height loss in T12.vertebra is seen",
        "Findings may be compatible with pneumonia",
    ]


def test_clauses_split_at_a_second_predicate_but_never_inside_a_list() -> None:
    assert list(clauses("The aorta is normal and no mass was detected")) == [
        "The aorta is normal",
        "no mass was detected",
    ]
    assert list(clauses("No nodule, mass and effusion was detected")) == ["No nodule, mass and effusion was detected"]
    assert list(clauses("A cyst is seen (hamartoma?)")) == ["A cyst is seen  ", "hamartoma?"]


REPORT = (
    "Trachea is open. Pericardial effusion was not observed. In the lung window; a 4 mm nodule is observed in the right "
    "upper lobe.  Consolidation in the left lower lobe (pneumonia?) and no pleural effusion was detected. "
    'Coronary artery calcification is present. " 4 mm nodule in the right lung'
)


def test_styles() -> None:
    assert summarize(REPORT, "report") == " ".join(REPORT.split())
    assert summarize(REPORT, "findings") == (
        "A 4 mm nodule is observed in the right upper lobe. Consolidation in the left lower lobe, pneumonia? "
        "Coronary artery calcification is present. 4 mm nodule in the right lung."
    )
    positives = "There is coronary artery wall calcification. There is lung nodule. There is consolidation."
    assert summarize(REPORT, "positives") == positives
    assert summarize(REPORT, "positives+negatives") == (
        f"{positives} There is no pericardial effusion. There is no pleural effusion."
    )


def test_names_choose_and_order_what_is_said() -> None:
    names = ["Consolidation", "Pleural effusion", "Lung nodule"]
    assert summarize(REPORT, "positives", names) == "There is consolidation. There is lung nodule."
    assert summarize(REPORT, "positives+negatives", names).endswith("There is no pleural effusion.")
    assert "oronary" not in summarize(REPORT, "findings", names)


@pytest.mark.parametrize("style", ["findings", "positives"])
def test_report_without_finding(style: str) -> None:
    report = "Trachea is open. No nodule was detected in the lungs. Pleural effusion was not observed."
    assert summarize(report, style) == NOTHING_FOUND
    assert read_findings(NOTHING_FOUND) == {}
    assert summarize("Trachea is open.", "positives+negatives") == NOTHING_FOUND


def test_mistakes_are_named() -> None:
    with refused("unknown-style", field="style", value="shrt"):
        summarize(REPORT, "shrt")
    with refused("unknown-abnormality", field="names", value="Gout"):
        summarize(REPORT, "positives", ["Gout"])
    with refused("empty-report"):
        summarize(" \n", "positives")


def test_one_empty_report_does_not_stop_a_batch() -> None:
    for style in STYLES:
        many = summarize_many([REPORT, " ", REPORT], style)
        assert many == [summarize(REPORT, style), "", summarize(REPORT, style)]
    assert summarize_many([], "positives") == []


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(CT_RATE + CT_RATE_LT)), st.sets(st.sampled_from(CT_RATE + CT_RATE_LT)))
def test_a_summary_reads_back_as_what_it_states(present: set[str], absent: set[str]) -> None:
    names = [name for name in CT_RATE + CT_RATE_LT if name in present]
    denied = [name for name in CT_RATE + CT_RATE_LT if name in absent - present]
    summary = " ".join([*map(statement, names), *(statement(name, present=False) for name in denied)])
    expected = dict.fromkeys(names, P) | dict.fromkeys(denied, A)
    assert read_findings(summary) == expected
    if summary:
        assert summarize(summary, "positives+negatives") == summary
        positives = summarize(summary, "positives")
        assert read_findings(positives) == dict.fromkeys(names, P)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from([s for s, _ in SENTENCES]), max_size=6).map(" ".join), max_size=5))
def test_a_batch_reads_like_single_reports(reports: list[str]) -> None:
    assert read_many(reports) == [read_findings(report) for report in reports]


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_without_error(text: str) -> None:
    assert set(read_findings(text)) <= set(CT_RATE + CT_RATE_LT)


def test_vocabulary_covers_the_label_sets_in_order() -> None:
    assert tuple(entry.name for entry in vocabulary().entries) == CT_RATE + CT_RATE_LT


def test_notation_of_terms() -> None:
    import re

    term = re.compile(pattern("{fluid} ..2 pleura* space?", {"fluid": "fluid|effusion*"}))
    assert term.search("effusions in the pleural space")
    assert term.search("fluid-pleura")
    assert not term.search("fluid seen in the pleura")
    assert not term.search("fluids pleura")


def test_phantom_reports_are_read_as_rendered() -> None:
    from brgsa.phantom import COMMON, RARE, sample_cases, write_report

    cases = sample_cases(300, seed=3)
    reports = [write_report(case) for case in cases]
    read = [
        {name for name, status in statuses.items() if status is P}
        for statuses in read_many([f"{report.findings} {report.impressions}" for report in reports])
    ]
    scores = []
    for name in COMMON + RARE:
        hits = sum(name in case.names and name in names for case, names in zip(cases, read, strict=True))
        named, painted = sum(name in names for names in read), sum(name in case.names for case in cases)
        scores.append(2 * hits / (named + painted))
    assert sum(scores) / len(scores) >= 0.97
