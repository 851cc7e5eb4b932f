"""Tables as the programs of the field write them: one set of rows in every format, encoding and spelling."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

TEXT_FORMATS = {"csv": ",", "tsv": "\t", "semicolon.csv": ";", "pipe.txt": "|"}
BINARY_FORMATS = ("xlsx", "parquet", "json", "jsonl")
FORMATS = (*TEXT_FORMATS, *BINARY_FORMATS)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252")

Row = Sequence[Any]


def write_table(path: Path, header: Sequence[str], rows: Sequence[Row], form: str = "csv", **text: Any) -> Path:
    """Write a table; `path` gets the format's suffix. Cells are text, numbers, booleans or None.

    Args:
        form: one of `FORMATS`.
        text: of a text format; see `text_table`.
    """
    path = path.with_name(f"{path.name}.{form}")
    if form in TEXT_FORMATS:
        path.write_bytes(text_table(header, rows, TEXT_FORMATS[form], **text))
    elif form == "xlsx":
        book = openpyxl.Workbook()
        for row in [header, *rows]:
            book.active.append(list(row))
        book.save(path)
    elif form == "parquet":
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in header]
        pq.write_table(pa.table([_column(column) for column in columns], names=list(header)), path)
    else:
        records = [dict(zip(header, row, strict=True)) for row in rows]
        path.write_text(
            json.dumps(records) if form == "json" else "\n".join(map(json.dumps, records)), encoding="utf-8"
        )
    return path


def text_table(
    header: Sequence[str],
    rows: Sequence[Row],
    separator: str = ",",
    *,
    encoding: str = "utf-8",
    newline: str = "\n",
    quote_all: bool = False,
    blank: str = "",
) -> bytes:
    """A text table's bytes.

    Args:
        blank: stands behind each separator.
    """
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    lines = []
    for row in [header, *rows]:
        out = io.StringIO()
        csv.writer(out, delimiter=separator, lineterminator="\n", quoting=quoting).writerow(
            ["" if cell is None else cell for cell in row]
        )
        lines.append(out.getvalue().removesuffix("\n"))
    lines.append("")
    # Tests put no separators into cells where they want blanks behind them.
    text = newline.join(line.replace(separator, separator + blank) if blank else line for line in lines)
    marked = text.encode(encoding)
    return b"\xfe\xff" + marked if encoding == "utf-16-be" else marked


def _column(cells: Sequence[Any]) -> pa.Array:
    """A typed column where all cells are of one type, else one of text."""
    if len({type(cell) for cell in cells if cell is not None}) <= 1:
        return pa.array(cells)
    return pa.array([None if cell is None else str(cell) for cell in cells], pa.string())
