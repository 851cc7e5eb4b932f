"""Kinds of reports that other readers got wrong (`report_kinds.yaml`), and those of which nothing may be understood."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from brgsa.summaries import NOTHING_FOUND, STYLES, Status, read_findings, summarize, summarize_many, understood

LETTERS = {Status.PRESENT: "P", Status.ABSENT: "A", Status.UNCERTAIN: "U", Status.HISTORY: "H"}
SHORT = {
    "effusion": "Pleural effusion",
    "pericardial": "Pericardial effusion",
    "nodule": "Lung nodule",
    "mass": "Lung mass",
    "emphysema": "Emphysema",
    "consolidation": "Consolidation",
    "pneumothorax": "Pneumothorax",
    "pneumonia": "Pneumonia",
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "nodes": "Lymphadenopathy",
    "hernia": "Hiatal hernia",
    "opacity": "Lung opacity",
    "fracture": "Rib fracture",
    "coronary": "Coronary artery wall calcification",
    "tuberculosis": "Tuberculosis",
    "bronchiectasis": "Bronchiectasis",
    "fibrosis": "Pulmonary fibrosis",
    "airways": "Bronchial thickening",
}

KINDS = {
    kind: [tuple(case) for case in cases]
    for kind, cases in yaml.safe_load(Path(__file__).with_name("report_kinds.yaml").read_text(encoding="utf-8")).items()
}

LANGUAGES = [
    "Befund: Pleuraerguss beidseits. Rundherd im rechten Oberlappen, 8 mm. Kein Pneumothorax. Kardiomegalie.",
    "Kein Pneumothorax.",
    "Kein Nachweis von Konsolidierung, Emphysem oder Pneumothorax.",
    "Pneumothorax links.",
    "Bulgular: Sag akcigerde plevral efuzyon izlenmektedir. Sol ust lobda 6 mm nodul mevcuttur.",
    "Bulgular: Sağ akciğerde plevral efüzyon izlenmektedir. Sol üst lobda 6 mm nodül mevcuttur. Pnömotoraks yok.",
    "Epanchement pleural bilateral. Nodule pulmonaire du lobe superieur droit. Pas de pneumothorax.",
    "Pas d'épanchement pleural. Absence de pneumothorax. Emphysème centrolobulaire.",
    "Derrame pleural bilateral. Nodulo pulmonar en lobulo superior derecho.",
    "No se observa consolidación ni derrame pleural. Sin nódulos.",
    "Sem derrame pleural. Ausência de consolidação. Enfisema.",
    "Não há pneumotórax. Nódulo no lobo superior direito.",
    "Non versamento pleurico. Enfisema polmonare. Nodulo del lobo superiore destro.",
    "Geen pneumothorax. Geen pleuravocht. Nodus in de rechter bovenkwab.",
    "Bez odmy opłucnowej. Guzek w płucu prawym.",
    "Ingen pneumothorax. Ingen pleuravätska.",
    "双肺未见明显结节。无胸腔积液。",
    "双肺未见结节。No。",
    "胸水なし。気胸なし。",
    "Плеврального выпота нет. Пневмоторакс не выявлен.",
    "لا يوجد انصباب جنبي",
]

PLACEHOLDERS = [
    "Not given.",
    "See dictated report.",
    "N/A",
    "-",
    "--",
    "Report pending",
    "Report pending.",
    "nan",
    "None",
    "none.",
    "null",
    "NULL",
    "NaN",
    "TBD",
    "<html></html>",
    "#NAME?",
    "#N/A",
    "#REF!",
    "...",
    "____",
    "Unknown",
    "No report.",
    "No report available.",
    "Not available",
    "To follow.",
    "Pending",
    "Dictated by Dr. Smith.",
    "Electronically signed by Dr. Nodule",
    "See report of 2019.",
    "As above.",
    "See previous report.",
    "Same as prior.",
    "x",
    "0",
    "Report to follow",
    "test",
    "Lorem ipsum dolor sit amet.",
    "Please see the separate report on the CT of the chest.",
    "Images only, no report was issued.",
    "INDICATION: Pulmonary nodule.",
    "HISTORY: emphysema.\nTECHNIQUE: Axial CT without contrast.",
    "Thank you for referring this patient with pneumonia.",
    "[REDACTED]",
    "\ufffd\ufffd",
    "&nbsp;",
    "\\N",
    "{}",
    "[]",
    "None.\n\nNone.",
]


def said(report: str) -> dict[str, str]:
    return {name: LETTERS[status] for name, status in read_findings(report).items()}


@pytest.mark.parametrize(("report", "wanted"), [case for cases in KINDS.values() for case in cases])
def test_a_report_is_read_as_what_it_says(report: str, wanted: str) -> None:
    read = said(report)
    for want in wanted.split(", "):
        name, _, letters = want.partition("=")
        assert read.get(SHORT[name], "-") in letters, (name, read)


@pytest.mark.parametrize("report", [*LANGUAGES, *PLACEHOLDERS])
def test_what_is_not_understood_says_nothing_of_the_patient(report: str) -> None:
    assert read_findings(report) == {}
    assert not understood(report)
    for style in ("findings", "positives", "positives+negatives"):
        assert summarize_many([report], style) == [""]


@pytest.mark.parametrize(
    "report",
    [
        "Normal chest CT.",
        "Unremarkable.",
        "No acute abnormality.",
        "Lungs are clear.",
        "Thoracic CT within normal limits",
        "Lungs: clear",
        "NORMAL STUDY",
        "The lungs, heart and mediastinum are normal.",
        "No significant pathology was detected.",
        NOTHING_FOUND,
    ],
)
def test_a_normal_report_is_understood(report: str) -> None:
    assert understood(report)
    assert summarize(report, "positives") == NOTHING_FOUND


def test_a_summary_keeps_the_key_of_what_it_quotes() -> None:
    report = "Pericardium: Small effusion. No thickening.\nNodules: 4 mm, right upper lobe\nPleural effusion: none"
    assert summarize(report, "findings") == "Pericardium: Small effusion. Nodules: 4 mm, right upper lobe."
    for style in STYLES:
        assert said(summarize(report, style)).get("Pericardial effusion") == "P"
