"""A manifest: a table of volumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from brgsa.errors import UserError
from brgsa.volumes.formats.detached import data_files
from brgsa_platform.layouts.ids import IdKind, canonical_id, folders_in, is_nothing, loose_id, owner_id, without_suffix
from brgsa_platform.layouts.item import SPLITS, Archive, Item, Listed, split_of
from brgsa_platform.layouts.tables.account import Listing, TableAccount, passed_over
from brgsa_platform.layouts.tables.files import Table, read_table
from brgsa_platform.layouts.tables.join import report_columns, report_in
from brgsa_platform.layouts.tables.label_columns import LabelColumns, label_columns

WITHOUT_DATA_FILES = (".nii.gz", ".nii", ".npz", ".dcm")  # read by readers that follow no path in a header
OPTIONAL = ("volume_id", "scan_id", "patient_id", "split", "series")


def manifest(archive: Archive) -> Listing:
    """The volumes that a manifest names, a row each.

    Its columns are `volume` (a file or a DICOM folder; relative to the table's folder, absolute, or s3://…), `report`, and
    optionally `volume_id`, `scan_id`, `patient_id`, `split`, `series` (SeriesInstanceUID, where a folder holds several) and a
    column per label. `report` may be missing where a table of reports is given. Without `split`, a tenth of the patients is the
    test set and `validation_fraction` the validation set.

    Raises:
        UserError: a column is missing ("missing-column"), a row has no path ("no-path"), an unknown split ("unknown-split") or
            a value that is no label ("bad-label"), or a path, or what a header there points to, leads neither below the table's
            folder nor below the archive's `roots` ("path-outside"). `value` is the row's number, counted from 1, or the split.
    """
    table = read_table(archive.root)
    table.require("volume")
    reports = report_columns(table)
    if not reports and not archive.reports_elsewhere:
        table.require("report")
    labels = label_columns(table)
    roots = [os.path.abspath(archive.root.parent), *archive.roots]
    _check_all_or_none(table, "patient_id", "split")
    volumes = [
        _listed(archive, table, row, number, roots, labels)
        for row, number in zip(table.rows, table.numbers, strict=True)
    ]
    _check_once(table, volumes)
    return Listing(volumes, [_account(table, {**reports, **labels.taken}, _alike(volumes))])


def _check_all_or_none(table: Table, *names: str) -> None:
    """Refuse a column that only some rows fill: a patient without an id, or with an invented split, may stand in two splits."""
    for name in names:
        empty = [
            number for row, number in zip(table.rows, table.numbers, strict=True) if is_nothing(table.cell(row, name))
        ]
        if empty and len(empty) < len(table.rows):
            raise UserError(
                f"The manifest {table.path} has no {name} in {len(empty)} of its {len(table.rows)} rows (the first is row "
                f"{empty[0]}): give one to every row, or leave the column out.",
                code="missing-value",
                field=name,
                value=empty[0],
            )


def _check_once(table: Table, volumes: Sequence[Listed]) -> None:
    """Refuse one file, or one series, under two ids."""
    first: dict[tuple[str, str | None], Listed] = {}
    for volume in volumes:
        other = first.setdefault((volume.item.path, volume.item.series), volume)
        if other.item.volume_id != volume.item.volume_id:
            raise UserError(
                f"The manifest {table.path} names one volume twice, in {other.origin} and {volume.origin}, under two ids: keep "
                "one of the rows.",
                code="repeated-volume",
                field="volume",
                value=volume.origin,
            )


def _alike(volumes: Sequence[Listed]) -> int:
    """How many ids are written as another of their kind but for leading zeros, case or a decimal."""
    alike = 0
    for kind in (IdKind.VOLUME, IdKind.SCAN, IdKind.PATIENT):
        names = {name for volume in volumes for name in volume.ids[kind]}
        alike += len(names) - len(set(map(loose_id, names)))
    return alike


def _account(table: Table, taken: dict[str, str], alike: int) -> TableAccount:
    named = {table.columns[at]: "" for name in ("volume", *OPTIONAL) if (at := table.column(name)) is not None}
    taken = {**named, **taken}
    rows = len(table.rows)
    return TableAccount(
        "manifest",
        str(table.path),
        rows,
        rows,
        key="volume",
        alike=alike,
        taken=taken,
        passed=passed_over(table, taken),
    )


def _listed(
    archive: Archive, table: Table, row: list[str], number: int, roots: Sequence[str], labels: LabelColumns
) -> Listed:
    volume = table.cell(row, "volume")
    path = _path(table.path, volume, number, roots)
    file = canonical_id(_stem(table.path, volume))
    volume_id, scan, patient = (owner_id(table.cell(row, name)) for name in OPTIONAL[:3])
    volume_id = volume_id or file
    owner = patient or scan or volume_id
    given = table.cell(row, "split")
    split = ("" if is_nothing(given) else given.lower()) or split_of(loose_id(owner), 0.1, archive.validation_fraction)
    if split not in SPLITS:
        raise UserError(
            f"The manifest {table.path} has an unknown split in row {number}: use one of {', '.join(SPLITS)}.",
            code="unknown-split",
            field="split",
            value=split,
        )
    item = Item(
        volume_id=volume_id,
        scan_id=scan or volume_id,
        patient_id=owner,
        split=split,
        path=path,
        source=volume,
        report=report_in(table, row),
        labels=labels.read(table, row, number),
        series=table.cell(row, "series") or None,
    )
    ids = {
        IdKind.VOLUME: [volume_id],
        IdKind.FILE: ["/".join((*reversed(folders_in(volume)), file))],
        IdKind.SERIES: [item.series or ""],
        IdKind.SCAN: [scan],
        IdKind.PATIENT: [patient],
    }
    return Listed(item, ids, origin=f"row {number}")


def _path(source: Path, volume: str, number: int, roots: Sequence[str]) -> str:
    """The path or URL of a row's volume, within the fence."""
    if not volume:
        raise UserError(
            f"The manifest {source} has no path in column 'volume' in row {number}.",
            code="no-path",
            field="volume",
            value=number,
        )
    remote = "://" in volume
    path = volume if remote else os.path.normpath(os.path.join(os.path.abspath(source.parent), volume))
    leads_out = not _within(path, roots)
    if not (remote or leads_out or path.lower().endswith(WITHOUT_DATA_FILES)):
        leads_out = not all(_within(str(file), roots) for file in data_files(Path(path)))
    if leads_out:
        raise UserError(
            f"The manifest {source} leads out of its own folder in row {number}: name the folder where its volumes lie "
            "with --root, or correct the path.",
            code="path-outside",
            field="volume",
            value=number,
        )
    return path


def _within(path: str, roots: Sequence[str]) -> bool:
    """Whether a path or URL lies below one of these: a table that someone else made must not choose what is read."""
    return ".." not in path.split("/") and any(path.startswith(root.rstrip("/") + "/") for root in roots)


def _stem(source: Path, volume: str) -> str:
    """A file's name without its suffix, known or not; a folder's name as it is."""
    name = PurePosixPath(volume).name
    if without_suffix(name) != name:
        return without_suffix(name)
    return name if (source.parent / volume).is_dir() else Path(name).stem
