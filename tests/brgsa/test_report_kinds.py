"""Kinds of reports that readers of others got wrong: each statement with what it says of an abnormality.

P present, A absent, U uncertain, H of the past, "-" not mentioned; several letters where more than one is right.
"""

from __future__ import annotations

import pytest

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

SECTIONS = [
    ("INDICATION: Pulmonary nodule.\n\nFINDINGS: Lungs are clear.\n\nIMPRESSION: Normal chest CT.", "nodule=-"),
    ("Indication: pneumothorax? Findings: Mild atelectasis. Impression: Atelectasis.", "pneumothorax=-, atelectasis=P"),
    ("CLINICAL HISTORY\nEmphysema and lung mass.\n\nFINDINGS\nNo pleural effusion.", "emphysema=-, mass=-, effusion=A"),
    ("**Clinical History:** Emphysema.\n**Findings:** Lung nodule in the right upper lobe.", "emphysema=-, nodule=P"),
    ("## History\nPneumonia\n## Findings\nNo consolidation.", "pneumonia=-, consolidation=A"),
    ("<b>History:</b> lung mass<br><b>Findings:</b> pleural effusion<br>", "mass=-, effusion=P"),
    (
        "HISTORY: cough, r/o pneumonia FINDINGS: The lungs are clear. IMPRESSION: No pneumothorax.",
        "pneumonia=-, pneumothorax=A",
    ),
    ("History: cough and emphysema Findings: A nodule is seen.", "emphysema=-, nodule=P"),
    (
        "clinical information: pneumonia\nfindings: no effusion\nimpression: nodule in the left lung",
        "pneumonia=-, effusion=A, nodule=P",
    ),
    (
        "REASON FOR EXAM: Pleural effusion.\nCOMPARISON: CT of 2019 showed consolidation.\nFINDINGS: Clear lungs.",
        "effusion=-, consolidation=-",
    ),
    (
        "Reason for this examination: evaluate for pneumothorax\nFINDINGS: There is a hiatal hernia.",
        "pneumothorax=-, hernia=P",
    ),
    (
        "FINDINGS: Nodule in the right lung.\nRECOMMENDATION: If pneumonia or pleural effusion develops, repeat CT.",
        "nodule=P, pneumonia=-, effusion=-",
    ),
    (
        "IMPRESSION: Small nodule.\nRecommendations:\n1. Biopsy if a lung mass appears.\n2. Look for lymphadenopathy.",
        "nodule=P, mass=-, nodes=-",
    ),
    ("EXAM: CT CHEST FOR PULMONARY NODULE\nFINDINGS: No nodule is seen.", "nodule=A"),
    (
        "PROCEDURE: CT chest, pneumothorax protocol\nTECHNIQUE: pleural drain in place during the scan\nFINDINGS: Emphysema.",
        "pneumothorax=-, emphysema=P",
    ),
    ("COMPARISON: None.\nLUNGS: Clear.\nPLEURA: Small effusion.\nHEART: Normal size.", "effusion=P, cardiomegaly=A"),
    ("PMH: tuberculosis, emphysema\nCT THORAX FINDINGS: no nodules", "tuberculosis=-, emphysema=-, nodule=A"),
    ("Hx: lung mass resected.\nResult: no mass.", "mass=A"),
    ("Past medical history: emphysema\nDescription: no pleural effusion", "emphysema=-, effusion=A"),
    ("Clinical question: pneumonia?\nReport: Consolidation in the left lower lobe.", "pneumonia=-, consolidation=P"),
    ("Referral diagnosis: pneumothorax\nConclusion: no pneumothorax", "pneumothorax=A"),
    ("Prior findings: consolidation.\nFindings: No consolidation.", "consolidation=A"),
    ("HISTORY - Emphysema\nFINDINGS - No effusion", "emphysema=-, effusion=A"),
    (
        "INDICATION\nShortness of breath, pleural effusion\n\nTECHNIQUE\nHelical CT\n\nFINDINGS\n"
        "Small pericardial effusion.\n\nIMPRESSION\nPericardial effusion.",
        "effusion=-, pericardial=P",
    ),
    ("History: emphysema.\n\nThe lungs show a nodule. No effusion.", "emphysema=-, nodule=P, effusion=A"),
    (
        "Indication: pneumonia.\nNo consolidation is seen. Bronchiectasis is present.",
        "pneumonia=-, consolidation=A, bronchiectasis=P",
    ),
    ("Findings: No nodule. Addendum: A nodule is present in the left lung.", "nodule=P"),
    ("Impression: Stable nodule. Dictated by Dr. Mass, pneumothorax unit.", "nodule=P, mass=-, pneumothorax=-"),
    ("FINDINGS:\nNodule in the right lung.\nElectronically signed by Dr. Emphysema", "nodule=P, emphysema=-"),
    ("Allergies: none. Medications: none. Findings: pleural effusion.", "effusion=P"),
    ("Examination: Thorax CT. Clinical findings: pneumonia. Findings: no nodule.", "pneumonia=-, nodule=A"),
]

