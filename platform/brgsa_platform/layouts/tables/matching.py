"""Which volume a table's row belongs to: the table's key column is compared with the ids of one kind, never with a mix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from brgsa.errors import UserError
from brgsa_platform.layouts.ids import (
    COLUMN_OF,
    ID_COLUMNS,
    SUFFIXES,
    IdKind,
    column_key,
    folders_in,
    id_in,
    loose_id,
)
from brgsa_platform.layouts.item import Listed
from brgsa_platform.layouts.tables.files import Table

_COUNT = re.compile(r"0|[1-9][0-9]{0,5}")  # what may number rows, and be no id
_SCANS = (IdKind.SCAN, IdKind.ACCESSION, IdKind.STUDY)
# Kinds that people call by one name.
_CALLED_ALIKE = {IdKind.VOLUME: (IdKind.VOLUME, IdKind.FILE), IdKind.FILE: (IdKind.FILE, IdKind.VOLUME)}


@dataclass(frozen=True)
class Match:
    """A table's rows and the volumes that they belong to.

    Attributes:
        column: number of the key column; None where no row of the table belongs to a volume.
        kind: of the ids in the key column.
        rows: volume_id → numbers (from 0) of its rows in the table.
        lost: numbers (from 0) of the rows that belong to no volume.
        near: how many of these differ from an id only by leading zeros, case, a decimal or the folders before it.
        other: a kind that the rows would fit, though the column's name says another one that the archive knows.
        names_scans: whether another column of the table names the scans of the archive.
    """

    column: int | None
    kind: IdKind | None
    rows: Mapping[str, list[int]] = field(default_factory=dict)
    lost: Sequence[int] = ()
    near: int = 0
    other: IdKind | None = None
    names_scans: bool = False


class Volumes:
    """The ids of an archive's volumes, by kind.

    Attributes:
        ids: volume_id → kind → its ids, as `id_in` gives them.
    """

    def __init__(self, listed: Sequence[Listed], scan_of: Callable[[str], str] | None = None) -> None:
        """`scan_of` gives the scan that a volume's id tells, in archives where it does."""
        self.listed = listed
        self.scan_of = scan_of
        self._by_kind: dict[IdKind, dict[str, list[Listed]]] = {}
        self._folders: dict[str, tuple[str, ...]] = {}
        self._by_folder: dict[tuple[str, str], list[Listed]] = {}
        self.ids: dict[str, dict[IdKind, frozenset[str]]] = {}
        for volume in listed:
            own = self.ids[volume.item.volume_id] = {
                kind: frozenset(filter(None, (id_in(kind, name) for name in names)))
                for kind, names in volume.ids.items()
            }
            for kind, names in own.items():
                for name in names:
                    self._by_kind.setdefault(kind, {}).setdefault(name, []).append(volume)
            for file in volume.ids.get(IdKind.FILE, ()):
                folders = self._folders[volume.item.volume_id] = folders_in(file)
                key = (id_in(IdKind.FILE, file), folders[0] if folders else "")
                self._by_folder.setdefault(key, []).append(volume)
        self._loose = {kind: {loose_id(name) for name in names} for kind, names in self._by_kind.items()}
        self._unclear = {
            kind: {name for name, found in names.items() if self._whose(found, kind) > 1}
            for kind, names in self._by_kind.items()
        }

    def kinds(self) -> list[IdKind]:
        """The kinds of which some volume has an id."""
        return [kind for kind in IdKind if kind in self._by_kind]

    def knows(self, kind: IdKind) -> bool:
        """Whether the archive itself states ids of a kind; hashes do not count."""
        return kind in self._by_kind and not any(kind in volume.hashed for volume in self.listed[:1])

    def of(self, kind: IdKind, text: str) -> Sequence[Listed]:
        """The volumes that a cell names as an id of a kind; none where that may be volumes of several patients, or scans."""
        found, unclear = self._named(kind, text)
        return () if unclear else found

    def ambiguous(self, kind: IdKind, text: str) -> bool:
        """Whether an id of this kind belongs to volumes of several patients, or a patient's id to several scans."""
        return self._named(kind, text)[1]

    def near(self, kind: IdKind, text: str) -> bool:
        """Whether a cell, which is no id of a kind, differs from one only by leading zeros, case, a decimal or a folder."""
        return bool(text) and loose_id(id_in(kind, text)) in self._loose.get(kind, ())

    def contradicts(self, kind: IdKind, text: str, volume_id: str) -> bool:
        """Whether a cell names another id of a kind than those of a volume."""
        told, known = id_in(kind, text), self.ids[volume_id].get(kind)
        if not told or not known:
            return False
        return told not in known or (kind is IdKind.FILE and not self._lies_in(volume_id, folders_in(text)))

    def _named(self, kind: IdKind, text: str) -> tuple[Sequence[Listed], bool]:
        """The volumes that a cell names, and whether they have several owners.

        The folders of a file's path are compared as far as both sides name them.
        """
        name = id_in(kind, text)
        folders = folders_in(text) if kind is IdKind.FILE else ()
        if not folders:
            return self._by_kind.get(kind, {}).get(name, ()), name in self._unclear.get(kind, ())
        near = (*self._by_folder.get((name, folders[0]), ()), *self._by_folder.get((name, ""), ()))
        found = [volume for volume in near if self._lies_in(volume.item.volume_id, folders)]
        return found, len(found) > 1 and self._whose(found, kind) > 1

    def _lies_in(self, volume_id: str, folders: Sequence[str]) -> bool:
        return all(a == b for a, b in zip(folders, self._folders[volume_id], strict=False))

    @staticmethod
    def _whose(found: Iterable[Listed], kind: IdKind) -> int:
        """How many owners these volumes have: scans where the id is a patient's or a folder's, else patients."""
        scans = kind in (IdKind.PATIENT, IdKind.FOLDER)
        return len({volume.item.scan_id if scans else volume.item.patient_id for volume in found})


