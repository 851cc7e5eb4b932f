"""Reports and labels from tables beside the archive, joined on ids; and the tables that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from archives import read_items
from refusals import refused

from brgsa_platform.layouts import Item, read_archive

ROWS = [{"volume_id": "a", "report": "Clear lungs."}, {"volume_id": "b", "report": "Effusion, left."}]
EXPECTED = {"a": "Clear lungs.", "b": "Effusion, left.", "c": ""}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Volumes a and c of scan s1, b of s2; no reports."""
    table = pd.DataFrame({"volume": ["a.nii.gz", "b.nii.gz", "c.npz"], "scan_id": ["s1", "s2", "s1"]})
    table.to_csv(tmp_path / "scans.csv", index=False)
    return tmp_path / "scans.csv"


def read(manifest: Path, reports: Path | None = None, labels: Path | None = None) -> dict[str, Item]:
    return {item.volume_id: item for item in read_items(manifest, "manifest", 0.1, reports=reports, labels=labels)}


def texts(manifest: Path, reports: Path) -> dict[str, str]:
    return {name: item.report for name, item in read(manifest, reports).items()}


WRITERS: dict[str, Callable[[Path], object]] = {
    "r.csv": lambda p: pd.DataFrame(ROWS).to_csv(p, index=False),
    "r.parquet": lambda p: pd.DataFrame(ROWS).to_parquet(p),
    "r.json": lambda p: p.write_text(json.dumps(ROWS)),
    "lines.json": lambda p: p.write_text("\n".join(map(json.dumps, ROWS)) + "\n"),
    "r.jsonl": lambda p: p.write_text("\n".join(map(json.dumps, ROWS))),
    "object.json": lambda p: p.write_text(json.dumps({row["volume_id"]: row["report"] for row in ROWS})),
}


