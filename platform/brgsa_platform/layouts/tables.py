"""Tables as people write them: CSV, Parquet or JSON with reports, labels or metadata, joined by ids."""

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
# Of a volume first, then of a scan.
IDS = (
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
REPORTS = ("report", "report_text")
FINDINGS, IMPRESSIONS = "Findings_EN", "Impressions_EN"
NOT_GIVEN = "Not given."
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", ".dcm")

Value = TypeVar("Value")
Row = Mapping[str, Any]


def read_table(path: Path) -> pd.DataFrame:
    """A table: CSV (every value as written), Parquet, or JSON (a list of records, a record a line, or an object id → text).

    Raises:
        UserError: it cannot be read, or is empty.
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
        raise UserError(f"The table {path} is empty: give one with a header and a row a volume.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"The table {path} cannot be read ({str(error).splitlines()[0]}): mend or replace it."
        ) from error


def _read_json(path: Path) -> list[dict[str, Any]]:
    written = path.read_text(encoding="utf-8")
    try:
        held = json.loads(written)
    except json.JSONDecodeError:
        held = [json.loads(line) for line in written.splitlines() if line.strip()]
    if isinstance(held, dict):
        held = [{"volume_id": name, "report": report} for name, report in held.items()]
    if not isinstance(held, list) or not all(isinstance(row, dict) for row in held):
        raise ValueError("neither records nor an object of texts")
    return held


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def need(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse a table without one of these columns, naming what it has."""
    for column in columns:
        if column not in table.columns:
            raise UserError(f"{path} has no column {column!r}; it has: {_held(table)}.")


def read_reports(path: Path) -> dict[str, str]:
    """Reports by volume or scan id.

    A table has one or more of the columns `IDS`, and either `report` (or `report_text`) or CT-RATE's `Findings_EN` and
    `Impressions_EN`.

    Raises:
        UserError: the table cannot be read or lacks these columns, or an id stands there with two texts.
    """
    table = read_table(path)
    plain = [column for column in REPORTS if column in table.columns]
    if not plain and not {FINDINGS, IMPRESSIONS} & set(table.columns):
        raise UserError(
            f"The reports {path} have no column 'report', nor {FINDINGS!r} and {IMPRESSIONS!r}; they have: {_held(table)}."
        )
    return _by_id(path, table, lambda row, _: text(row[plain[0]]) if plain else report_of(row))


def read_labels(path: Path) -> dict[str, dict[str, int | None]]:
    """Labels by volume or scan id: one or more of the columns `IDS`, and a 0/1 column an abnormality.

    Raises:
        UserError: the table cannot be read or has none of the published labels, or a value is no label.
    """
    table = read_table(path)
    need_labels(path, table)
    return _by_id(path, table, lambda row, number: labels_of(row, f"row {number} of {path}"))


def need_labels(path: Path, table: pd.DataFrame) -> None:
    """Refuse a table without any published label, naming what it has."""
    if not set(LABELS) & set(table.columns):
        raise UserError(
            f"{path} has no column of a known abnormality, such as {LABELS[0]!r}; it has: {_held(table)}. Mend or remove it."
        )


def _by_id(path: Path, table: pd.DataFrame, value_of: Callable[[Row, int], Value]) -> dict[str, Value]:
    """A value a row under every id of the row. A row's first id is its own; a later one may be shared (a scan's)."""
    columns = [column for column in IDS if column in table.columns]
    if not columns:
        raise UserError(f"{path} has no column of ids ({', '.join(IDS)}); it has: {_held(table)}.")
    own: dict[str, Value] = {}
    shared: dict[str, Value] = {}
    for number, row in enumerate(rows_of(table), start=1):
        value = value_of(row, number)
        names = [name for name in (bare(text(row[column])) for column in columns) if name]
        if names and own.setdefault(names[0], value) != value:
            raise UserError(
                f"{path} gives the id of its row {number} twice, with different values: keep one row an id."
            )
        for name in names[1:]:
            shared.setdefault(name, value)
    return {**shared, **own}


def report_of(row: Row) -> str:
    """A report of CT-RATE's findings and impression."""
    parts = (("Findings", text(row.get(FINDINGS))), ("Impression", text(row.get(IMPRESSIONS))))
    return " ".join(f"{title}: {part}" for title, part in parts if part and part != NOT_GIVEN)


def labels_of(row: Row, where: str) -> dict[str, int | None]:
    """The published labels of a row, None where it leaves one open.

    Args:
        where: for the message, such as "volume 7".

    Raises:
        UserError: a value is neither 0, 1 nor nothing.
    """
    found: dict[str, int | None] = {}
    for name in LABELS:
        if name not in row:
            continue
        value = row[name]
        if value is None or value != value or value == "":
            found[name] = None
        elif value in (0, 1, "0", "1", "0.0", "1.0"):
            found[name] = int(float(value))
        else:
            raise UserError(f"The label {name!r} of {where} is {value!r}: use 0, 1 or nothing.")
    return found


def text(value: Any) -> str:
    """A cell as text; empty for None and NaN."""
    return "" if value is None or value != value else str(value).strip()


def bare(name: str) -> str:
    """A volume's name without the suffix of its file."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _held(table: pd.DataFrame) -> str:
    return ", ".join(map(str, table.columns)) or "none"
