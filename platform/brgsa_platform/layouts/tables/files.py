"""One reader of tables: a file's bytes to rows of text, whether it is CSV, Excel, Parquet or JSON.

What a file is, its first bytes say; its name does not count. All cells become text in one form, so that the same table means
the same in every format: nothing is an empty cell, 7.0 in a column of numbers is 7.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa.labels import LABEL_SETS
from brgsa_platform.layouts.ids import ID_COLUMNS, SUFFIXES, column_key
from brgsa_platform.layouts.tables.text import Cells, UnreadableText, cells_of, decoded, parsed

# Names of files that hold labels: CT-RATE-LT-label.csv, valid_labels.csv, RAD-ChestCT18_ctrateStyle.csv.
LABEL_TABLE = re.compile(r"label|ctrate_?style", re.IGNORECASE)
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".json", ".jsonl", ".ndjson")
# Columns that mean the same in every table, and those that a message may repeat.
_FIXED = (*ID_COLUMNS, "report", "reporttext", "findingsen", "impressionsen", "split")
_KNOWN = [*_FIXED, *(column_key(name) for names in LABEL_SETS.values() for name in names), "findings", "impressions"]


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        path: of its file.
        columns: their names as written; a column without a name has the empty one.
        rows: cells, as many as columns, without blanks around them; empty where the file has none.
        numbers: of the rows, counted from 1 below the header, for messages.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]] = field(repr=False)
    numbers: list[int] = field(repr=False)

    @cached_property
    def by_key(self) -> dict[str, int]:
        """`column_key` of a name → number of its column."""
        return {column_key(name): i for i, name in enumerate(self.columns) if name}

    def column(self, name: str) -> int | None:
        """Number of the column of this name, however spelled; None where there is none."""
        return self.by_key.get(column_key(name))

    def cell(self, row: list[str], name: str) -> str:
        """A row's cell in the column of this name; empty where there is no such column."""
        at = self.column(name)
        return "" if at is None else row[at]

    def require(self, *names: str) -> None:
        """Refuse a table that lacks one of these columns ("missing-column"); the message lists those that it has."""
        for name in names:
            if self.column(name) is None:
                raise UserError(
                    f"{self.path} has no column {name!r}; it has: {self.column_names()}.",
                    code="missing-column",
                    field=name,
                    value=str(self.path),
                )

    def column_names(self) -> str:
        """The columns for a message: those that are known, or nearly. The others are counted, since they may be data."""
        names = [name for name in self.columns[:200] if get_close_matches(column_key(name), _KNOWN, 1, 0.75)]
        others = len(self.columns) - len(names)
        counted = f"{others} other columns" if others else ""
        return " and ".join(filter(None, [", ".join(names[:20]), counted])) or "none"


def table_files(folder: Path) -> list[Path]:
    """The files of a folder that are tables by their names, sorted."""
    return sorted(
        path
        for path in folder.glob("*")
        if path.name.lower().removesuffix(".gz").endswith(TABLE_SUFFIXES)
        and path.is_file()
        and not path.name.startswith(".")
    )


