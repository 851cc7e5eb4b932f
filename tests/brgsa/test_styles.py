"""Styles as data, their keys, and the forms that rules write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from refusals import refused

from brgsa.summaries import STYLES, Status, Style, known_names, load_style, read_findings, summarize, summarize_many
from brgsa.summaries.hierarchy import ancestors, canonical, place_of, without_parents
from brgsa.summaries.reader import merge, read
from brgsa.summaries.styles import statement, write
from brgsa.summaries.vocabulary import open_vocabulary

REPORT = (
    "FINDINGS: Hepatosteatosis is seen. Calculi in the gallbladder. Fracture of the left 5th rib. Heart size is increased. "
    "A 4 mm nodule in the right upper lobe. No pleural effusion. Tuberculosis? "
    "IMPRESSION: Pulmonary nodule. Rib fracture."
)


def test_shipped_styles_write_what_their_yaml_says() -> None:
    expected = {
        "positives": "There is cardiomegaly. There is lung nodule. There is rib fracture.",
        "positives+negatives": (
            "There is cardiomegaly. There is lung nodule. There is rib fracture. There is no pleural effusion."
        ),
        "impression": "Pulmonary nodule. Rib fracture.",
        "by-anatomy": (
            "In the lungs, there is lung nodule. In the heart, there is cardiomegaly. "
            "In the abdomen, there is fatty liver and gallstone. In the bones, there is rib fracture."
        ),
        "short": "Cardiomegaly; lung nodule; rib fracture; fatty liver; gallstone.",
    }
    for style, summary in expected.items():
        assert summarize(REPORT, style) == summary
    assert set(STYLES) == {*expected, "report", "findings"}


@pytest.mark.parametrize("style", ["by-anatomy", "short"])
def test_a_summary_in_one_sentence_reads_back_as_what_it_states(style: str) -> None:
    reading = read([summarize(REPORT, style)], open_vocabulary())[0]
    found = {name for name, finding in merge(reading.mentions).items() if finding.status is Status.PRESENT}
    assert without_parents([n for n in known_names() if n in found]) == [
        "Cardiomegaly", "Lung nodule", "Rib fracture", "Fatty liver", "Gallstone",
    ]  # fmt: skip


def test_a_denied_list_reads_back_as_denied() -> None:
    style = replace(load_style("short"), say=("absent",), names=("Pleural effusion", "Lung nodule", "Cardiomegaly"))
    summary = summarize("No pleural effusion. No nodule. Heart size is normal.", style)
    assert summary == "No pleural effusion; no lung nodule; no cardiomegaly."
    assert set(read_findings(summary).values()) == {Status.ABSENT}


def test_an_impression_is_found_after_a_header_or_a_mark_or_is_the_whole() -> None:
    assert (
        summarize('No effusion. "Nodules in both lungs "Emphysema.', "impression")
        == "Nodules in both lungs. Emphysema."
    )
    assert summarize("Nodules in both lungs.", "impression") == "Nodules in both lungs."
    assert summarize_many(["Kein Pneumothorax.", ""], "impression") == ["", ""]


def test_doubt_can_be_said_and_statements_be_few() -> None:
    style = replace(load_style("positives"), say=("present", "uncertain"), names=known_names(), most=2)
    assert summarize(REPORT, style) == "There is cardiomegaly. There is lung nodule."
    doubt = replace(style, say=("uncertain",))
    assert summarize(REPORT, doubt) == "There may be tuberculosis."
    assert read_findings("There may be tuberculosis.") == {"Tuberculosis": Status.UNCERTAIN}


def test_a_key_changes_with_anything_that_changes_a_summary(tmp_path: Path) -> None:
    shipped = load_style("positives")
    assert shipped.key == "positives"
    changes: list[Style] = [
        replace(shipped, instruction="Another."),
        replace(shipped, version=2),
        replace(shipped, say=("present", "absent")),
        replace(shipped, names=("Emphysema",)),
        shipped.with_backend("openai", "a"),
        shipped.with_backend("openai", "b"),
    ]
    keys = {style.key for style in changes}
    assert len(keys) == len(changes)
    assert all(key.startswith("positives-") for key in keys)
    file = tmp_path / "positives.yaml"
    file.write_text("instruction: Say it briefly.\n")
    assert load_style(file).key.startswith("positives-"), "a user's file is never taken for the shipped style"


@pytest.mark.parametrize(
    ("text", "code", "field"),
    [
        ("forms: statements", "unknown-key", "forms"),
        ("form: poem", "style-value", "form"),
        ("say: [maybe]", "style-value", "say"),
        ("say: present", "style-value", "say"),
        ("names: [Gout]", "style-value", "names"),
        ("names: everything", "style-value", "names"),
        ("version: one", "style-value", "version"),
        ("most: 0", "style-value", "most"),
        ("name: ../up", "style-value", "name"),
        ("backend: psychic", "style-value", "backend"),
        ("backend: openai", "style-value", "instruction"),
        ("{backend: openai, form: report, instruction: x}", "style-value", "backend"),
        ("{backend: hybrid, form: sentences, instruction: x}", "style-value", "form"),
        ("- a list", "style-value", "style"),
        ("{", "style-unreadable", "style"),
    ],
)
def test_a_wrong_style_file_is_refused_by_name(tmp_path: Path, text: str, code: str, field: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with refused(code, field=field):
        load_style(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with refused("style-unreadable", field="style", value=str(tmp_path / "no.yaml")):
        load_style(tmp_path / "no.yaml")


REFERENCE = Path(__file__).with_name("reference_classes.txt").read_text().splitlines()


def test_the_open_vocabulary_has_the_references_88_classes() -> None:
    assert len(REFERENCE) == 88
    assert [name for name in REFERENCE if canonical(name) is None] == []


# Words of the 33 that the reader has always taken so.
ALSO = {"Fibrosis": {"Pulmonary fibrosis", "Pulmonary fibrotic sequela"}, "Splenic effusion": {"Pleural effusion"}}


def test_every_name_reads_back_as_itself_and_what_it_implies() -> None:
    for name in known_names():
        present, absent = read([statement(name), statement(name, present=False)], open_vocabulary())
        found = merge(present.mentions)
        assert found[name].status is Status.PRESENT
        assert set(found) - {name} - ancestors(name) <= ALSO.get(name, set()), name
        assert merge(absent.mentions)[name].status is Status.ABSENT, name


@pytest.mark.parametrize(
    ("sentence", "name", "status"),
    [
        ("Liver parenchyma density decreased in favor of steatosis.", "Fatty liver", "present"),
        ("A hypodense nodule of 9 mm in the right thyroid lobe.", "Thyroid nodule", "present"),
        ("There are stones in the gallbladder lumen.", "Gallstone", "present"),
        ("No lytic-destructive lesion was detected in the bone structures.", "Lytic bone lesion", "absent"),
        ("Spleen is of normal size.", "Splenomegaly", None),
        ("The ascending aorta is 42 mm and dilated.", "Aortic dilatation", "present"),
        ("Gallstones: none.", "Gallstone", "absent"),
        ("Ascites: absent.", "Ascites", "absent"),
        ("Findings may be compatible with Covid-19 pneumonia.", "Covid 19 pneumonia", "uncertain"),
        ("Height loss in the T8 vertebra.", "Vertebral compression fracture", "present"),
        ("A cortical cyst of 3 cm in the left kidney.", "Renal cyst", "present"),
    ],
)
def test_the_open_vocabulary_reads_reports(sentence: str, name: str, status: str | None) -> None:
    found = merge(read([sentence], open_vocabulary())[0].mentions)
    assert (found[name].status.value if name in found else None) == status


def test_the_open_vocabulary_changes_nothing_for_the_33() -> None:
    wide, narrow = read([REPORT], open_vocabulary())[0], read([REPORT])[0]
    assert {
        n: f.status for n, f in merge(wide.mentions).items() if n in load_style("positives").names
    } == read_findings(REPORT)
    assert write(wide, load_style("positives")) == write(narrow, load_style("positives"))


def test_hierarchy() -> None:
    assert ancestors("Covid 19 pneumonia") == {"Viral pneumonia", "Pneumonia"}
    assert without_parents(["Hepatosplenomegaly", "Hepatomegaly", "Gallstone"]) == ["Hepatosplenomegaly", "Gallstone"]
    assert canonical("NEPHROLITHIASIS") == canonical("kidney stone") == "Kidney stone"
    assert (place_of("Emphysema"), place_of("Medical material")) == ("the lungs", "elsewhere")
