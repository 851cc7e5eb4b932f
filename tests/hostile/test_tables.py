"""Tables in every documented freedom equal the truth; broken ones are refused or accounted for, never wrong."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostile import sample
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from tablewriter import BINARY_FORMATS, FORMATS, TEXT_FORMATS, text_table, write_table

from brgsa.errors import UserError
from brgsa.labels import CT_RATE, CT_RATE_LT
from brgsa_platform.layouts import Reading, read_archive

Label = int | None

# Spellings of a value in text, and the values of a typed cell.
TEXT: dict[Label, list[str]] = {
    1: ["1", "1.0", "TRUE", "True", "yes", "1 ", "Y"],
    0: ["0", "0.0", "FALSE", "False", "no", " 0", "N"],
    None: ["", "NA", "nan", "-1", "N/A", "-1.0"],
}
TYPED: dict[Label, list[Any]] = {1: [1, 1.0, True], 0: [0, 0.0, False], None: [None, -1, -1.0]}
SUFFIXES = (".nii.gz", ".nrrd", ".npz", ".mha")
REPORT = "Hemithorax, right; no nodule."


@dataclass(frozen=True)
class Archive:
    """Volumes of scans of patients, and the truth about each scan."""

    volumes: dict[str, str]  # volume → scan
    truth: dict[str, dict[str, Label]]  # scan → its labels
    suffix: str

    def manifest(self, folder: Path) -> Path:
        rows = [(name + self.suffix, REPORT, scan) for name, scan in self.volumes.items()]
        return write_table(folder / "scans", ("volume", "report", "scan_id"), rows)


@dataclass(frozen=True)
class Drawn:
    """A table as it is written, and what it should give.

    Attributes:
        by_scan: whether the key is the scan.
        keys: of its rows, before they are spelled.
    """

    archive: Archive
    header: list[str]
    rows: list[list[Any]]
    keys: list[str]
    by_scan: bool
    form: str
    text: dict[str, Any] = field(default_factory=dict)

    def expected(self) -> dict[str, dict[str, Label]]:
        """volume → labels of those that the table has a row for."""
        named = {v: s for v, s in self.archive.volumes.items() if (s if self.by_scan else v) in self.keys}
        return {volume: self.archive.truth[scan] for volume, scan in named.items()}


@st.composite
def archives(draw: st.DrawFn) -> Archive:
    ids = st.from_regex(r"[a-z]{1,3}_?[0-9]{1,3}", fullmatch=True) | st.from_regex(r"[0-9]{1,4}", fullmatch=True)
    # Ids that differ by leading zeros alone would be two spellings of one.
    names = draw(st.lists(ids, min_size=2, max_size=5, unique_by=lambda name: name.replace("0", "")))
    scans = draw(st.lists(st.sampled_from([f"scan{i}" for i in range(4)]), min_size=len(names), max_size=len(names)))
    labels = draw(st.lists(st.sampled_from([*CT_RATE, *CT_RATE_LT]), min_size=1, max_size=4, unique=True))
    value = st.sampled_from([1, 0, None])
    truth = {scan: {label: draw(value) for label in labels} for scan in sorted(set(scans))}
    return Archive(dict(zip(names, scans, strict=True)), truth, draw(st.sampled_from(SUFFIXES)))


def spelled(draw: st.DrawFn, name: str) -> str:
    """A column's name as someone may write it."""
    made = draw(st.sampled_from([str, str.upper, str.lower, str.title]))(name)
    return f"{made}{draw(st.sampled_from(['', ' ']))}".replace(" ", draw(st.sampled_from([" ", "_", "-"])))


