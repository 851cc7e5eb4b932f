"""Scores and labels as anybody's files hold them, brought together by the names of volumes and abnormalities.

Never by position: published tables order their columns differently, and joined by position their figures are wrong without a
sign of it. Row order counts only where neither file has ids.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brgsa.errors import UserError, nearest
from brgsa.metrics.units import prevalence
from brgsa.protocols import Protocol
from brgsa_platform.evaluation.scored import Codes, Floats, Scored
from brgsa_platform.layouts.ids import COLUMN_OF, ID_COLUMNS, IdKind, column_key, file_name, id_in, loose_id
from brgsa_platform.layouts.tables.files import Table, read_table
from brgsa_platform.layouts.tables.label_columns import is_rad_chestct_s_own, label_columns, label_of, parse_label
from brgsa_platform.layouts.tables.matching import id_columns

SPACING = ("XYSpacing", "ZSpacing")  # of CT-RATE's metadata tables

_NO_ABNORMALITY = frozenset({"split", "report", "reporttext", *map(column_key, SPACING)})
_CT_RATE = re.compile(r"((?:train|valid)_[0-9]+)_[a-z]+_[0-9]+")  # the id of a volume tells scan and patient
_SCANS = (IdKind.SCAN, IdKind.ACCESSION, IdKind.STUDY)


@dataclass(frozen=True)
class LabelTable:
    """A table of labels: R rows, L abnormalities.

    Attributes:
        table: as it is written.
        names: of the abnormalities: the published name where it is one, otherwise as the column is spelled.
        labels: float64 (R, L).
    """

    table: Table
    names: list[str]
    labels: Floats

    @classmethod
    def read(cls, path: Path) -> LabelTable:
        """Raises UserError: see `read_table`, `label_columns`, and "bad-label" (`field` is the label)."""
        table = read_table(path)
        published = label_columns(table)
        values = [
            [math.nan if v is None else v for v in published.read(table, row, n).values()] for row, n in _rows(table)
        ]
        names, labels = (
            list(published.of),
            np.array(values, dtype=np.float64).reshape(len(table.rows), len(published.of)),
        )
        own = [at for at, column in enumerate(table.columns) if column not in published.taken and _may_be_label(column)]
        others = [] if is_rad_chestct_s_own(table.columns) else [at for at in own if _holds_labels(table, at)]
        columns = [[math.nan if (v := parse_label(row[at])) is None else v for row in table.rows] for at in others]
        if others:
            labels = np.concatenate([labels, np.array(columns, dtype=np.float64).T], axis=1)
        return cls(table, [*names, *(table.columns[at] for at in others)], labels)

    def prevalence(self, names: Sequence[str]) -> Floats:
        """Share of the table's scans that have each abnormality; NaN for those that it does not know."""
        shares = prevalence(self.labels, _owners([self.table], [list(range(len(self.table.rows)))])[0])
        by_key = {_key(name): share for name, share in zip(self.names, shares, strict=True)}
        return np.array([by_key.get(_key(name), math.nan) for name in names])


def read_scored(
    scores: Path, labels: LabelTable, protocol: Protocol, metadata: Path | None = None
) -> tuple[Scored, list[str]]:
    """The volumes of a score file that have labels, and what there is to say of the others.

    Args:
        metadata: a table with the columns of `SPACING`, for a protocol that asks for voxels.

    Raises:
        UserError: no-ids (one of the files has none), other-length (neither has, and their rows are not as many), no-match
            (`value` counts the ids that differ by spelling only), duplicate-id, duplicate-column, no-score-column,
            bad-score, score-not-finite (`field` is the column, `value` the row).
    """
    table = read_table(scores)
    columns = _score_columns(table, labels, protocol)
    found, of_labels, joined = _joined(table, labels.table)
    if not found:
        near = len({loose_id(one) for one in _ids(table)[1]} & {loose_id(one) for one in _ids(labels.table)[1]})
        hint = f"; {near} differ by spelling only" if near else ""
        raise UserError(
            f"No volume of {scores} is in {labels.table.path}{hint}: give the labels of these volumes.",
            code="no-match",
            field=str(scores),
            value=near,
        )
    ids = _ids(table)[1] or [f"row {n}" for n in table.numbers]
    names = [name for name in labels.names if protocol.can_score(name, columns)]
    values = np.array([[_score(table, row, at, n) for at in columns.values()] for row, n in _rows(table)])
    notes = [joined, *_left_out(table, labels, names, columns, protocol, len(found))]
    scans, patients, told = _owners([table, labels.table], [found, of_labels])
    if not told and protocol.bootstrap.unit != "volume":
        notes.append("The files do not tell which volumes are of one scan: each is taken for a scan of its own.")
    scored = Scored(
        names=names,
        volume_ids=[ids[row] for row in found],
        labels=labels.labels[of_labels][:, [labels.names.index(name) for name in names]],
        scores=protocol.combined(names, list(columns), values[found]),
        scans=scans,
        patients=patients,
        voxels=_voxels(read_table(metadata), table, found) if metadata else _voxels(labels.table, table, found),
    )
    return scored, notes