def match(table: Table, volumes: Volumes) -> Match:
    """Join a table on the first of its id columns that fits.

    Its ids are of the kind that the column's name says. Where the archive states no such ids, or the name says no kind, they
    are of the one kind that fits; two that fit and would give different volumes are refused. Other id columns must not
    contradict it.

    Raises:
        UserError: the table has no column of ids ("no-ids"), its ids fit two kinds ("ambiguous-ids", `field` is the column),
            its numbers may only count the rows ("row-numbers"), an id belongs to several patients ("ambiguous-id", `value` is
            the row's number), two id columns of a row name different volumes ("contradicting-ids", `value` is the row's
            number), or a cell holds another volume's row ("unreadable-table", `value` is the row's number).
    """
    columns = id_columns(table)
    if not columns:
        raise UserError(
            f"{table.path} has no column of ids ({', '.join(COLUMN_OF.values())}); it has: {table.column_names()}.",
            code="no-ids",
            field=str(table.path),
        )
    for at in columns:
        kind = _kind(table, at, volumes)
        if kind is not None:
            matched = _joined(table, at, kind, volumes)
            others = _fitting(table, [other for other in columns if other != at], volumes)
            _check_others(table, others, matched, volumes)
            _check_swallowed(table, at, kind, matched, volumes)
            return replace(matched, names_scans=any(kind in _SCANS for kind in others.values()))
    near = sum(any(volumes.near(kind, row[at]) for kind in volumes.kinds() for at in columns) for row in table.rows)
    fitting = (kind for kind in volumes.kinds() for at in columns if _found(table, at, kind, volumes))
    return Match(None, None, lost=range(len(table.rows)), near=near, other=next(fitting, None))


def id_columns(table: Table) -> list[int]:
    """Numbers of the columns that may hold ids, in the order in which they are tried."""
    order = list(IdKind)
    kinds = {at: ID_COLUMNS[key] for key, at in table.by_key.items() if key in ID_COLUMNS}
    return sorted(kinds, key=lambda at: (len(order) if (kind := kinds[at]) is None else order.index(kind), at))