@pytest.mark.parametrize("name", WRITERS)
def test_reports_from_every_kind_of_table(name: str, manifest: Path, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert texts(manifest, tmp_path / name) == EXPECTED


def save(path: Path, **columns: Any) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_reports_join_on_scans_and_on_ct_rate_s_columns(manifest: Path, tmp_path: Path) -> None:
    by_scan = save(tmp_path / "r.csv", scan_id=["s1", "s2"], report=["One.", "Two."])
    assert texts(manifest, by_scan) == {"a": "One.", "b": "Two.", "c": "One."}
    findings = {"Findings_EN": ["Clear.", "Not given."], "Impressions_EN": ["Normal.", "Effusion."]}
    ct_rate = save(tmp_path / "r.csv", VolumeName=["a.nii.gz", "c.npz"], **findings)
    assert texts(manifest, ct_rate) == {
        "a": "Findings: Clear. Impression: Normal.",
        "b": "",
        "c": "Impression: Effusion.",
    }
    # A volume's own row counts before its scan's.
    both = save(tmp_path / "r.csv", volume_id=["a", "b"], scan_id=["s1", "s2"], report=["One.", "Two."])
    assert texts(manifest, both) == {"a": "One.", "b": "Two.", "c": "One."}


def test_a_given_table_wins_over_the_manifest(tmp_path: Path) -> None:
    manifest = save(tmp_path / "m.csv", volume=["a.nii", "b.nii"], report=["Old.", "Kept."], Pneumonia=[0, 0])
    reports = save(tmp_path / "r.csv", volume_id=["a"], report=["New."])
    labels = save(tmp_path / "l.csv", volume_id=["a"], Pneumonia=[1], Empyema=[0])
    items = read(manifest, reports, labels)
    assert {name: item.report for name, item in items.items()} == {"a": "New.", "b": "Kept."}
    assert items["a"].labels == {"Pneumonia": 1, "Empyema": 0}
    assert items["b"].labels == {"Pneumonia": 0}


def test_what_a_given_table_replaces_is_counted(tmp_path: Path) -> None:
    rows = {
        "volume": ["a.nii", "b.nii", "c.nii"],
        "report": ["Old.", "Same.", ""],
        "Pneumonia": [0, 1, ""],
        "Empyema": 1,
    }
    manifest = save(tmp_path / "m.csv", **rows)
    reports = save(tmp_path / "r.csv", volume_id=["a", "b", "c"], report=["New.", "Same.", "First."])
    labels = save(tmp_path / "l.csv", volume_id=["a", "b", "c"], Pneumonia=[1, 1, 0], Empyema=["", 1, 1])
    accounts = read_archive(manifest, "manifest", 0.1, reports=reports, labels=labels).accounts
    assert [(account.role, account.replaced) for account in accounts] == [
        ("manifest", 0),
        ("reports", 1),
        ("labels", 1),
    ]
    assert "replaces" in accounts[1].line()


def test_a_label_file_beside_a_manifest_is_named_where_nobody_asked_for_it(tmp_path: Path) -> None:
    manifest = save(tmp_path / "m.csv", volume=["a.nii"], report=["x"])
    lying = save(tmp_path / "my_labels.csv", volume_id=["a"], Pneumonia=[1])
    (unused,) = [account for account in read_archive(manifest, "manifest", 0.1).accounts if account.unused]
    assert unused.path == str(lying)
    assert "my_labels.csv" in unused.line()
    assert not [a for a in read_archive(manifest, "manifest", 0.1, labels=lying).accounts if a.unused]


def test_a_reconstruction_has_its_scan_s_report_where_the_table_names_scans(manifest: Path, tmp_path: Path) -> None:
    both = save(tmp_path / "r.csv", volume_id=["a", "b"], scan_id=["s1", "s2"], report=["One.", "Two."])
    account = read_archive(manifest, "manifest", 0.1, reports=both).accounts[-1]
    assert (account.matched, account.without) == (2, 0)
    # Of two texts for one scan none is taken for its third reconstruction.
    header = ("volume", "scan_id")
    table = pd.DataFrame([["a.nii", "s"], ["b.nii", "s"], ["c.nii", "s"]], columns=header)
    table.to_csv(tmp_path / "m.csv", index=False)
    two = save(tmp_path / "r.csv", volume_id=["a", "b"], scan_id=["s", "s"], report=["One.", "Two."])
    assert texts(tmp_path / "m.csv", two) == {"a": "One.", "b": "Two.", "c": ""}


@pytest.mark.parametrize("nothing", ["nan", "NULL", "N/A"])
def test_a_word_for_nothing_is_no_report(nothing: str, tmp_path: Path) -> None:
    save(tmp_path / "m.csv", volume=["a.nii"], report=["Clear lungs."])
    given = save(tmp_path / "r.csv", volume_id=["a"], report=[nothing])
    assert texts(tmp_path / "m.csv", given) == {"a": "Clear lungs."}


def test_ids_that_excel_shortened_are_named(tmp_path: Path) -> None:
    save(tmp_path / "m.csv", volume=["1234567890123.nii"], report=["Clear lungs."])
    given = save(tmp_path / "r.csv", volume_id=["1.23457E+12"], report=["A nodule."])
    with refused("unmatched-reports") as refusal:
        texts(tmp_path / "m.csv", given)
    assert "as text" in str(refusal.value)


@pytest.mark.parametrize("ids", [["1", "2", "3"], ["3", "1", "2"]])
def test_a_cell_that_holds_another_volume_s_row_is_refused(ids: list[str], tmp_path: Path) -> None:
    """A quotation mark is closed some rows below, and short numbers are no sign of a row by themselves."""
    source = tmp_path / "scans.csv"
    source.write_text("volume\n" + "".join(f"{name}.nii\n" for name in ids))
    table = tmp_path / "r.csv"
    table.write_text(f'VolumeName,report\n{ids[0]},"Clear.\n{ids[1]},Nodule.\n{ids[2]},Effusion."\n')
    with refused("unreadable-table", value=1):
        read(source, table)
    lists = "1, nodule\n2, effusion"
    table.write_text("VolumeName,report\n" + "".join(f'{name},"{lists}"\n' for name in ids))
    assert texts(source, table) == dict.fromkeys(ids, lists)


def test_labels_join_on_scans(manifest: Path, tmp_path: Path) -> None:
    reports = save(tmp_path / "r.csv", scan_id=["s1"], report=["One."])
    labels = save(tmp_path / "l.csv", scan_id=["s1", "s2"], **{"Lung nodule": ["1", ""]})
    items = read(manifest, reports, labels)
    assert {name: item.labels["Lung nodule"] for name, item in items.items()} == {"a": 1, "b": None, "c": 1}


SECRET = "Mr Secretname"
BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "absent": ("r.csv", lambda p: None, "unreadable-table"),
    "empty": ("r.csv", lambda p: p.write_text(""), "empty-table"),
    "no reports": ("r.csv", lambda p: save(p, volume_id=["a"], words=[SECRET]), "missing-column"),
    "no ids": ("r.csv", lambda p: save(p, number=["a"], report=[SECRET]), "no-ids"),
    "two texts": ("r.csv", lambda p: save(p, volume_id=["a", "a"], report=["x", SECRET]), "conflicting-ids"),
    "other ids": ("r.csv", lambda p: save(p, volume_id=["z"], report=[SECRET]), "unmatched-reports"),
    "broken json": ("r.json", lambda p: p.write_text('{"a": "' + SECRET), "unreadable-table"),
    "json of numbers": ("r.json", lambda p: p.write_text("[1, 2]"), "unreadable-table"),
    "broken parquet": ("r.parquet", lambda p: p.write_bytes(b"PAR1" + SECRET.encode()), "unreadable-table"),
    "binary": ("r.csv", lambda p: p.write_bytes(b"\xff\xfe\x00\x80,\n"), "unreadable-table"),
}


@pytest.mark.parametrize("case", BAD)
def test_reports_that_cannot_be_used(case: str, manifest: Path, tmp_path: Path) -> None:
    name, write, code = BAD[case]
    write(tmp_path / name)
    with refused(code) as refusal:
        read(manifest, tmp_path / name)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "Secretname" not in str(refusal.value)


def test_labels_that_cannot_be_used(manifest: Path, tmp_path: Path) -> None:
    reports, file = save(tmp_path / "r.csv", scan_id=["s1"], report=["One."]), tmp_path / "l.csv"
    for columns, code, field, value in (
        ({"volume_id": ["a"], "Broken heart": [1]}, "no-labels", str(file), None),
        ({"name": ["a"], "Lung nodule": [1]}, "no-ids", str(file), None),
        ({"volume_id": ["a", "b"], "Lung nodule": [1, 2]}, "bad-label", "Lung nodule", "2"),
        ({"volume_id": ["a", "a"], "Lung nodule": [1, 0]}, "conflicting-ids", str(file), 2),
    ):
        with refused(code, field=field, value=value):
            read(manifest, reports, save(file, **columns))


@pytest.mark.shared
def test_the_real_label_table_is_understood(shared_data: Path, tmp_path: Path) -> None:
    real = shared_data / "ct-rate" / "valid_labels.csv"
    names = pd.read_csv(real)["VolumeName"].tolist()
    manifest = save(tmp_path / "m.csv", volume=names, report=["x"] * len(names))
    items = read(manifest, labels=real)
    assert len(items) == len(names) == 3039
    assert all(len(item.labels) == 18 and None not in item.labels.values() for item in items.values())
