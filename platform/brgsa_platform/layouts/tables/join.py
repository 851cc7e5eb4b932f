"""Reports and labels from tables: read, joined on ids, accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from brgsa.errors import UserError
from brgsa_platform.layouts.ids import COLUMN_OF, IdKind, id_in, is_nothing, key_in
from brgsa_platform.layouts.tables.account import TableAccount, account
from brgsa_platform.layouts.tables.files import Table
from brgsa_platform.layouts.tables.label_columns import LABELS, LabelColumns, Labels, label_columns
from brgsa_platform.layouts.tables.matching import Match, Volumes, id_columns, match

REPORT_COLUMNS = ("report", "report_text")
FINDINGS, IMPRESSIONS = "Findings_EN", "Impressions_EN"
_SCIENTIFIC = re.compile(r"[0-9](?:[.,][0-9]+)?[eE]\+?[0-9]{1,2}")  # how Excel shows long numbers
NOT_GIVEN = "Not given."  # CT-RATE's word for an empty section

Value = TypeVar("Value")


@dataclass(frozen=True)
class Joined(Generic[Value]):
    """What a table gives to an archive's volumes.

    Attributes:
        of: volume_id → its value.
        shared: scan_id → the value that all rows of the scan agree on, of reports only.
        row: volume_id → number of the row that it comes from, for messages.
        other: see `Match`.
    """

    table: Table
    of: Mapping[str, Value]
    shared: Mapping[str, Value]
    row: Mapping[str, int]
    account: TableAccount
    other: IdKind | None = None


def join_reports(table: Table, volumes: Volumes) -> Joined[str]:
    """The reports of a table, from `report` (or `report_text`), or from CT-RATE's `Findings_EN` and `Impressions_EN`.

    Raises:
        UserError: it lacks these columns ("missing-column"), has two texts for one volume ("conflicting-ids", `value` is the
            row's number), or cannot be joined (see `matching.match`).
    """
    taken = report_columns(table)
    if not taken:
        raise UserError(
            f"The reports {table.path} have no column 'report', nor {FINDINGS!r} and {IMPRESSIONS!r}; they have: "
            f"{table.column_names()}.",
            code="missing-column",
            field="report",
            value=str(table.path),
        )
    return _join("reports", table, volumes, lambda row, _: report_in(table, row), taken)


def join_labels(table: Table, volumes: Volumes) -> Joined[Labels]:
    """The labels of a table; see `label_columns`.

    Raises:
        UserError: it has no published label ("no-labels"), a value that is none ("bad-label"), two values for one volume
            ("conflicting-ids", `value` is the row's number), or cannot be joined (see `matching.match`).
    """
    columns = require_labels(table)
    return _join("labels", table, volumes, lambda row, number: columns.read(table, row, number), columns.taken)


def require_labels(table: Table) -> LabelColumns:
    """The label columns of a table; refuses one without any ("no-labels"), and the message lists the columns that it has."""
    columns = label_columns(table)
    if not columns.of:
        raise UserError(
            f"{table.path} has no column of a known abnormality, such as {LABELS[0]!r}; it has: {table.column_names()}. "
            "Mend or remove it.",
            code="no-labels",
            field=str(table.path),
        )
    return columns


def join_fields(role: str, table: Table, volumes: Volumes, fields: Iterable[str]) -> Joined[dict[str, str | None]]:
    """Other columns of a table, by their names; None where the table lacks one."""
    fields = list(fields)
    at = {name: table.column(name) for name in fields}
    taken = {table.columns[i]: "" for i in at.values() if i is not None}

    def read(row: list[str], _: int) -> dict[str, str | None]:
        return {name: None if i is None else row[i] for name, i in at.items()}

    return _join(role, table, volumes, read, taken)


def _join(
    role: str,
    table: Table,
    volumes: Volumes,
    read: Callable[[list[str], int], Value],
    taken: Mapping[str, str],
) -> Joined[Value]:
    values = [read(row, number) for row, number in zip(table.rows, table.numbers, strict=True)]
    matched = match(table, volumes)
    _check_keys(table, matched, values)
    shared: dict[str, Value] = {}
    if role == "reports" and (volumes.scan_of or matched.names_scans):  # a scan's reconstructions have one report
        matched, shared = _by_scan(table, matched, volumes, values)
    without = sum(v.item.volume_id not in matched.rows and v.item.scan_id not in shared for v in volumes.listed)
    return Joined(
        table,
        {name: values[rows[0]] for name, rows in matched.rows.items()},
        shared,
        {name: table.numbers[rows[0]] for name, rows in matched.rows.items()},
        account(role, table, matched, without, taken),
        matched.other,
    )


def _by_scan(table: Table, matched: Match, volumes: Volumes, values: Sequence[Value]) -> tuple[Match, dict[str, Value]]:
    """The match without lost rows of reconstructions whose scan is here; and scan_id → the value that all of its rows have."""
    of_scan: dict[str, list[Value]] = {}
    for volume in volumes.listed:
        for number in matched.rows.get(volume.item.volume_id, ()):
            of_scan.setdefault(volume.item.scan_id, []).append(values[number])
    lost = list(matched.lost)
    if volumes.scan_of and matched.kind in (None, IdKind.VOLUME, IdKind.FILE):
        scans = {volume.item.scan_id for volume in volumes.listed}
        at = id_columns(table)[0] if matched.column is None else matched.column
        told = {number: volumes.scan_of(id_in(IdKind.FILE, table.rows[number][at])) for number in lost}
        lost = [number for number in lost if told[number] not in scans]
        for number, scan in told.items():
            if scan in scans:
                of_scan.setdefault(scan, []).append(values[number])
        if len(lost) < len(table.rows) and matched.column is None:
            matched = replace(matched, column=at, kind=IdKind.VOLUME)
    shared = {scan: found[0] for scan, found in of_scan.items() if all(value == found[0] for value in found)}
    return replace(matched, lost=lost), shared


def _check_keys(table: Table, matched: Match, values: Sequence[object]) -> None:
    """Refuse two values for one key, also where no volume has it, and two for one volume."""
    if matched.column is None or matched.kind is None:
        return
    first: dict[str, object] = {}
    repeated = []
    for number, row in enumerate(table.rows):
        key = key_in(matched.kind, row[matched.column])
        if key and first.setdefault(key, values[number]) != values[number]:
            repeated.append(number)
    repeated += [n for rows in matched.rows.values() for n in rows[1:] if values[n] != values[rows[0]]]
    if repeated:
        number = table.numbers[min(repeated)]
        raise UserError(
            f"{table.path} gives the id of its row {number} twice, with different values: keep one row an id.",
            code="conflicting-ids",
            field=str(table.path),
            value=number,
        )


def report_columns(table: Table) -> dict[str, str]:
    """The columns that a report is made of → what they are taken as: the first of `report` and `report_text`, else findings and
    impression; empty where the table has none.
    """
    plain = [at for at in map(table.column, REPORT_COLUMNS) if at is not None]
    if plain:
        return {table.columns[plain[0]]: "report"}
    parts = {FINDINGS: "findings", IMPRESSIONS: "impression"}
    return {table.columns[at]: what for name, what in parts.items() if (at := table.column(name)) is not None}


def report_in(table: Table, row: list[str]) -> str:
    """A row's report; empty where it has none, or only a word for nothing such as `nan`."""
    plain = [at for at in map(table.column, REPORT_COLUMNS) if at is not None]
    if plain:
        text = row[plain[0]]
        return "" if is_nothing(text) and text.casefold() != "none" else text  # "None" may be all that a report says
    parts = (("Findings", table.cell(row, FINDINGS)), ("Impression", table.cell(row, IMPRESSIONS)))
    return " ".join(f"{title}: {part}" for title, part in parts if part != NOT_GIVEN and not is_nothing(part))


def accounts_of(joined: Iterable[Joined[Value]]) -> list[TableAccount]:
    """The accounts of these tables."""
    return [one.account for one in joined]


def merged(joined: Sequence[Joined[dict[str, Value]]]) -> dict[str, dict[str, Value]]:
    """volume_id → the fields of all tables of one kind.

    Raises:
        UserError: two tables disagree ("disagreeing-tables", `field` is the column, `value` both files).
    """
    made: dict[str, dict[str, Value]] = {}
    origin: dict[tuple[str, str], Joined[dict[str, Value]]] = {}
    for one in joined:
        for name, fields in one.of.items():
            for column, value in fields.items():
                if value in (None, ""):
                    made.setdefault(name, {}).setdefault(column, value)
                    continue
                first = origin.setdefault((name, column), one)
                if first is not one and made[name][column] != value:
                    raise disagreement(first, one, column, name)
                made.setdefault(name, {})[column] = value
    return made


def disagreement(first: Joined[Value], second: Joined[Value], column: str, volume_id: str) -> UserError:
    """Two tables give a volume different values of a column."""
    return UserError(
        f"{first.table.path} (row {first.row[volume_id]}) and {second.table.path} (row {second.row[volume_id]}) disagree on "
        f"{column!r} of one volume: mend one of them, or take it away.",
        code="disagreeing-tables",
        field=column,
        value=(str(first.table.path), str(second.table.path)),
    )


def nothing_matched(role: str, joined: Sequence[Joined[Value]], volumes: Volumes) -> None:
    """Refuse tables of one role in which no row at all belongs to a volume ("unmatched-ROLE")."""
    if not joined or not volumes.listed or any(one.account.matched for one in joined):
        return
    near = sum(one.account.near for one in joined)
    hint = f" ({near} rows differ from an id only by leading zeros, case, a decimal or a folder)" if near else ""
    short = sum(
        bool(_SCIENTIFIC.fullmatch(row[at])) for one in joined for at in id_columns(one.table) for row in one.table.rows
    )
    if short:
        hint = f" ({short} are written like 1.23E+12, without their last digits: export that column as text)"
    other = next((one.other for one in joined if one.other), None)
    hint = "" if other else hint
    mend = f"if they are ids of the kind {other}, name the column {COLUMN_OF[other]!r}" if other else "mend its ids"
    path = joined[0].table.path
    raise UserError(
        f"No id of the {role} {path} is one of its kind here{hint}: {mend}.",
        code=f"unmatched-{role}",
        field=str(path),
        value=near,
    )
