"""Tables as people write them: CSV, Parquet or JSON with reports, labels or metadata, joined on ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from brgsa.errors import UserError
from brgsa.labels import LABEL_SETS

if TYPE_CHECKING:
    import pandas as pd

LABELS = tuple(dict.fromkeys(name for names in LABEL_SETS.values() for name in names))
# Columns of ids: first those of a volume, then those of a scan.
ID_COLUMNS = (
    "VolumeName",
    "volume_id",
    "VolumeAcc_DEID",
    "SeriesInstanceUID",
    "scan_id",
    "NoteAcc_DEID",
    "AccessionNo",
    "AccessionNumber",
    "accession",
    "StudyInstanceUID",
)
REPORT_COLUMNS = ("report", "report_text")
FINDINGS, IMPRESSIONS = "Findings_EN", "Impressions_EN"
NOT_GIVEN = "Not given."  # CT-RATE's word for an empty section
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", ".dcm")

Value = TypeVar("Value")
Row = Mapping[str, Any]


def read_table(path: Path) -> pd.DataFrame:
    """Read a table: CSV (every value as written), Parquet, or JSON (a list of records, a record per line, or an object of
    id → report).

    Raises:
        UserError: it cannot be read ("unreadable-table") or is empty ("empty-table").
    """
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
            return pd.DataFrame(_read_json(path), dtype=object)
        # As written: an id of 007 is not 7, and a report may be the word None.
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError as error:
        raise UserError(
            f"The table {path} is empty: give one with a header and a row a volume.",
            code="empty-table",
            field=str(path),
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"The table {path} cannot be read ({str(error).splitlines()[0]}): mend or replace it.",
            code="unreadable-table",
            field=str(path),
        ) from error


def _read_json(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON file, of JSON lines, or of an object of id → report; ValueError where it is something else."""
    text = path.read_text(encoding="utf-8")
    try:
        records = json.loads(text)
    except json.JSONDecodeError:
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(records, dict):
        records = [{"volume_id": name, "report": report} for name, report in records.items()]
    if not isinstance(records, list) or not all(isinstance(row, dict) for row in records):
        raise ValueError("neither records nor an object of texts")
    return records


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts of column → value."""
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def require_columns(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse a table that lacks one of these columns ("missing-column"); the message lists those that it has."""
    for column in columns:
        if column not in table.columns:
            raise UserError(
                f"{path} has no column {column!r}; it has: {_columns(table)}.",
                code="missing-column",
                field=column,
                value=str(path),
            )


def read_reports(path: Path) -> dict[str, str]:
    """Volume or scan id → report.

    The table has one or more of the columns `ID_COLUMNS`, and either `report` (or `report_text`) or CT-RATE's `Findings_EN` and
    `Impressions_EN`.

    Raises:
        UserError: the table cannot be read, lacks these columns ("missing-column", "no-ids"), or has an id twice with
            different texts ("conflicting-ids").
    """
    table = read_table(path)
    plain = [column for column in REPORT_COLUMNS if column in table.columns]
    if not plain and not {FINDINGS, IMPRESSIONS} & set(table.columns):
        raise UserError(
            f"The reports {path} have no column 'report', nor {FINDINGS!r} and {IMPRESSIONS!r}; they have: {_columns(table)}.",
            code="missing-column",
            field="report",
            value=str(path),
        )
    return _by_id(path, table, lambda row, _: cell_text(row[plain[0]]) if plain else report_of(row))


def read_labels(path: Path) -> dict[str, dict[str, int | None]]:
    """Volume or scan id → labels, from a table with one or more of the columns `ID_COLUMNS` and a 0/1 column per abnormality.

    Raises:
        UserError: the table cannot be read, has no ids ("no-ids") or no published label ("no-labels"), has an id twice with
            different labels ("conflicting-ids"), or holds a value that is no label ("bad-label").
    """
    table = read_table(path)
    require_labels(path, table)
    return _by_id(path, table, lambda row, number: labels_of(row, f"row {number} of {path}"))


def require_labels(path: Path, table: pd.DataFrame) -> None:
    """Refuse a table without any published label ("no-labels"); the message lists the columns that it has."""
    if not set(LABELS) & set(table.columns):
        raise UserError(
            f"{path} has no column of a known abnormality, such as {LABELS[0]!r}; it has: {_columns(table)}. "
            "Mend or remove it.",
            code="no-labels",
            field=str(path),
        )


def _by_id(path: Path, table: pd.DataFrame, value_of: Callable[[Row, int], Value]) -> dict[str, Value]:
    """id → value of its row. The first id of a row is the row's own; a later one (a scan's) may be shared by several rows, of
    which the first counts.
    """
    columns = [column for column in ID_COLUMNS if column in table.columns]
    if not columns:
        raise UserError(
            f"{path} has no column of ids ({', '.join(ID_COLUMNS)}); it has: {_columns(table)}.",
            code="no-ids",
            field=str(path),
        )
    own: dict[str, Value] = {}
    shared: dict[str, Value] = {}
    for number, row in enumerate(rows_of(table), start=1):
        value = value_of(row, number)
        names = [name for name in (without_suffix(cell_text(row[column])) for column in columns) if name]
        if names and own.setdefault(names[0], value) != value:
            raise UserError(
                f"{path} gives the id of its row {number} twice, with different values: keep one row an id.",
                code="conflicting-ids",
                field=str(path),
                value=number,
            )
        for name in names[1:]:
            shared.setdefault(name, value)
    return {**shared, **own}


def report_of(row: Row) -> str:
    """A report made of the findings and the impression in a row of CT-RATE; empty where it has neither."""
    parts = (("Findings", cell_text(row.get(FINDINGS))), ("Impression", cell_text(row.get(IMPRESSIONS))))
    return " ".join(f"{title}: {part}" for title, part in parts if part and part != NOT_GIVEN)


def labels_of(row: Row, where: str) -> dict[str, int | None]:
    """The published labels that a row has as columns: abnormality → 1, 0, or None where the cell is empty.

    Args:
        where: names the row in the message, such as "volume 7".

    Raises:
        UserError: a value is neither 0 nor 1 nor empty ("bad-label").
    """
    labels: dict[str, int | None] = {}
    for name in LABELS:
        if name not in row:
            continue
        value = row[name]
        if value is None or value != value or value == "":
            labels[name] = None
        elif value in (0, 1, "0", "1", "0.0", "1.0"):
            labels[name] = int(float(value))
        else:
            raise UserError(
                f"The label {name!r} of {where} is {value!r}: use 0, 1 or nothing.",
                code="bad-label",
                field=name,
                value=str(value),
            )
    return labels


def cell_text(value: Any) -> str:
    """A cell as text without spaces around it; empty for None and NaN."""
    return "" if value is None or value != value else str(value).strip()


def without_suffix(name: str) -> str:
    """A volume's file name without the suffix of an image, such as .nii.gz."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _columns(table: pd.DataFrame) -> str:
    """The names of a table's columns, for a message."""
    return ", ".join(map(str, table.columns)) or "none"