def read_rival(path: Path, scored: Scored, protocol: Protocol) -> Scored:
    """Another model's scores, from a file, for volumes whose labels are known: its volumes and abnormalities among those.

    Raises:
        UserError: see `read_scored`.
    """
    ids = [] if scored.volume_ids[:1] == ["row 1"] else scored.volume_ids
    columns = (COLUMN_OF[IdKind.VOLUME],) if ids else ("",)
    rows = [[one] for one in ids] or [[""]] * len(scored.volume_ids)
    table = Table(Path("labels under test"), columns, rows, list(range(1, len(rows) + 1)))
    known = LabelTable(table, scored.names, np.asarray(scored.labels, dtype=np.float64))
    found, _ = read_scored(path, known, replace(protocol, unit="volume"))
    if ids:  # in the spelling of the volumes under test, not of the file
        spelled = {file_name(one): one for one in ids}
        return replace(found, volume_ids=[spelled[file_name(one)] for one in found.volume_ids])
    return found


def _joined(scores: Table, labels: Table) -> tuple[list[int], list[int], str]:
    """Rows of the scores and of the labels that belong together, and in words how they were brought together."""
    mine, theirs = _by_kind(scores), _by_kind(labels)
    for table, own, other in ((scores, mine, theirs), (labels, theirs, mine)):
        if other and not own:
            raise UserError(
                f"{table.path} has no column of ids, and the other file has: name its column of ids VolumeName.",
                code="no-ids",
                field=str(table.path),
            )
    if not mine:
        if len(scores.rows) != len(labels.rows):
            raise UserError(
                f"{scores.path} has {len(scores.rows)} rows and {labels.path} {len(labels.rows)}, and neither has ids to join "
                "them by: add a column VolumeName to both.",
                code="other-length",
                field=str(scores.path),
                value=len(scores.rows),
            )
        rows = list(range(len(scores.rows)))
        return rows, rows, "Scores and labels have no ids: they are joined by the order of their rows."
    kind = next((kind for kind in mine if kind in theirs), None)
    if kind is None:
        kinds = [", ".join(COLUMN_OF[kind] for kind in of) for of in (mine, theirs)]
        raise UserError(
            f"{scores.path} has ids of {kinds[0]} and {labels.path} of {kinds[1]}: give both a column of the same ids.",
            code="no-ids",
            field=str(scores.path),
        )
    _check_once(scores, next(iter(mine.values())))
    _check_once(labels, theirs[kind])
    place = {one: row for row, one in enumerate(theirs[kind]) if one}
    pairs = [(row, place[one]) for row, one in enumerate(mine[kind]) if one in place]
    text = f"Joined by {COLUMN_OF[kind]}: {len(pairs)} of {len(scores.rows)} scored volumes have labels."
    return [row for row, _ in pairs], [row for _, row in pairs], text