PAIRS = [
    ("Pleural effusion: None.\nPneumothorax: No.\nNodules: Absent.", "effusion=A, pneumothorax=A, nodule=A"),
    ("Pleural effusion: none\nLung nodules: present, 4 mm, right upper lobe", "effusion=A, nodule=P"),
    ("Pleural effusion - No; Consolidation - Yes", "effusion=A, consolidation=P"),
    ("Pleural effusion – none\nNodule – yes", "effusion=A, nodule=P"),
    ("Effusion - no", "effusion=A"),
    ("Effusion:none. Atelectasis:none.", "effusion=A, atelectasis=A"),
    ("Effusion: no, pneumothorax: no, nodule: yes", "effusion=A, pneumothorax=A, nodule=P"),
    ("Emphysema: negative\nConsolidation: positive", "emphysema=A, consolidation=P"),
    ("EMPHYSEMA: NEGATIVE. CONSOLIDATION: POSITIVE.", "emphysema=A, consolidation=P"),
    ("Emphysema: neg.\nConsolidation: pos.", "emphysema=A, consolidation=P"),
    ("Pleural effusion: 0\nNodule: 1 (6 mm)", "effusion=A, nodule=P"),
    ("Nodules = 3\nEffusion = 0", "nodule=P, effusion=A"),
    ("No. of nodules: 3", "nodule=P"),
    ("Number of nodules: 0", "nodule=A"),
    ("Pleural effusion\tno\nEmphysema\tyes", "effusion=A, emphysema=P"),
    ("Pleural effusion ........ no\nEmphysema ........ yes", "effusion=A, emphysema=P"),
    ("Pleural effusion     None\nEmphysema     Present", "effusion=A, emphysema=P"),
    ("Pleural effusion? No.\nNodule? Yes.", "effusion=A, nodule=P"),
    ("Is there a pleural effusion? No", "effusion=A"),
    ("Pleural effusion (-), nodule (+)", "effusion=A, nodule=P"),
    ("(-) effusion\n(+) nodule", "effusion=A, nodule=P"),
    ("Pleural effusion -ve, consolidation +ve", "effusion=A, consolidation=P"),
    ("Ø effusion", "effusion=A"),
    ("Pleural effusion:", "effusion=-"),
    ("Pleural effusion: n/a\nLungs: clear", "effusion=-"),
    ("Pleural effusion: not assessed\nLungs: clear", "effusion=-U"),
    ("Pleural effusion: -\nLungs: clear", "effusion=-A"),
    ("Pleural effusion: not seen", "effusion=A"),
    ("Pneumonia: cannot be excluded", "pneumonia=U"),
    ("Pneumonia: possible", "pneumonia=U"),
    ("Pneumonia: ?", "pneumonia=U"),
    ("Pneumothorax: resolved", "pneumothorax=H"),
    ("Nodules: no change", "nodule=P"),
    ("Nodule: unchanged, 4 mm", "nodule=P"),
    ("Pleural effusion: small, left", "effusion=P"),
    ("Pleural effusion: No significant pleural effusion.", "effusion=A"),
    ("Pleural effusion: right: none, left: none", "effusion=A"),
    ("Pleural effusion: right: none, left: small", "effusion=P"),
    (
        "Pleural effusion: no. Pneumothorax: none. Consolidation: right lower lobe.",
        "effusion=A, pneumothorax=A, consolidation=P",
    ),
    ("Pleural effusion: none, nodule in the right lung", "effusion=A, nodule=P"),
    (
        "Pleura: No effusion. No pneumothorax.\nLungs: Clear.\nHeart: Normal size.",
        "effusion=A, pneumothorax=A, cardiomegaly=A",
    ),
    ("Pericardium: Small effusion.", "pericardial=P, effusion=-"),
    ("Pericardium: Normal. No effusion.", "pericardial=A, effusion=-"),
    ("Lungs: 4 mm nodule. No consolidation.", "nodule=P, consolidation=A"),
    ("Liver: 3 cm mass.\nLungs: no mass.", "mass=A"),
    ("Thyroid: Nodule on the left.\nPleura: clear.", "nodule=-"),
    ("Coronary arteries: heavy calcification", "coronary=P"),
    ("Ribs: No fracture.", "fracture=A"),
    ("Airways: wall thickening", "airways=P"),
    (
        "Pleura:\n- No effusion\n- No pneumothorax\nLungs:\n- Nodule in the right upper lobe",
        "effusion=A, pneumothorax=A, nodule=P",
    ),
    (
        "There is no:\n- pleural effusion\n- pneumothorax\n- consolidation",
        "effusion=A, pneumothorax=A, consolidation=A",
    ),
    ("No evidence of:\n1. pneumonia\n2. pleural effusion", "pneumonia=A, effusion=A"),
    ("Negative for: effusion, pneumothorax", "effusion=A, pneumothorax=A"),
    ("Absent: effusion, pneumothorax. Present: nodule.", "effusion=A, pneumothorax=A, nodule=P"),
    ("Pertinent negatives: effusion, nodule, mass", "effusion=A, nodule=A, mass=A"),
    ("Differential diagnosis: pneumonia, tuberculosis", "pneumonia=U, tuberculosis=U"),
    ("[ ] Pleural effusion\n[x] Lung nodule", "effusion=-A, nodule=P"),
    ("- [ ] Emphysema\n- [X] Consolidation", "emphysema=-A, consolidation=P"),
    ("☐ Emphysema\n☒ Consolidation", "emphysema=-A, consolidation=P"),
    ("| Finding | Present |\n|---|---|\n| Emphysema | no |\n| Lung nodule | yes |", "emphysema=A, nodule=P"),
    (
        "<table><tr><td>Emphysema</td><td>none</td></tr><tr><td>Nodule</td><td>present</td></tr></table>",
        "emphysema=A, nodule=P",
    ),
    ('{"Pleural effusion": "none", "Lung nodule": "present", "Emphysema": false}', "effusion=A, nodule=P, emphysema=A"),
    ("Heart size: normal", "cardiomegaly=A"),
    ("Cardiomegaly: yes", "cardiomegaly=P"),
    ("Consolidation/atelectasis: none", "consolidation=A, atelectasis=A"),
]

