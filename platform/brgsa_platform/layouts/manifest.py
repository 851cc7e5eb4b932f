"""A manifest: a table of volumes as CSV, Parquet or JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from brgsa.errors import UserError
from brgsa_platform.layouts.item import SPLITS, Archive, Item, split_of
from brgsa_platform.layouts.tables import cell_text, labels_of, read_table, require_columns, rows_of, without_suffix


def manifest(archive: Archive) -> Iterable[Item]:
    """The volumes that a manifest names, a row each.

    Its columns are `volume` (a file or a DICOM folder; relative to the table's folder, absolute, or s3://…), `report`, and
    optionally `volume_id`, `scan_id`, `patient_id`, `split`, `series` (SeriesInstanceUID, where a folder holds several) and a
    0/1 column per label. `report` may be missing where a table of reports is given. Without `split`, a tenth of the patients
    is the test set and `validation_fraction` the validation set.

    Raises:
        UserError: a column is missing ("missing-column"), a row has no path ("no-path") or an unknown split
            ("unknown-split"), or a path leads neither below the table's folder nor below the archive's `roots`
            ("path-outside"). `value` is the row's number, counted from 1, or the split.
    """
    source = archive.root
    table = read_table(source)
    require_columns(source, table, ("volume",) if archive.reports is not None else ("volume", "report"))
    roots = [str(source.parent.absolute()), *archive.roots]
    for number, row in enumerate(rows_of(table), start=1):
        volume = cell_text(row["volume"])
        if not volume:
            raise UserError(
                f"The manifest {source} has no path in column 'volume' in row {number}.",
                code="no-path",
                field="volume",
                value=number,
            )
        path = volume if "://" in volume else os.path.normpath(source.parent.absolute() / volume)
        if not _within(path, roots):
            raise UserError(
                f"The manifest {source} leads out of its own folder in row {number}: name the folder where its volumes lie "
                "with --root, or correct the path.",
                code="path-outside",
                field="volume",
                value=number,
            )
        volume_id = cell_text(row.get("volume_id")) or _stem(source, volume)
        scan = cell_text(row.get("scan_id")) or volume_id
        patient = cell_text(row.get("patient_id")) or scan
        split = cell_text(row.get("split")) or split_of(patient, 0.1, archive.validation_fraction)
        if split not in SPLITS:
            raise UserError(
                f"The manifest {source} has the split {split!r} in row {number}: use one of {', '.join(SPLITS)}.",
                code="unknown-split",
                field="split",
                value=split,
            )
        yield Item(
            volume_id=volume_id,
            scan_id=scan,
            patient_id=patient,
            split=split,
            path=path,
            source=volume,
            report=archive.report_of(volume_id, scan) or cell_text(row.get("report")),
            labels={**labels_of(row, f"volume {volume_id}"), **archive.labels_of(volume_id, scan)},
            series=cell_text(row.get("series")) or None,
        )


def _within(path: str, roots: Sequence[str]) -> bool:
    """Whether a path or URL lies below one of these: a table that someone else made must not choose what is read."""
    return ".." not in PurePosixPath(path).parts and any(path.startswith(root.rstrip("/") + "/") for root in roots)


def _stem(source: Path, volume: str) -> str:
    """A file's name without its suffix, known or not; a folder's name as it is."""
    name = PurePosixPath(volume).name
    if without_suffix(name) != name:
        return without_suffix(name)
    return name if (source.parent / volume).is_dir() else Path(name).stem