def _check_once(table: Table, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for number, one in zip(table.numbers, ids, strict=True):
        if one and one in seen:
            raise UserError(
                f"{table.path} has the id of row {number} twice: keep one row of each.",
                code="duplicate-id",
                field=str(table.path),
                value=number,
            )
        seen.add(one)


def _by_kind(table: Table) -> dict[IdKind, list[str]]:
    """Kind → id of each row, the finest kind first. A volume's id may be the path of its file."""
    found: dict[IdKind, list[str]] = {}
    for at in id_columns(table):
        own = ID_COLUMNS[column_key(table.columns[at])] or IdKind.VOLUME
        kind = IdKind.VOLUME if own is IdKind.FILE else own
        form = file_name if kind is IdKind.VOLUME else lambda text, kind=kind: id_in(kind, text)
        found.setdefault(kind, [form(row[at]) for row in table.rows])
    return found


def _ids(table: Table) -> tuple[IdKind | None, list[str]]:
    """The finest ids of a table."""
    return next(iter(_by_kind(table).items()), (None, []))


def _owners(tables: Sequence[Table], rows: Sequence[Sequence[int]]) -> tuple[Codes, Codes, bool]:
    """Codes of the scan and the patient of each volume, from whichever table tells them, and whether any does.

    Args:
        rows: the volumes' rows in each table.
    """
    kinds = [_by_kind(table) for table in tables]

    def told(wanted: Sequence[IdKind]) -> list[str] | None:
        for of, chosen in zip(kinds, rows, strict=True):
            for kind in wanted:
                if kind in of and all(of[kind][row] for row in chosen):
                    return [of[kind][row] for row in chosen]
        return None

    scans, patients = told(_SCANS), told((IdKind.PATIENT,))
    volumes = told((IdKind.VOLUME,))
    of_ct_rate = [_CT_RATE.fullmatch(one) for one in volumes] if volumes else []
    if of_ct_rate and all(of_ct_rate):
        scans = scans or [one[0].rpartition("_")[0] for one in of_ct_rate if one]
        patients = patients or [one[1] for one in of_ct_rate if one]
    alone = [str(row) for row in range(len(rows[0]))]
    known = scans is not None or patients is not None
    scans = scans or alone
    return _codes(scans), _codes(patients or scans), known


def _codes(names: Sequence[str]) -> Codes:
    codes: NDArray[np.int64] = np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    return codes


def _score_columns(table: Table, labels: LabelTable, protocol: Protocol) -> dict[str, int]:
    """Label, or part of a label, → its column of scores."""
    parts = [part for wanted in protocol.max_of.values() for part in wanted]
    wanted = {_key(name): name for name in (*parts, *labels.names)}
    columns: dict[str, int] = {}
    for at, column in enumerate(table.columns):
        name = wanted.get(_key(column)) if _may_be_label(column) else None
        if name is None:
            continue
        if name in columns:
            raise UserError(
                f"Two columns of {table.path} are scores for {name!r}: keep one.",
                code="duplicate-column",
                field=name,
                value=str(table.path),
            )
        columns[name] = at
    if not any(protocol.can_score(name, columns) for name in labels.names):
        raise UserError(
            f"No column of {table.path} is named like a label of {labels.table.path}, which has: {', '.join(labels.names)}.",
            code="no-score-column",
            field=str(table.path),
        )
    return columns


def _left_out(
    table: Table, labels: LabelTable, names: Sequence[str], columns: Mapping[str, int], protocol: Protocol, found: int
) -> list[str]:
    """What of both files has no part in the figures."""
    notes = []
    if found < len(table.rows):
        lost = len(table.rows) - found
        near = _nearly(table, labels.table)
        spelled = f" {near} of these ids differ from one in {labels.table.path.name} by spelling only." if near else ""
        notes.append(f"{lost} scored volumes have no labels and are left out.{spelled}")
    unscored = [name for name in labels.names if name not in names]
    if unscored:
        notes.append(f"Labels without scores, in no figure: {', '.join(unscored)}.")
    used = set(columns.values())
    own = [column for at, column in enumerate(table.columns) if at not in used and _may_be_label(column)]
    if own:
        shown = ", ".join(f"{column}{nearest(column, unscored)}" for column in own[:20])
        notes.append(f"Columns of scores without labels, in no figure: {shown}.")
    return notes


def _nearly(scores: Table, labels: Table) -> int:
    mine, theirs = _ids(scores)[1], _ids(labels)[1]
    known, loose = set(theirs), {loose_id(one) for one in theirs}
    return sum(one not in known and loose_id(one) in loose for one in mine)


def _voxels(told: Table, scores: Table, found: Sequence[int]) -> Floats | None:
    """(N, 2) area in the plane and distance of slices, from a table that has CT-RATE's columns; None where it has not."""
    if any(told.column(name) is None for name in SPACING):
        return None
    ids, mine = _ids(told)[1], _ids(scores)[1]
    place = {one: row for row, one in enumerate(ids)}
    sizes = np.full((len(found), 2), np.nan)
    for i, row in enumerate(found):
        at = place.get(mine[row]) if mine else None
        if at is not None:
            plane, along = (told.cell(told.rows[at], name) for name in SPACING)
            numbers = [float(number) for number in re.findall(r"[0-9.]+", f"{plane} {along}")]
            sizes[i] = [math.prod(numbers[:-1]), numbers[-1]] if len(numbers) > 1 else np.nan
    return sizes


def _score(table: Table, row: list[str], at: int, number: int) -> float:
    try:
        value = float(row[at]) if row[at] else math.nan
    except ValueError:
        raise UserError(
            f"Row {number} of {table.path} has no number in the column {table.columns[at]!r}: write scores as numbers.",
            code="bad-score",
            field=table.columns[at],
            value=number,
        ) from None
    if not math.isfinite(value):
        raise UserError(
            f"Row {number} of {table.path} has no finite score in the column {table.columns[at]!r}: score the volume again, or "
            "leave its row out.",
            code="score-not-finite",
            field=table.columns[at],
            value=number,
        )
    return value


def _rows(table: Table) -> list[tuple[list[str], int]]:
    return list(zip(table.rows, table.numbers, strict=True))


def _key(name: str) -> str:
    """What columns of one abnormality have in common, however they are spelled."""
    return column_key(label_of(name) or name)


def _may_be_label(column: str) -> bool:
    key = column_key(column)
    return bool(key) and key not in ID_COLUMNS and key not in _NO_ABNORMALITY


def _holds_labels(table: Table, at: int) -> bool:
    try:
        return bool([row for row in table.rows if parse_label(row[at]) is not None])
    except ValueError:
        return False
