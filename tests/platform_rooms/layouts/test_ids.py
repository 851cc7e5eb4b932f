"""Who is whose: ids by kind, in one form, never joined by accident; the same in every format."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from tablewriter import FORMATS, write_table

from brgsa_platform.layouts import Item, Reading, read_archive
from brgsa_platform.layouts.ids import canonical_id, loose_id

HEADER = ("volume", "report", "scan_id", "patient_id")


def manifest(folder: Path, *rows: tuple[str, str, str]) -> Path:
    """A manifest of (file, scan, patient)."""
    made = [(volume, "Own report.", scan, patient) for volume, scan, patient in rows]
    return write_table(folder / "scans", HEADER, made)


def read(source: Path, labels: Path) -> tuple[dict[str, int | None], Reading]:
    """volume_id → its label of a nodule, where it has one."""
    reading = read_archive(source, "manifest", 0.1, labels=labels)
    return {i.volume_id: i.labels["Lung nodule"] for i in reading.items if i.labels}, reading


def labels(folder: Path, key: str, ids: list[Any], form: str = "csv") -> Path:
    """A table that gives the first id a nodule, and the others none."""
    return write_table(
        folder / "labels", (key, "Lung nodule"), [(name, int(i == 0)) for i, name in enumerate(ids)], form
    )


# --- one form ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("written", [[7, 8], [7.0, 8.0], [" 7", "8 "], ["7.0", "8.0"], ["7", "8"]])
def test_an_id_has_one_form_in_every_format(form: str, written: list[Any], tmp_path: Path) -> None:
    source = manifest(tmp_path, ("a.nii.gz", "7", "p"), ("b.nii.gz", "8", "q"))
    assert read(source, labels(tmp_path, "scan_id", written, form))[0] == {"a": 1, "b": 0}


@pytest.mark.parametrize("form", FORMATS)
def test_leading_zeros_stay_as_they_are_written(form: str, tmp_path: Path) -> None:
    source = manifest(tmp_path, ("a.nii.gz", "007", "p"), ("b.nii.gz", "008", "q"))
    assert read(source, labels(tmp_path, "scan_id", ["007", "008"], form))[0] == {"a": 1, "b": 0}
    # Excel has made numbers of them: nothing is joined, and the refusal says why.
    with refused("unmatched-labels", value=2):
        read(source, labels(tmp_path, "scan_id", [7, 8], form))


@pytest.mark.parametrize("other", ["7", "S7", "s07", "s7.50", "s7.00"])
def test_ids_that_differ_by_spelling_are_reported_and_not_joined(other: str, tmp_path: Path) -> None:
    own = {"7": "07", "s7.50": "s7.5"}.get(other, "s7")
    source = manifest(tmp_path, ("a.nii.gz", own, "p"), ("b.nii.gz", "t8", "q"))
    found, reading = read(source, labels(tmp_path, "scan_id", ["t8", other]))
    assert found == {"b": 1}
    account = reading.accounts[-1]
    assert (account.rows, account.matched, account.without) == (2, 1, 1)
    assert account.near == int(other != "s7.50")
    assert account.lost == [(2, other)]
    assert other not in account.line().replace("2 rows", "")


@given(st.text(min_size=1, max_size=12))
def test_the_one_form_is_stable(text: str) -> None:
    assert canonical_id(canonical_id(text)) == canonical_id(text)
    assert loose_id(canonical_id(text)) == loose_id(text)


def test_ids_of_one_manifest_that_are_alike_are_reported_and_stay_apart(tmp_path: Path) -> None:
    source = manifest(tmp_path, ("a.nii.gz", "s7", "p"), ("b.nii.gz", "S07", "p"), ("c.nii.gz", "s8", "q"))
    reading = read_archive(source, "manifest", 0.1)
    assert [item.scan_id for item in reading.items] == ["s7", "S07", "s8"]
    assert reading.accounts[0].alike == 1
    assert "1 ids differ" in reading.accounts[0].line()


def test_accents_have_one_form(tmp_path: Path) -> None:
    source = manifest(tmp_path, ("Mu\u0308ller.nii.gz", "s1", "p"), ("b.nii.gz", "s2", "q"))  # as a Mac names the file
    assert read(source, labels(tmp_path, "VolumeName", ["M\u00fcller.nii.gz", "b.nii.gz"]))[0] == {"Müller": 1, "b": 0}


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_a_column_s_ids_are_of_the_kind_that_its_name_says(tmp_path: Path) -> None:
    # Volumes and scans are numbered alike and crosswise.
    source = manifest(tmp_path, ("1.nii.gz", "2", "p"), ("2.nii.gz", "1", "q"))
    assert read(source, labels(tmp_path, "volume_id", ["1", "2"]))[0] == {"1": 1, "2": 0}
    assert read(source, labels(tmp_path, "scan_id", ["1", "2"]))[0] == {"1": 0, "2": 1}


def test_ids_of_another_kind_than_the_column_says_are_found(tmp_path: Path) -> None:
    source = manifest(tmp_path, ("a.nii.gz", "s1", "p"), ("b.nii.gz", "s2", "q"))
    for ids in (["a.nii.gz", "b"], ["s1", "s2"], ["p", "q"], ["deep/a.nii.gz", "b.nii.gz"]):
        found, reading = read(source, labels(tmp_path, "AccessionNo", ids))
        assert found == {"a": 1, "b": 0}, ids
    assert reading.accounts[-1].key == "AccessionNo (file)"


def test_a_volume_s_id_may_look_like_a_file_or_a_path(tmp_path: Path) -> None:
    rows = [("deep/ct.nii.gz", "site/1", "x"), ("more/ct.nii.gz", "two.nii.gz", "x")]
    source = write_table(tmp_path / "scans", ("volume", "volume_id", "report"), rows)
    for ids in (["site/1", "two.nii.gz"], ["site/1.nii.gz", "two"]):
        assert read(source, labels(tmp_path, "volume_id", ids))[0] == {"site/1": 1, "two.nii.gz": 0}
    with refused("unmatched-labels"):  # whose ct.nii.gz?
        read(source, labels(tmp_path, "VolumeName", ["ct.nii.gz"]))


@pytest.mark.parametrize(
    ("column", "ids"), [("volume_id", ["s1", "s2"]), ("scan_id", ["a", "b"]), ("patient_id", ["s1", "s2"])]
)
def test_a_kind_that_the_archive_knows_is_not_taken_for_another(column: str, ids: list[str], tmp_path: Path) -> None:
    source = manifest(tmp_path, ("a.nii.gz", "s1", "p"), ("b.nii.gz", "s2", "q"))
    with refused("unmatched-labels") as refusal:
        read(source, labels(tmp_path, column, ids))
    assert "name the column" in str(refusal.value)
    assert read(source, labels(tmp_path, "id", ids))[0] == {"a": 1, "b": 0}, (
        "a column of any id is matched with all kinds"
    )


def test_ids_that_fit_two_kinds_are_refused(tmp_path: Path) -> None:
    source = manifest(tmp_path, ("1.nii.gz", "2", "p"), ("2.nii.gz", "1", "q"))
    with refused("ambiguous-ids", field="AccessionNo"):
        read(source, labels(tmp_path, "AccessionNo", ["1", "2"]))
    # Both kinds mean the same volumes: there is nothing to choose.
    source = manifest(tmp_path, ("1.nii.gz", "1", "p"), ("2.nii.gz", "2", "q"))
    assert read(source, labels(tmp_path, "AccessionNo", ["1", "2"]))[0] == {"1": 1, "2": 0}


def test_kinds_are_never_mixed(tmp_path: Path) -> None:
    source = manifest(tmp_path, ("a.nii.gz", "s1", "p"), ("b.nii.gz", "s2", "q"), ("c.nii.gz", "s3", "r"))
    found, reading = read(source, labels(tmp_path, "volume_id", ["a", "b", "s3"]))
    assert found == {"a": 1, "b": 0}
    assert reading.accounts[-1].lost == [(3, "s3")]


def test_a_second_id_that_contradicts_the_first_is_refused(tmp_path: Path) -> None:
    source = manifest(tmp_path, ("a.nii.gz", "s1", "p"), ("b.nii.gz", "s2", "q"))
    header = ("volume_id", "scan_id", "Lung nodule")
    right = write_table(tmp_path / "labels", header, [("a", "s1", 1), ("b", "s2", 0)])
    assert read(source, right)[0] == {"a": 1, "b": 0}
    wrong = write_table(tmp_path / "labels", header, [("a", "s1", 1), ("b", "s1", 0)])
    with refused("contradicting-ids", field="scan_id", value=2):
        read(source, wrong)
    # Accession numbers that the archive does not know say nothing against it.
    header = ("volume_id", "AccessionNumber", "Lung nodule")
    assert read(source, write_table(tmp_path / "labels", header, [("a", "X", 1), ("b", "Y", 0)]))[0] == {"a": 1, "b": 0}


def test_a_patient_s_row_is_not_for_several_scans(tmp_path: Path) -> None:
    source = manifest(tmp_path, ("a.nii.gz", "s1", "p"), ("b.nii.gz", "s2", "q"), ("c.nii.gz", "s3", "q"))
    assert read(source, labels(tmp_path, "patient_id", ["p"]))[0] == {"a": 1}
    with refused("ambiguous-id", field="patient_id", value=2):
        read(source, labels(tmp_path, "patient_id", ["p", "q"]))


@pytest.mark.parametrize("column", ["file", "VolumeName"])
def test_a_file_s_folders_are_compared_as_far_as_both_name_them(column: str, tmp_path: Path) -> None:
    rows = [("p1/ct.nii.gz", "A", "x"), ("./p2/ct.nii.gz", "B", "x"), ("q.nii.gz", "C", "x")]
    source = write_table(tmp_path / "scans", ("volume", "volume_id", "report"), rows)
    for first, second in (("p1/ct.nii.gz", "/mnt/p2/ct.nii.gz"), ("a/p1/ct", "..\\data\\p2\\ct.nii.gz")):
        assert read(source, labels(tmp_path, column, [first, second]))[0] == {"A": 1, "B": 0}
    assert read(source, labels(tmp_path, column, ["any/where/q.nii.gz"]))[0] == {"C": 1}
    found, reading = read(source, labels(tmp_path, column, ["q.nii.gz", "p3/ct.nii.gz"]))
    assert (found, reading.accounts[-1].near) == ({"C": 1}, 1)
    alone = write_table(tmp_path / "scans", ("volume", "volume_id", "report"), rows[:1])
    with refused("unmatched-labels", value=1):
        read(alone, labels(tmp_path, column, ["p2/ct.nii.gz"]))


def test_a_second_column_of_files_contradicts_by_its_folders(tmp_path: Path) -> None:
    rows = [("p1/ct.nii.gz", "A", "x"), ("p2/mr.nii.gz", "B", "x")]
    source = write_table(tmp_path / "scans", ("volume", "volume_id", "report"), rows)
    header = ("volume_id", "file", "Lung nodule")
    rows = [("A", "p9/ct.nii.gz", 1), ("B", "p2/mr.nii.gz", 0)]
    with refused("contradicting-ids", field="file", value=1):
        read(source, write_table(tmp_path / "labels", header, rows))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("ids", [["1", "2", "3"], ["3", "1"], ["2"], ["0", "1", "2"]])
def test_an_id_that_may_count_the_rows_is_refused(ids: list[str], form: str, tmp_path: Path) -> None:
    made = [(f"{i}.nii.gz", "Own report.") for i in (1, 2, 3)]
    source = write_table(tmp_path / "scans", ("volume", "report"), made)
    with refused("row-numbers", field="id"):
        read(source, labels(tmp_path, "id", ids, form))
    assert read(source, labels(tmp_path, "VolumeName", ids, form))[0] == {
        name: int(i == 0) for i, name in enumerate(ids) if name != "0"
    }


def test_an_id_that_counts_no_rows_is_taken(tmp_path: Path) -> None:
    for ids in (["001", "002"], ["1234567", "1234568"], ["a1", "2"]):
        made = [(f"{name}.nii.gz", "Own report.") for name in ids]
        source = write_table(tmp_path / "scans", ("volume", "report"), made)
        assert read(source, labels(tmp_path, "id", ids))[0] == {ids[0]: 1, ids[1]: 0}
    # It may count the rows where another column is the key.
    header = ("id", "VolumeName", "Lung nodule")
    source = write_table(tmp_path / "scans", ("volume", "report"), [("2.nii.gz", "x"), ("1.nii.gz", "x")])
    assert read(source, write_table(tmp_path / "labels", header, [(1, "2", 1), (2, "1", 0)]))[0] == {"2": 1, "1": 0}


def test_an_id_of_many_volumes_is_looked_at_once(tmp_path: Path) -> None:
    names = [f"v{i}" for i in range(5000)]
    source = write_table(
        tmp_path / "scans", ("volume", "report", "patient_id"), [(f"{name}.nii", "x", "p") for name in names]
    )
    header = ("volume_id", "patient_id", "Lung nodule")
    table = write_table(tmp_path / "labels", header, [(name, "p", 1) for name in names])
    start = time.process_time()
    assert len(read(source, table)[0]) == 5000
    assert time.process_time() - start < 4


# --- one patient, one split -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["P7 ", "p7", "P07", "P007"])
def test_a_patient_stands_in_one_split_however_spelled(other: str, tmp_path: Path) -> None:
    def items(*rows: tuple[str, str, str]) -> list[Item]:
        made = [(volume, "x", patient, split) for volume, patient, split in rows]
        file = write_table(tmp_path / "scans", ("volume", "report", "patient_id", "split"), made)
        return read_archive(file, "manifest", 0.4).items

    with refused("conflicting-rows", field="split", value="b"):
        items(("a.nii.gz", "P7", "train"), ("b.nii.gz", other, "test"))
    for number in range(40):
        first, second = items(("a.nii.gz", f"P{number}7", ""), ("b.nii.gz", other.replace("7", f"{number}7"), ""))
        assert first.split == second.split


# --- ids that say nothing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", ["NA", "nan", "NULL", "n/a", "Unknown", "-"])
def test_a_word_for_nothing_is_no_id(nothing: str, tmp_path: Path) -> None:
    source = manifest(tmp_path, ("a.nii", nothing, "P1"), ("b.nii", nothing, "P2"))
    assert [i.scan_id for i in read_archive(source, "manifest", 0.1).items] == ["a", "b"]
    with refused("unmatched-labels"):
        read(source, labels(tmp_path, "scan_id", [nothing]))


@pytest.mark.parametrize("column", ["patient_id", "split"])
@pytest.mark.parametrize("empty", ["", "NA"])
def test_a_column_that_only_some_rows_fill_is_refused(column: str, empty: str, tmp_path: Path) -> None:
    rows = [("a.nii", "Clear.", "test"), ("b.nii", "Clear.", empty)]
    with refused("missing-value", field=column, value=2):
        read_archive(write_table(tmp_path / "m", ("volume", "report", column), rows), "manifest", 0.1)


@pytest.mark.parametrize("again", ["a.nii", "./a.nii", "x/../a.nii"])
def test_one_file_under_two_ids_is_refused(again: str, tmp_path: Path) -> None:
    rows = [("a.nii", "Clear.", "A"), (again, "A nodule.", "B")]
    with refused("repeated-volume", field="volume", value="row 2"):
        read_archive(write_table(tmp_path / "m", ("volume", "report", "volume_id"), rows), "manifest", 0.1)


def test_a_series_number_is_no_id(tmp_path: Path) -> None:
    source = write_table(tmp_path / "m", ("volume", "report"), [(f"{i}.nii", "Clear.") for i in (1, 2, 3)])
    with refused("unmatched-labels"):
        read(source, labels(tmp_path, "Series", ["1", "2"]))


def test_a_number_with_a_slash_is_no_path(tmp_path: Path) -> None:
    source = write_table(tmp_path / "m", ("volume", "report"), [("17.nii", "Clear."), ("18.nii", "Clear.")])
    with refused("unmatched-labels"):
        read(source, labels(tmp_path, "accession", ["2024/17", "2024/19"]))