LISTS = [
    (
        "1. No pleural effusion. 2. Nodule in the right lung. 3. No pneumothorax.",
        "effusion=A, nodule=P, pneumothorax=A",
    ),
    ("1. No pleural effusion 2. Nodule in the right lung 3. Emphysema", "effusion=A, nodule=P, emphysema=P"),
    ("1) No pleural effusion\n2) Nodule\n3) Emphysema", "effusion=A, nodule=P, emphysema=P"),
    ("(1) No pleural effusion (2) Nodule in the lung", "effusion=A, nodule=P"),
    ("- No effusion\n- nodule in the right lung\n- no mass", "effusion=A, nodule=P, mass=A"),
    ("* No effusion\n* Nodule\n", "effusion=A, nodule=P"),
    ("• No effusion • Nodule in the left lung • No mass", "effusion=A, nodule=P, mass=A"),
    ("a) No effusion\nb) Emphysema", "effusion=A, emphysema=P"),
    ("No pleural effusion.Nodule in the right lung.No pneumothorax.", "effusion=A, nodule=P, pneumothorax=A"),
    ("no pleural effusion.nodule in the right lung.", "effusion=A, nodule=P"),
    ("no pleural effusion. nodule in the right lung. no mass.", "effusion=A, nodule=P, mass=A"),
    ("No pleural effusionNodule in the right lung", "effusion=A, nodule=P"),
    ("No pleural effusion\nNodule in the right lung\nNo pneumothorax", "effusion=A, nodule=P, pneumothorax=A"),
    ("No pleural effusion No pneumothorax There is a nodule in the lung.", "effusion=A, pneumothorax=A, nodule=P"),
    ("No effusion;nodule present", "effusion=A, nodule=P"),
    ("NO PLEURAL EFFUSION. NODULE IN THE RIGHT UPPER LOBE. NO PNEUMOTHORAX.", "effusion=A, nodule=P, pneumothorax=A"),
    (
        "THERE IS NO CONSOLIDATION,\nPLEURAL EFFUSION OR\nPNEUMOTHORAX. EMPHYSEMA IS PRESENT.",
        "consolidation=A, effusion=A, pneumothorax=A, emphysema=P",
    ),
    ("No pleural\neffusion. Small pericardial\r\neffusion is seen.", "effusion=A, pericardial=P"),
    ("There is no evidence of\nPneumothorax.", "pneumothorax=A"),
    ("No pneumo-\nthorax. A no-\ndule is seen in the lung.", "pneumothorax=A, nodule=P"),
    ("Ground-\nglass opacity in the right lung.", "opacity=P"),
    ("No pleural effusion.\\nNodule in the right lung.\\r\\nNo mass.", "effusion=A, nodule=P, mass=A"),
    ("No pleural effusion._x000D_\nNodule in the right lung.", "effusion=A, nodule=P"),
    ("No pleural effusion.\\.br\\Nodule in the right lung.", "effusion=A, nodule=P"),
    ("No pleural effusion.<br/>Nodule in the right lung.<br>No mass.", "effusion=A, nodule=P, mass=A"),
    ("&lt;p&gt;No pleural effusion&lt;/p&gt;&lt;p&gt;Nodule&lt;/p&gt;", "effusion=A, nodule=P"),
    ("<ul><li>No pleural effusion</li><li>Nodule</li></ul>", "effusion=A, nodule=P"),
    ("No&nbsp;pleural&nbsp;effusion. Nodule &gt; 5 mm in the lung.", "effusion=A, nodule=P"),
    ("**No** pleural effusion. *Nodule* in the right lung.", "effusion=A, nodule=P"),
    ("no pleural effusion period nodule in the right lung period", "effusion=A, nodule=P"),
    (
        "no pleural effusion comma pneumothorax or mass period new line nodule in the left lung period",
        "effusion=A, pneumothorax=A, mass=A, nodule=P",
    ),
    ("No pleural effusion full stop Nodule in the lung full stop", "effusion=A, nodule=P"),
    ("No pleural effusion. New paragraph Nodule in the lung.", "effusion=A, nodule=P"),
    ("No\u00a0pleural\u200b effusion.\u2028Nodule in the lung.", "effusion=A, nodule=P"),
    (
        "No pleural ef\u00adfusion. Consolidation and \ufb01brosis in the lung.",
        "effusion=A, consolidation=P, fibrosis=P",
    ),
]

