"""What a table offered and what became of it: one line for a person and for MLflow, and ids for the store's own log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brgsa_platform.layouts.ids import ID_COLUMNS, IdKind, column_key
from brgsa_platform.layouts.item import Listed
from brgsa_platform.layouts.tables.files import Table
from brgsa_platform.layouts.tables.matching import Match

EXAMPLES = 3  # lost rows whose ids are kept for the store's own log
_NAMES = 40  # columns that are named, of thousands in RAD-ChestCT's own table


@dataclass(frozen=True)
class TableAccount:
    """One table of an archive, or beside it.

    Attributes:
        role: what it is read as: "manifest", "reports", "labels" or "metadata".
        path: of the file.
        rows, matched: rows, and those that belong to a volume.
        near: rows without a volume whose id differs from one only by leading zeros, case, a decimal or the folders before it.
        without: volumes without a row.
        alike: of a manifest: ids that differ from another of its own only by leading zeros, case or a decimal.
        replaced: volumes for which the archive itself says something else.
        key: the key column and the kind of its ids; empty where no row belongs to a volume.
        taken: column → what it is taken as.
        passed: columns that are passed over.
        unused: why the whole table is not used; empty where it is.
        lost: the first rows without a volume: number and id. They are for the store's own log alone.
    """

    role: str
    path: str
    rows: int = 0
    matched: int = 0
    near: int = 0
    without: int = 0
    alike: int = 0
    replaced: int = 0
    key: str = ""
    taken: Mapping[str, str] = field(default_factory=dict)
    passed: Sequence[str] = ()
    unused: str = ""
    lost: Sequence[tuple[int, str]] = ()

    def line(self) -> str:
        """The account in one line, without ids and texts."""
        name = f"{self.role} {Path(self.path).name}"
        if self.unused:
            return f"{name}: not used, because {self.unused}"
        lost = f"{self.rows - self.matched} found no volume"
        if self.near:
            lost += f" ({self.near} differ from an id only by leading zeros, case, a decimal or a folder, and are not joined)"
        if self.alike:
            lost += (
                f"; {self.alike} ids differ from others of it only by leading zeros, case or a decimal, and stay apart"
            )
        if self.replaced:
            lost += f"; it replaces what the archive says of {self.replaced} volumes"
        by = f" by {self.key}" if self.key else ""
        return (
            f"{name}: {self.rows} rows{by}, {self.matched} matched, {lost}; {self.without} volumes without a row; taken: "
            f"{_named([_as(column, what) for column, what in self.taken.items()])}; passed over: {_named(self.passed)}"
        )

    def log_line(self, with_ids: bool) -> str:
        """The line for the store's own log, with the first rows that found no volume.

        Args:
            with_ids: give their ids; otherwise only their numbers.
        """
        lost = ", ".join(f"row {number} ({name!r})" if with_ids else f"row {number}" for number, name in self.lost)
        return self.line() + (f"; the first rows without a volume: {lost}" if lost else "")


@dataclass(frozen=True)
class Listing:
    """The volumes of an archive and the accounts of the tables that were read for it.

    Attributes:
        scan_of: the scan that a volume's id tells, in archives where it does.
    """

    volumes: Sequence[Listed]
    accounts: Sequence[TableAccount] = ()
    scan_of: Callable[[str], str] | None = None


def account(role: str, table: Table, matched: Match, without: int, taken: Mapping[str, str]) -> TableAccount:
    """The account of a table that was joined on its ids.

    Args:
        without: volumes to which no row belongs.
        taken: column → what it is taken as, without the key.
    """
    at = matched.column
    ids = [name for name in table.columns if column_key(name) in ID_COLUMNS] if at is not None else []
    shown = _key_column(table, at)
    return TableAccount(
        role=role,
        path=str(table.path),
        rows=len(table.rows),
        matched=len(table.rows) - len(matched.lost),
        near=matched.near,
        without=without,
        key="" if at is None else _key(table.columns[at], matched.kind),
        taken=dict(taken),
        passed=passed_over(table, {*taken, *ids}),
        lost=[(table.numbers[n], table.rows[n][shown]) for n in list(matched.lost)[:EXAMPLES]],
    )


def passed_over(table: Table, used: Collection[str]) -> list[str]:
    """The columns of a table that are not used."""
    return [name or "(a column without a name)" for name in table.columns if name not in used]


def _key_column(table: Table, at: int | None) -> int:
    if at is not None:
        return at
    return next(i for i, name in enumerate(table.columns) if column_key(name) in ID_COLUMNS)


def _key(column: str, kind: IdKind | None) -> str:
    return column if kind is None or column_key(column) == column_key(kind) else f"{column} ({kind})"


def _as(column: str, what: str) -> str:
    return column if what in (column, "") else f"{column} as {what}"


def _named(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more
