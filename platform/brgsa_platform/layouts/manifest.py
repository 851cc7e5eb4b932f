"""A table of volumes: CSV, Parquet or JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from brgsa.errors import UserError
from brgsa_platform.layouts.item import SPLITS, Archive, Item, split_of
from brgsa_platform.layouts.tables import bare, labels_of, read_table, rows_of, text


def manifest(archive: Archive) -> Iterable[Item]:
    """`volume` (a file, or a DICOM folder; relative to the table's folder, absolute, or s3://…), `report`, and optionally
    `volume_id`, `scan_id`, `patient_id`, `split`, `series` (SeriesInstanceUID, for a folder of several) and a 0/1 column a
    label. What lies neither below the table's folder nor below one of the archive's `roots` is refused.

    `report` may be missing where reports are given beside it. Without `split`, a tenth of the patients is the test set and
    `validation_fraction` the validation set.
    """
    source = archive.root
    table = read_table(source)
    for column in ("volume",) if archive.reports is not None else ("volume", "report"):
        if column not in table.columns:
            raise UserError(
                f"The manifest {source} has no column {column!r}; it has: {', '.join(map(str, table.columns))}."
            )
    roots = [str(source.parent.absolute()), *archive.roots]
    for number, row in enumerate(rows_of(table), start=1):
        volume = text(row["volume"])
        if not volume:
            raise UserError(f"The manifest {source} has no path in column 'volume' in row {number}.")
        path = volume if "://" in volume else os.path.normpath(source.parent.absolute() / volume)
        if not _within(path, roots):
            raise UserError(
                f"The manifest {source} leads out of its own folder in row {number}: name the folder where its volumes lie "
                "with --root, or correct the path."
            )
        volume_id = text(row.get("volume_id")) or _stem(source, volume)
        scan = text(row.get("scan_id")) or volume_id
        patient = text(row.get("patient_id")) or scan
        split = text(row.get("split")) or split_of(patient, 0.1, archive.validation_fraction)
        if split not in SPLITS:
            raise UserError(
                f"The manifest {source} has the split {split!r} in row {number}: use one of {', '.join(SPLITS)}."
            )
        yield Item(
            volume_id=volume_id,
            scan_id=scan,
            patient_id=patient,
            split=split,
            path=path,
            source=volume,
            report=archive.report_of(volume_id, scan) or text(row.get("report")),
            labels={**labels_of(row, f"volume {volume_id}"), **archive.labels_of(volume_id, scan)},
            series=text(row.get("series")) or None,
        )


def _within(path: str, roots: Sequence[str]) -> bool:
    """Whether a path or URL lies below one of these; a table that someone else made must not choose what is read."""
    return ".." not in PurePosixPath(path).parts and any(path.startswith(root.rstrip("/") + "/") for root in roots)


def _stem(source: Path, volume: str) -> str:
    """A file's name without its suffix, whatever that is; a folder's name as it is."""
    name = PurePosixPath(volume).name
    if bare(name) != name:
        return bare(name)
    return name if (source.parent / volume).is_dir() else Path(name).stem