def read_table(path: Path) -> Table:
    """Read a table: CSV with any usual separator and encoding, Excel (.xlsx), Parquet, or JSON (a list of records, a record per
    line, or an object of id → report).

    Raises:
        UserError: it cannot be read ("unreadable-table"), has no rows of a header ("empty-table"), a row of more or fewer cells
            than the header ("ragged-row", `value` is its number), data in place of a header ("no-header"), or two columns of
            one name ("duplicate-column", `field` is the name).
    """
    try:
        raw = path.read_bytes()
        cells = _cells(path, raw)
    except UnreadableText as error:
        raise UserError(
            f"The table {path} cannot be read: {error.reason}.",
            code=error.code,
            field=str(path),
            value=error.row,
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged, or of another kind than its name says"
        raise UserError(
            f"The table {path} cannot be read ({reason}): mend or replace it.", code="unreadable-table", field=str(path)
        ) from error
    if not cells.header:
        raise UserError(
            f"The table {path} is empty: give one with a header and a row a volume.",
            code="empty-table",
            field=str(path),
        )
    return _checked(path, cells)


def _checked(path: Path, cells: Cells) -> Table:
    """The table without unnamed empty columns, refused where its header is none."""
    unnamed = [i for i, name in enumerate(cells.header) if not name and not any(row[i] for row in cells.rows)]
    if unnamed:
        kept = [i for i in range(len(cells.header)) if i not in unnamed]
        cells = Cells([cells.header[i] for i in kept], [[row[i] for i in kept] for row in cells.rows], cells.numbers)
    if any(name.lower().endswith(SUFFIXES) or len(name) > 200 for name in cells.header):
        raise UserError(
            f"The first row of {path} looks like data: put the names of the columns above it.",
            code="no-header",
            field=str(path),
        )
    if not cells.header[-1]:
        raise UserError(
            f"The last column of {path} has no name, and its rows go on there: give all rows the header's columns.",
            code="ragged-row",
            field=str(path),
            value=next(number for row, number in zip(cells.rows, cells.numbers, strict=True) if row[-1]),
        )
    seen: dict[str, str] = {}
    for name in cells.header:
        # Two spellings of one label are refused where labels are read, and by the label's name.
        key = column_key(name) if column_key(name) in _FIXED else name
        if name and key in seen:
            also = "" if seen[key] == name else f" and {seen[key]!r}, which mean one thing"
            raise UserError(
                f"{path} has two columns {name!r}{also}: keep one.",
                code="duplicate-column",
                field=name,
                value=str(path),
            )
        seen[key] = name
    return Table(path, tuple(cells.header), cells.rows, cells.numbers)


def _cells(path: Path, raw: bytes) -> Cells:
    if raw.startswith(b"PAR1"):
        return _parquet(raw)
    if raw.startswith(b"PK\x03\x04"):
        return _excel(raw)
    if raw.startswith(b"\xd0\xcf\x11\xe0"):
        raise UnreadableText("it is of an old Excel; save it as .xlsx or CSV")
    text = decoded(raw)
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        raise UnreadableText("it is HTML or XML, which some programs name like Excel; save it as .xlsx or CSV")
    if text.lstrip("\ufeff \t\r\n").startswith(("{", "[")) or path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return _json(text.removeprefix("\ufeff"))
    return parsed(text)


def _parquet(raw: bytes) -> Cells:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # pyarrow and not pandas, which makes a column of numbers with a gap one of floats, and an index no column at all.
        table = pq.read_table(io.BytesIO(raw))
        columns = [column.to_pylist() for column in table.columns]
        records = list(map(list, zip(*columns, strict=True)))
    except (OSError, pa.ArrowException) as error:
        raise UnreadableText("its Parquet is cut short or damaged") from error
    names = [name.strip() for name in table.column_names]
    _check_plain(dict(zip(names, record, strict=True)) for record in records)
    return cells_of([names, *([cell_text(value) for value in record] for record in records)])


def _excel(raw: bytes) -> Cells:
    import zipfile

    import openpyxl

    try:
        book = openpyxl.load_workbook(io.BytesIO(raw), data_only=True)
        formulas = openpyxl.load_workbook(io.BytesIO(raw))
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UnreadableText("it is no Excel file, or is damaged") from error
    sheets = [sheet for sheet in book.worksheets if any(any(v is not None for v in row) for row in sheet.values)]
    if len(sheets) > 1:
        raise UnreadableText(f"{len(sheets)} of its sheets hold something; keep one")
    if not sheets:
        return Cells([], [], [])
    if merged := sheets[0].merged_cells.ranges:
        raise UnreadableText(
            f"{len(merged)} of its cells are merged, and only the first of each keeps the value; unmerge them, fill in what "
            "they stood for, and begin with the row of the columns' names"
        )
    values = sheets[0].values
    shown = list(zip(values, formulas[sheets[0].title].values, strict=True))
    for number, (row, formula) in enumerate(shown):
        if any(v is None and f is not None for v, f in zip(row, formula, strict=True)):
            raise UnreadableText(f"row {number} holds a formula without its value; open and save it in Excel", number)
    return cells_of([cell_text(value) for value in row] for row, _ in shown)


def _json(text: str) -> Cells:
    try:
        records = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError:
        try:
            records = [json.loads(line, object_pairs_hook=_object) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise UnreadableText("it is no JSON, or is cut short") from error
    if isinstance(records, dict):
        texts = all(isinstance(value, str) for value in records.values())
        if texts and not any(column_key(name) in ID_COLUMNS for name in records):
            records = [{"id": name, "report": report} for name, report in records.items()]
        elif not any(isinstance(value, dict | list) for value in records.values()):
            records = [records]  # lines of JSON, of which there is one
    if not isinstance(records, list) or not all(isinstance(row, dict) for row in records):
        raise UnreadableText("it holds neither records nor an object of texts")
    _check_plain(records)
    names = list(dict.fromkeys(name for row in records for name in row))
    header = [name.strip() for name in names]
    return (
        cells_of([header, *([cell_text(row.get(name)) for name in names] for row in records)])
        if names
        else Cells([], [], [])
    )


def _check_plain(records: Iterable[Mapping[str, Any]]) -> None:
    """Refuse lists and objects in columns that are known, whose text would be Python's."""
    for number, row in enumerate(records, start=1):
        if any(isinstance(row[name], list | dict) for name in row if column_key(name) in _KNOWN):
            raise UnreadableText(f"row {number} holds a list or an object; write plain values", number)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that gives a name twice is refused, where Python would keep the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise UnreadableText("an object of it gives one name twice")
    return made


def cell_text(value: Any) -> str:
    """A cell of any format as text: nothing and NaN are empty, whole numbers have no decimals, lines end as in Unix."""
    if value is None or value != value:
        return ""
    if isinstance(value, Decimal):
        return cell_text(float(value))
    if isinstance(value, float) and math.isfinite(value) and abs(value) < 2**53 and value == int(value):
        return str(int(value))
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    return str(value).strip().replace("\r\n", "\n")