def _kind(table: Table, at: int, volumes: Volumes) -> IdKind | None:
    """The kind of ids in a column; None where it fits none."""
    own = ID_COLUMNS[column_key(table.columns[at])]
    if own is IdKind.SERIES and all(row[at].isdigit() for row in table.rows if row[at]):
        return None  # SeriesNumbers, which every study counts anew
    called = [kind for kind in _CALLED_ALIKE.get(own, (own,)) if volumes.knows(kind)] if own else []
    # The number 2024/17 of an examination is no path to the file 17.
    paths = own in (None, *_CALLED_ALIKE) or any(row[at].lower().endswith(SUFFIXES) for row in table.rows)
    others = [kind for kind in volumes.kinds() if paths or kind is not IdKind.FILE]
    fits = {kind: _found(table, at, kind, volumes) for kind in called or others}
    fits = {kind: found for kind, found in fits.items() if found}
    if own in fits and all(len(found) <= len(fits[own]) for found in fits.values()):
        return own
    if own and any(volumes.ambiguous(own, row[at]) for row in table.rows):
        return own  # refused with its row
    if not fits:
        return None
    if own is None and all(_COUNT.fullmatch(row[at]) for row in table.rows if row[at]):
        raise UserError(
            f"The column {table.columns[at]!r} of {table.path} may only count the rows: take it away, or, if these are ids, "
            f"name it {' or '.join(repr(COLUMN_OF[kind]) for kind in fits)}.",
            code="row-numbers",
            field=table.columns[at],
            value=str(table.path),
        )
    best = max(fits, key=lambda kind: len(fits[kind]))
    if any(not found.items() <= fits[best].items() for found in fits.values()):
        names = " or ".join(repr(COLUMN_OF[kind]) for kind in fits)
        raise UserError(
            f"The column {table.columns[at]!r} of {table.path} may hold ids of two kinds, and they name different volumes: "
            f"rename it to {names}.",
            code="ambiguous-ids",
            field=table.columns[at],
            value=str(table.path),
        )
    return best


def _found(table: Table, at: int, kind: IdKind, volumes: Volumes) -> dict[int, frozenset[str]]:
    """Number of a row → ids of the volumes that it names, as ids of a kind."""
    found = {}
    for number, row in enumerate(table.rows):
        if named := volumes.of(kind, row[at]):
            found[number] = frozenset(volume.item.volume_id for volume in named)
    return found


def _joined(table: Table, at: int, kind: IdKind, volumes: Volumes) -> Match:
    rows: dict[str, list[int]] = {}
    lost = []
    for number, row in enumerate(table.rows):
        if volumes.ambiguous(kind, row[at]):
            several = "several scans" if kind in (IdKind.PATIENT, IdKind.FOLDER) else "several patients"
            raise UserError(
                f"The id in row {table.numbers[number]} of {table.path} (column {table.columns[at]!r}) belongs to volumes of "
                f"{several}: use the ids of scans, or SeriesInstanceUID.",
                code="ambiguous-id",
                field=table.columns[at],
                value=table.numbers[number],
            )
        named = volumes.of(kind, row[at])
        if not named:
            lost.append(number)
        for volume in named:
            rows.setdefault(volume.item.volume_id, []).append(number)
    near = sum(volumes.near(kind, table.rows[number][at]) for number in lost)
    return Match(at, kind, rows, lost, near)


def _fitting(table: Table, columns: Iterable[int], volumes: Volumes) -> dict[int, IdKind]:
    """The columns whose ids the archive knows, by the kind that their names say."""
    kinds = {at: ID_COLUMNS[column_key(table.columns[at])] for at in columns}
    return {at: kind for at, kind in kinds.items() if kind and any(volumes.of(kind, row[at]) for row in table.rows)}


def _check_others(table: Table, others: Mapping[int, IdKind], matched: Match, volumes: Volumes) -> None:
    """Refuse a row that names one volume in its key column, and another in a second column of ids."""
    for at, kind in others.items():
        for volume_id, number in _pairs(matched):
            if volumes.contradicts(kind, table.rows[number][at], volume_id):
                raise UserError(
                    f"Row {table.numbers[number]} of {table.path} names one volume in the column "
                    f"{table.columns[matched.column or 0]!r} and another in {table.columns[at]!r}: mend the row.",
                    code="contradicting-ids",
                    field=table.columns[at],
                    value=table.numbers[number],
                )


def _check_swallowed(table: Table, at: int, kind: IdKind, matched: Match, volumes: Volumes) -> None:
    """Refuse a cell of several lines, one of which is the row of a volume that has none, as behind an open quotation mark."""
    for number, row in enumerate(table.rows):
        for line in (line for cell in row if "\n" in cell for line in cell.split("\n")[1:]):
            cells = re.split(r"[,;\t|]", line, maxsplit=at + 1)
            named = volumes.of(kind, cells[at].strip(' "')) if len(cells) > at + 1 else ()
            if any(volume.item.volume_id not in matched.rows for volume in named):
                raise UserError(
                    f"A cell of row {table.numbers[number]} of {table.path} holds the row of another volume: a quotation mark "
                    "there is not closed; close it.",
                    code="unreadable-table",
                    field=str(table.path),
                    value=table.numbers[number],
                )


def _pairs(matched: Match) -> Iterator[tuple[str, int]]:
    for volume_id, numbers in matched.rows.items():
        for number in numbers:
            yield volume_id, number