@st.composite
def tables(draw: st.DrawFn, forms: Sequence[str] = FORMATS) -> Drawn:
    archive, form = draw(archives()), draw(st.sampled_from(forms))
    by_scan = draw(st.booleans())
    known = sorted(set(archive.volumes.values()) if by_scan else archive.volumes)
    keys = draw(st.lists(st.sampled_from(known), min_size=1, unique=True)) + draw(
        st.lists(st.sampled_from(["elsewhere", "zz99zz"]), unique=True)
    )
    keys += draw(st.sampled_from([[], keys[:1]]))  # a row that is there twice says nothing new
    labels = list(next(iter(archive.truth.values())))
    typed = form in BINARY_FORMATS and draw(st.booleans())
    values = {
        label: {v: draw(st.sampled_from((TYPED if typed else TEXT)[v])) for v in (1, 0, None)} for label in labels
    }
    scan_of = {**archive.volumes, **{scan: scan for scan in archive.truth}}

    def row(key: str) -> list[Any]:
        truth = archive.truth.get(scan_of.get(key, ""), dict.fromkeys(labels, 0))
        written = key + (archive.suffix if suffixed else "")
        return [written, *(values[label][truth[label]] for label in labels), 51]

    suffixed = not by_scan and draw(st.booleans())
    key_column = draw(
        st.sampled_from(["scan_id", "AccessionNo"] if by_scan else ["volume_id", "VolumeName", "AccessionNo"])
    )
    header = [spelled(draw, key_column), *(spelled(draw, label) for label in labels), "age"]
    order = draw(st.permutations(range(len(header))))
    text: dict[str, Any] = {}
    if form in TEXT_FORMATS:
        text = {
            "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"])),
            "newline": draw(st.sampled_from(["\n", "\r\n"])),
            "quote_all": draw(st.booleans()),
            "blank": draw(st.sampled_from(["", " "])),
        }
    shuffled = draw(st.permutations(keys))
    rows = [[made[i] for i in order] for made in map(row, shuffled)]
    return Drawn(archive, [header[i] for i in order], rows, list(shuffled), by_scan, form, text)


def read(drawn: Drawn, folder: Path, raw: bytes | None = None) -> Reading:
    table = write_table(folder / "labels", drawn.header, drawn.rows, drawn.form, **drawn.text)
    if raw is not None:
        table.write_bytes(raw)
    return read_archive(drawn.archive.manifest(folder), "manifest", 0.1, labels=table)


def given_labels(reading: Reading) -> dict[str, dict[str, Label]]:
    return {item.volume_id: item.labels for item in reading.items if item.labels}


def told_of(error: UserError, drawn: Drawn) -> None:
    """A message names no id and no report."""
    words = set(re.findall(r"\w+", str(error)))
    ids = {name for name in (*drawn.archive.volumes, *drawn.archive.truth) if not name.isdigit()}
    assert not ids & words, error
    assert "Hemithorax" not in words


@sample(0.5)
@given(drawn=tables())
def test_a_table_in_any_freedom_equals_the_truth(drawn: Drawn) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reading = read(drawn, Path(folder))
    expected = drawn.expected()
    assert given_labels(reading) == expected
    assert {item.report for item in reading.items} == {REPORT}
    account = reading.accounts[-1]
    known = [key for key in drawn.keys if key in drawn.archive.volumes or key in drawn.archive.truth]
    assert (account.rows, account.matched, account.without) == (
        len(drawn.keys),
        len(known),
        len(drawn.archive.volumes) - len(expected),
    )
    assert account.passed == ["age"]
    assert set(account.taken.values()) == set(next(iter(drawn.archive.truth.values())))
    told = account.line().replace("(", " ").replace(",", " ").split()
    assert not {"elsewhere", "zz99zz"} & set(told)


TEXTS = st.text(st.sampled_from("ab é–,;\t|\"'\n."), min_size=1, max_size=20).map(str.strip).filter(bool)


@sample(0.2)
@given(
    reports=st.lists(TEXTS, min_size=1, max_size=4),
    form=st.sampled_from(FORMATS),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    quote_all=st.booleans(),
    order=st.permutations(range(4)),
    upper=st.booleans(),
)
def test_reports_of_any_signs_come_through(
    reports: list[str], form: str, encoding: str, newline: str, quote_all: bool, order: list[int], upper: bool
) -> None:
    header = ["volume", "report", "scan_id", "patient_id"]
    rows = [[f"v{i}.nii.gz", text, f"s{i}", f"{i:03d}"] for i, text in enumerate(reports)]
    text = {"encoding": encoding, "newline": newline, "quote_all": quote_all} if form in TEXT_FORMATS else {}
    written = [header[i].upper() if upper else header[i] for i in order]
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(Path(folder) / "scans", written, [[row[i] for i in order] for row in rows], form, **text)
        try:
            items, code = read_archive(table, "manifest", 0.1).items, ""
        except UserError as error:
            items, code = [], error.code
    if code:  # Windows-1252 that may as well be another code page is refused
        assert (code, text.get("encoding")) == ("unreadable-table", "cp1252")
        return
    assert [(item.volume_id, item.report) for item in items] == [(f"v{i}", text) for i, text in enumerate(reports)]
    assert [(item.scan_id, item.patient_id) for item in items] == [(f"s{i}", f"{i:03d}") for i in range(len(items))]


