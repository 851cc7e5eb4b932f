"""A sample for a radiologist, and what is made of the verdicts."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import save_manifest, save_table, write_store
from refusals import refused

from brgsa.summaries import summarize_many
from brgsa_platform.store.store import Store, summary_file
from brgsa_platform.summaries.review import make_review, read_review

FINDINGS = [
    "Emphysema in both lungs",
    "A nodule in the right lung",
    "Pleural effusion on the left",
    "No pleural effusion",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 reports: emphysema in two, nodules in half of them; written without Ray."""
    folder = tmp_path_factory.mktemp("reviewed")
    manifest = save_manifest(folder / "in", 24)
    reports = [f"{FINDINGS[0] if i in (3, 7) else FINDINGS[1 + i % 3]}. Scan <{i}>." for i in range(24)]
    rows: list[list[object]] = [[f"s{i:03d}.nii.gz", text, "train"] for i, text in enumerate(reports)]
    save_table(manifest, ("volume", "report", "split"), rows)
    out = write_store(manifest, folder / "store")
    texts = Store.open(out).texts("report")
    file = out / summary_file("positives+negatives")
    file.parent.mkdir(parents=True)
    summaries = summarize_many(list(texts.values()), "positives+negatives")
    pq.write_table(pa.table({"volume_id": list(texts), "summary": summaries}), file)
    return out


STYLE = "positives+negatives"


def filled(sheet: Path, verdict: dict[tuple[str, str], str]) -> Path:
    rows = list(csv.DictReader(sheet.open()))
    for row in rows:
        row["verdict"] = verdict.get((row["volume_id"], row["abnormality"]), "")
    with sheet.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return sheet


def test_a_sample_holds_the_rare_and_every_row_can_be_filled(store: Path, tmp_path: Path) -> None:
    cases = make_review(store, STYLE, tmp_path, count=6)
    assert len(cases) == 6
    assert {"s003", "s007"} <= {case.volume for case in cases}, "the rarest come first"
    assert [case.volume for case in make_review(store, STYLE, tmp_path, count=6)] == [case.volume for case in cases]
    rows = list(csv.DictReader((tmp_path / "review.csv").open()))
    assert len(rows) == sum(len(case.names) for case in cases)
    assert {row["verdict"] for row in rows} == {""}
    page = (tmp_path / "review.html").read_text()
    assert page.count("<section>") == 6
    assert page.count("<tr ") == len(rows)
    assert "Scan &lt;3&gt;" in page
    assert "There is emphysema" not in page, "the reader does not see the summary"
    assert "http" not in page


def test_verdicts_are_read_back(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_review(store, STYLE, tmp_path, count=24)
    texts = Store.open(store).texts("report")
    verdict = {}
    for volume, report in texts.items():
        for word, name in (("Emphysema", "Emphysema"), ("nodule", "Lung nodule"), ("effusion", "Pleural effusion")):
            said = "absent" if "No pleural" in report else "present"
            verdict[volume, name] = said if word in report else "not mentioned"
    found = read_review(store, STYLE, filled(tmp_path / "review.csv", verdict))
    assert found.by_name["Lung nodule"].value == 1.0
    assert found.errors[""].keys() == {"right"}
    verdict["s003", "Emphysema"], verdict["s007", "Emphysema"] = "absent", "not mentioned"
    nodule = next(volume for volume, report in texts.items() if "effusion on" in report)
    verdict[nodule, "Lung nodule"] = "present"
    denied = next(volume for volume, report in texts.items() if "No pleural" in report)
    verdict[denied, "Pleural effusion"] = "present"
    found = read_review(store, STYLE, filled(tmp_path / "review.csv", verdict))
    assert found.errors["Emphysema"] == {"flipped": 1, "invented": 1} | found.errors["Emphysema"]
    assert found.errors["Pleural effusion"]["flipped"] == 1
    assert found.by_name["Pleural effusion"].value < 1.0
    assert found.by_name[""].low < found.by_name[""].value < found.by_name[""].high
    found.print()
    shown = capsys.readouterr().out
    assert "kappa" in shown
    assert "Scan" not in shown


def test_refusals(store: Path, tmp_path: Path) -> None:
    make_review(store, STYLE, tmp_path, count=4)
    sheet = tmp_path / "review.csv"
    with refused("no-verdicts", field="verdict"):
        read_review(store, STYLE, sheet)
    text = sheet.read_text()
    first = text.splitlines()[1]
    for field, wrong in (
        ("volume_id", first.replace("s0", "x0")),
        ("verdict", first + "perhaps"),
        ("abnormality", "1,s003,Gout,present"),
    ):
        sheet.write_text(text.replace(first, wrong, 1))
        with refused("review-row", field=field, value=2):
            read_review(store, STYLE, sheet)
    sheet.write_text("case,volume_id\n1,s003\n")
    with refused("review-unreadable", field="abnormality"):
        read_review(store, STYLE, sheet)
    with refused("review-unreadable", field=str(tmp_path / "none.csv")):
        read_review(store, STYLE, tmp_path / "none.csv")
    (tmp_path / "file").write_text("")
    with refused("review-unwritable", field="--out"):
        make_review(store, STYLE, tmp_path / "file")