DENIALS = [
    ("w/o pleural effusion", "effusion=A"),
    ("Nodule w/o calcification. Neg for pneumothorax.", "nodule=P, pneumothorax=A"),
    ("Negative for pleural effusion.", "effusion=A"),
    ("There isn't any pleural effusion.", "effusion=A"),
    ("There's no pneumothorax.", "pneumothorax=A"),
    ("Pleural effusion isn\u2019t seen.", "effusion=A"),
    ("Nodules weren't seen in the lung.", "nodule=A"),
    ("The patient doesn't have pleural effusion.", "effusion=A"),
    ("We don't see a pneumothorax.", "pneumothorax=A"),
    ("No e/o consolidation.", "consolidation=A"),
    ("Lack of pleural effusion.", "effusion=A"),
    ("Nil effusion.", "effusion=A"),
    ("Pleural effusion is not appreciated.", "effusion=A"),
    ("No definite nodule is identified.", "nodule=A"),
    ("Pneumothorax is ruled out.", "pneumothorax=A"),
    ("The previously suspected pneumothorax has been excluded.", "pneumothorax=AH"),
    ("Pneumonia has been ruled out.", "pneumonia=A"),
    ("Cannot rule out pneumonia.", "pneumonia=U"),
    ("Can't rule out pneumonia.", "pneumonia=U"),
    ("Can not exclude pneumonia.", "pneumonia=U"),
    ("Pneumonia can't be excluded.", "pneumonia=U"),
    ("This does not exclude pneumonia.", "pneumonia=U"),
    ("Unable to exclude pneumonia.", "pneumonia=U"),
    ("r/o pneumonia", "pneumonia=U"),
    ("?pneumonia in the left lower lobe", "pneumonia=U"),
    ("Questionable nodule in the right lung.", "nodule=U"),
    ("Equivocal pleural effusion.", "effusion=U"),
    ("Cannot exclude a small pneumothorax. No effusion.", "pneumothorax=U, effusion=A"),
    ("Pneumonia versus atelectasis.", "pneumonia=U, atelectasis=U"),
    ("Concerning for pneumonia.", "pneumonia=U"),
    ("No interval change in the pleural effusion.", "effusion=P"),
    ("No interval change in the right upper lobe nodule.", "nodule=P"),
    ("No significant interval change in size of the nodule.", "nodule=P"),
    ("There is no change in the known emphysema.", "emphysema=P"),
    ("Without interval change of the lung nodule.", "nodule=P"),
    ("No progression of the pulmonary fibrosis.", "fibrosis=P"),
    ("No improvement in the pleural effusion.", "effusion=P"),
    ("The nodule has not changed.", "nodule=P"),
    ("The nodule has not increased in size.", "nodule=P"),
    ("The nodule did not grow.", "nodule=P"),
    ("The pleural effusion has not resolved.", "effusion=P"),
    ("Pleural effusion not significantly changed.", "effusion=P"),
    ("Pneumothorax has not yet resolved.", "pneumothorax=P"),
    ("Stable nodule in the right lung.", "nodule=P"),
    ("Unchanged pleural effusion, no pneumothorax.", "effusion=P, pneumothorax=A"),
    ("Pleural effusion is no longer seen.", "effusion=H"),
    ("There is no longer a pleural effusion.", "effusion=HA"),
    ("No longer visible: pneumothorax.", "pneumothorax=HA"),
    ("Interval resolution of the pleural effusion.", "effusion=HA"),
    ("The pneumonia has cleared.", "pneumonia=HA"),
    ("Resolved pneumonia.", "pneumonia=H"),
    ("Father had emphysema.", "emphysema=-H"),
    ("Mother with tuberculosis. No nodule.", "tuberculosis=-H, nodule=A"),
    ("Family history of lung mass. No effusion.", "mass=-H, effusion=A"),
    ("The patient's brother has tuberculosis.", "tuberculosis=-H"),
    ("s/p resection of a lung mass", "mass=H"),
    ("S/P drainage of pleural effusion.", "effusion=H"),
    ("h/o pneumonia", "pneumonia=H"),
    ("Prior CT showed consolidation.", "consolidation=H"),
    ("Previous CT demonstrated a pneumothorax.", "pneumothorax=H"),
    ("No effusion, mild atelectasis.", "effusion=A, atelectasis=P"),
    ("No effusion, 5 mm nodule in the right lung.", "effusion=A, nodule=P"),
    ("No pneumothorax, stable pleural effusion.", "pneumothorax=A, effusion=P"),
    ("No effusion, pneumothorax, or consolidation.", "effusion=A, pneumothorax=A, consolidation=A"),
    (
        "No consolidation, mass, nodule, pleural effusion or pneumothorax.",
        "consolidation=A, mass=A, nodule=A, effusion=A, pneumothorax=A",
    ),
    ("No pneumothorax but pleural effusion.", "pneumothorax=A, effusion=P"),
    ("No pneumothorax; pleural effusion.", "pneumothorax=A, effusion=P"),
    ("No consolidation other than atelectasis.", "consolidation=A, atelectasis=P"),
    ("No acute findings apart from a hiatal hernia.", "hernia=P"),
    ("Not only pleural effusion but also pneumothorax.", "effusion=P, pneumothorax=P"),
    ("No doubt there is a pleural effusion.", "effusion=P"),
    ("Nodule is present, effusion is not.", "nodule=P, effusion=A"),
    ("If there is pneumonia, follow-up is advised. No effusion.", "pneumonia=-UA, effusion=A"),
    ("Nodule without effusion.", "nodule=P, effusion=A"),
    ("Neither pneumothorax nor effusion.", "pneumothorax=A, effusion=A"),
    ("Free of pneumothorax.", "pneumothorax=A"),
    ("Lungs clear of consolidation.", "consolidation=A"),
    ("Nonspecific nodule in the right lung, not suspicious.", "nodule=P"),
    ("Non-calcified nodule in the lung.", "nodule=P"),
    ("No new nodule.", "nodule=A-"),
    ("Pleural effusion, not previously seen.", "effusion=P"),
    ("New pleural effusion, which was not present on the prior study.", "effusion=P"),
]

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

MIXED = [
    (
        "Befund: Kein Pneumothorax.\nFindings: There is a nodule in the right lung. No pleural effusion is seen.",
        "nodule=P, effusion=A, pneumothorax=-A",
    ),
    (
        "There is no pleural effusion. The heart is of normal size. Kein Pneumothorax.",
        "effusion=A, cardiomegaly=A, pneumothorax=-A",
    ),
    ("Pas de consolidation. The lungs show emphysema.", "consolidation=-A, emphysema=P"),
]


def said(report: str) -> dict[str, str]:
    return {name: LETTERS[status] for name, status in read_findings(report).items()}


@pytest.mark.parametrize(("report", "wanted"), [*SECTIONS, *PAIRS, *LISTS, *DENIALS, *MIXED])
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