@sample(0.3)
@given(drawn=tables(forms=tuple(TEXT_FORMATS)), data=st.data())
def test_a_table_that_was_damaged_is_never_wrong(drawn: Drawn, data: st.DataObject) -> None:
    """A separator, a quotation mark or a line end too many or too few: every label that is taken is still true."""
    drawn.text["encoding"] = "utf-8"
    raw = text_table(drawn.header, drawn.rows, TEXT_FORMATS[drawn.form], **drawn.text)
    marks = b',;\t|"\n\r'
    places = [i for i, byte in enumerate(raw) if byte in marks]
    if data.draw(st.booleans(), label="delete"):
        at = data.draw(st.sampled_from(places))
        damaged = raw[:at] + raw[at + 1 :]
    else:
        at = data.draw(st.integers(0, len(raw)))
        mark = bytes([data.draw(st.sampled_from(list(marks)))])
        damaged = raw[:at] + mark + raw[at:]
    _refused_or_true(drawn, damaged)


@sample(0.1)
@given(drawn=tables(), cut=st.floats(0, 1))
def test_a_table_that_was_cut_short_is_never_wrong(drawn: Drawn, cut: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = write_table(Path(folder) / "labels", drawn.header, drawn.rows, drawn.form, **drawn.text).read_bytes()
    _refused_or_true(drawn, whole[: round(cut * len(whole))])


def _refused_or_true(drawn: Drawn, raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            reading = read(drawn, Path(folder), raw)
        except UserError as error:
            told_of(error, drawn)
            return
    for volume, labels in given_labels(reading).items():
        truth = drawn.archive.truth[drawn.archive.volumes[volume]]
        wrong = {name for name, value in labels.items() if value is not None and truth.get(name) != value}
        assert not wrong, raw


@st.composite
def broken(draw: st.DrawFn) -> tuple[Drawn, str]:
    """A table with one fault, and the code of its refusal."""
    drawn = draw(tables())
    key = next(i for i, name in enumerate(drawn.header) if name.strip().casefold().startswith(("scan", "acc", "vol")))
    label = next(i for i in range(len(drawn.header)) if i != key and drawn.header[i] != "age")
    row = draw(st.integers(0, len(drawn.rows) - 1))
    fault = draw(st.sampled_from(["value", "twice", "two columns", "no match", "no labels", "no ids"]))
    header, rows = list(drawn.header), [list(cells) for cells in drawn.rows]
    if fault == "value":
        rows = [[*map(str, cells)] for cells in rows]
        rows[row][label] = draw(st.sampled_from(["2", "0.5", "maybe", "present?", "01/02/2024"]))
        code = "bad-label"
    elif fault == "twice":
        again = list(rows[row])
        again[label] = "0" if str(again[label]).strip() in ("1", "1.0", "TRUE", "True", "yes", "Y") else "1"
        rows = [[*map(_text, cells)] for cells in [*rows, again]]
        code = "conflicting-ids"
    elif fault == "two columns":
        header.append(f"{header[label]} ".replace(" ", "."))
        rows = [[*cells, cells[label]] for cells in rows]
        code = "duplicate-column"
    elif fault == "no match":
        for cells in rows:
            cells[key] = f"nobody {cells[key]}"
        code = "unmatched-labels"
    else:
        code = "no-labels" if fault == "no labels" else "no-ids"
        renamed = [i for i in range(len(header)) if header[i] != "age" and (i == key) == (fault == "no ids")]
        for i in renamed:
            header[i] = f"other {i}"
    made = Drawn(drawn.archive, header, rows, drawn.keys, drawn.by_scan, drawn.form, drawn.text)
    return made, code


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)


@sample(0.1)
@given(fault=broken())
def test_a_table_with_a_fault_is_refused(fault: tuple[Drawn, str]) -> None:
    drawn, code = fault
    with tempfile.TemporaryDirectory() as folder, refused(code) as refusal:
        read(drawn, Path(folder))
    told_of(refusal.value, drawn)
