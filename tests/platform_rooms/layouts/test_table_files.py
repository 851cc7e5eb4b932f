"""One table in every format, encoding and spelling means one thing; what could mean two is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import refused
from tablewriter import BINARY_FORMATS, ENCODINGS, FORMATS, TEXT_FORMATS, text_table, write_table

from brgsa_platform.layouts.tables.files import Table, read_table

HEADER = ("volume_id", "report", "Lung nodule")
ROWS = [("007", "Größe 3 mm – clear, no nodule.", 1), ("x1", "Two\nlines.", 0), ("x2", "", None)]
CELLS = [["007", "Größe 3 mm – clear, no nodule.", "1"], ["x1", "Two\nlines.", "0"], ["x2", "", ""]]


def cells(table: Table) -> tuple[tuple[str, ...], list[list[str]]]:
    return table.columns, table.rows


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_cells(form: str, tmp_path: Path) -> None:
    assert cells(read_table(write_table(tmp_path / "t", HEADER, ROWS, form))) == (HEADER, CELLS)


@pytest.mark.parametrize("form", TEXT_FORMATS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("quote_all", [False, True])
def test_every_encoding_and_separator(form: str, encoding: str, newline: str, quote_all: bool, tmp_path: Path) -> None:
    file = write_table(tmp_path / "t", HEADER, ROWS, form, encoding=encoding, newline=newline, quote_all=quote_all)
    assert cells(read_table(file)) == (HEADER, CELLS)


def test_the_bytes_say_what_a_file_is_and_not_its_name(tmp_path: Path) -> None:
    for form in (*BINARY_FORMATS, "tsv"):
        file = write_table(tmp_path / "t", HEADER, ROWS, form).rename(tmp_path / "labels.csv")
        assert cells(read_table(file)) == (HEADER, CELLS), form
    file.write_bytes(gzip.compress(text_table(HEADER, ROWS)))
    assert cells(read_table(file)) == (HEADER, CELLS)


def test_blanks_after_commas_blank_lines_and_excel_s_first_line(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('sep=,\nvolume_id, report , Lung nodule\n\n007, "Clear, no nodule.", 1 \n,,\nx1,Two.,0\n\n')
    table = read_table(file)
    assert cells(table) == (HEADER, [["007", "Clear, no nodule.", "1"], ["x1", "Two.", "0"]])
    assert table.numbers == [2, 4], "rows are counted as a person counts them, empty ones included"


@pytest.mark.parametrize("form", ["parquet", "json", "jsonl", "xlsx"])
@pytest.mark.parametrize(
    ("written", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        ("007", "007"),
        (" 7", "7"),
        (0.5, "0.5"),
        (True, "True"),
        (2**53 + 1, str(2**53 + 1)),
        (None, ""),
    ],
)
def test_a_number_has_one_form_in_every_format(form: str, written: Any, text: str, tmp_path: Path) -> None:
    if form == "xlsx" and isinstance(written, int) and written > 2**53:
        pytest.skip("Excel's numbers have 15 digits")
    table = read_table(write_table(tmp_path / "t", ("volume_id", "x"), [(written, "y"), (None, "z")], form))
    assert table.rows == [[text, "y"], ["", "z"]]


def test_parquet_keeps_whole_numbers_with_gaps_and_an_index(tmp_path: Path) -> None:
    import pandas as pd

    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"scan_id": pa.array([2**60 + 1, None], pa.int64())}), file)
    assert read_table(file).rows == [[str(2**60 + 1)]]
    pd.DataFrame({"VolumeName": ["a"], "report": ["x"]}).set_index("VolumeName").to_parquet(file)
    assert sorted(read_table(file).columns) == ["VolumeName", "report"]


REFUSED: dict[str, tuple[str, bytes, str, Any]] = {
    "a comma too many in every row": ("t.csv", b"volume_id,Emphysema\na,1,\nb,0,\n", "ragged-row", 1),
    "a longer row": ("t.csv", b"volume_id,Emphysema\na,1\nb,0,1\n", "ragged-row", 2),
    "a shorter row": ("t.csv", b"volume_id,Emphysema,Empyema\na,1,0\nb,0\n", "ragged-row", 2),
    "a column without a name at the end": ("t.csv", b"volume_id,Emphysema,\na,1,0\n", "ragged-row", 1),
    "one name twice": ("t.csv", b"volume_id,Emphysema,Emphysema\na,1,0\n", "duplicate-column", None),
    "an open quotation mark": ("t.csv", b'volume_id,report\na,"Clear\nb,x\n', "unreadable-table", 1),
    "a quotation mark within": ("t.csv", b'volume_id,report\na,"Clear" x\n', "unreadable-table", 1),
    "rows within a quotation": (
        "t.csv",
        b'volume,report\na1.nii,"Clear.\na2.nii,x\na3.nii,y."\n',
        "unreadable-table",
        1,
    ),
    "rows of long numbers within a quotation": (
        "t.csv",
        b'id,report\n70012,"Clear.\n70519,x\n70533,y."\n',
        "unreadable-table",
        1,
    ),
    "rows of numbers that go on within a quotation": (
        "t.csv",
        b'id,report\n41,"Clear.\n42,x\n43,y."\n',
        "unreadable-table",
        1,
    ),
    "rows of short numbers within a quotation": (
        "t.csv",
        b'id,report\n7,"Clear.\n12,x\n3,y."\n',
        "unreadable-table",
        1,
    ),
    "one row of short numbers within a quotation": (
        "t.csv",
        b'id,report,Emphysema\n5,Clear.,0\n7,"Clear.,1\n3,y.",0\n',
        "unreadable-table",
        2,
    ),
    "rows of short numbers behind a report within a quotation": (
        "t.csv",
        b'report,id\n"Clear.,7\nx,12\ny.",3\n',
        "unreadable-table",
        1,
    ),
    "the fault of the first separator is told": ("t.csv", b"volume_id,note;s\na,1\nb;x,0,1\n", "ragged-row", 2),
    "half a row within a quotation": ("t.csv", b'id,note,Emphysema\na1,"x,1\na2,y",0\n', "unreadable-table", 1),
    "HTML under Excel's name": ("t.xls", b"<table><tr><td>volume_id</td></tr></table>", "unreadable-table", None),
    "no header": ("t.csv", b"a.nii.gz,1\nb.nii.gz,0\n", "no-header", None),
    "commas or semicolons": ("t.csv", b"volume_id;a,report\nx;1,y\n", "unreadable-table", None),
    "Turkish or western": (
        "t.csv",
        "volume_id,report\na,ak\u011fci\u011fer\n".encode("cp1254"),
        "unreadable-table",
        None,
    ),
    "Hungarian or western": (
        "t.csv",
        "volume_id,report\na,t\u00fcd\u0151\n".encode("cp1250"),
        "unreadable-table",
        None,
    ),
    "DOS": ("t.csv", "volume_id,report\na,Größe\n".encode("cp437"), "unreadable-table", None),
    "Cyrillic": ("t.csv", "volume_id,report\na,легкие\n".encode("cp1251"), "unreadable-table", None),
    "old Excel": ("t.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "unreadable-table", None),
    "UTF-8 with one damaged letter": (
        "t.csv",
        "volume_id,report\na,3 mm – x ü".encode() + b"\xe4\n",
        "unreadable-table",
        None,
    ),
    "cut UTF-16": ("t.csv", "volume_id,report\na,x\n".encode("utf-16")[:-1], "unreadable-table", None),
    "cut gzip": ("t.csv", gzip.compress(b"volume_id,report\na,x\n")[:-9], "unreadable-table", None),
    "a JSON name twice": ("t.json", b'{"a": "x", "a": "y"}', "unreadable-table", None),
    "nothing": ("t.csv", b"\n\n", "empty-table", None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_mean_two_things_is_refused(case: str, tmp_path: Path) -> None:
    name, raw, code, row = REFUSED[case]
    (tmp_path / name).write_bytes(raw)
    with refused(code) as refusal:
        read_table(tmp_path / name)
    if row is not None:
        assert refusal.value.value == row
    assert "Clear" not in str(refusal.value)


def test_lists_with_commas_in_a_report_are_no_rows(tmp_path: Path) -> None:
    report = "1, nodule\n2. Nodule, 3 mm\nLungs, clear"
    file = tmp_path / "t.csv"
    file.write_text(f'id,report\n1,"{report}"\nscan2,"{report}"\n')
    assert [row[1] for row in read_table(file).rows] == [report, report]


@pytest.mark.parametrize(
    "report",
    [
        "Findings:\n1,nodule\n2,effusion\n3,goitre",
        "Nodules:\n12, in the apex\n3, in the lingula",
        "Nodules of\n12,5 mm\n3,4 mm",
        "Nodules in segments 4,\n6,and 8",
        "Findings:\n3,nodule\n7,effusion\nNo goitre",
    ],
)
def test_lines_that_begin_with_a_number_are_no_rows(report: str, tmp_path: Path) -> None:
    """Beside ids that are short numbers, too."""
    file = tmp_path / "t.csv"
    file.write_text(f'id,report\n7,"{report}"\n4,Clear.\n9,"{report}"\n')
    assert [row[1] for row in read_table(file).rows] == [report, "Clear.", report]


def test_a_list_in_a_column_that_is_known_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"volume_id": ["a"], "report": [["Clear.", "No effusion."]]}), file)
    with refused("unreadable-table", value=1):
        read_table(file)


def test_merged_cells_are_refused(tmp_path: Path) -> None:
    """Their value stands in the first alone: the second volume of a patient would be nobody's."""
    file = tmp_path / "t.xlsx"
    book = openpyxl.Workbook()
    for row in (["volume", "patient_id"], ["a.nii", "P"], ["b.nii", None]):
        book.active.append(row)
    book.active.merge_cells("B2:B3")
    book.save(file)
    with refused("unreadable-table", field=str(file)):
        read_table(file)


def test_excel_s_own_traps(tmp_path: Path) -> None:
    file = tmp_path / "t.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["scan_id", "Emphysema"])
    book.active.append(["a", "=1+0"])  # written by a program: there is no value beside the formula
    book.save(file)
    with refused("unreadable-table", value=1):
        read_table(file)
    book.active["B2"] = 1
    book.create_sheet("more").append(["scan_id"])
    book.save(file)
    with refused("unreadable-table"):
        read_table(file)
    book.remove(book["more"])
    book.create_sheet("empty")
    book.save(file)
    assert read_table(file).rows == [["a", "1"]]
    file.write_bytes(file.read_bytes()[:-200])
    with refused("unreadable-table", field=str(file)):
        read_table(file)


def test_a_header_that_is_data_is_not_repeated_in_a_message(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("4711,Mrs Secretname has an effusion.,volume\n1,2,3\n")
    with refused("missing-column", field="report") as refusal:
        read_table(file).require("report")
    assert "volume" in str(refusal.value)
    assert not [word for word in ("4711", "Secretname") if word in str(refusal.value)]
