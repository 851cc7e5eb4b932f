"""CT-RATE's folders and tables, in either release."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa_platform.layouts.item import Archive, Item, split_of
from brgsa_platform.layouts.tables import (
    FINDINGS,
    IMPRESSIONS,
    labels_of,
    read_table,
    report_of,
    require_columns,
    require_labels,
    rows_of,
)

METADATA_COLUMNS = ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing", "ImageOrientationPatient")


def ct_rate(archive: Archive) -> Iterable[Item]:
    """The volumes of dataset/{train,valid}/PATIENT/SCAN/VOLUME.nii.gz, with the tables of reports, metadata and labels.

    `train_fixed` and `valid_fixed`, the folders of the later release, are read too. "valid" is the published test set; the
    validation split is cut from "train" by patient. A volume that the reports do not name has the report of another
    reconstruction of its scan.

    Raises:
        UserError: there are no reports ("no-table"), or a table lacks a column that is needed.
    """
    root = archive.root / "dataset" if (archive.root / "dataset").is_dir() else archive.root
    reports = _merged(
        root / "radiology_text_reports",
        "*reports*.csv",
        (FINDINGS, IMPRESSIONS),
        required=archive.reports is None,
    )
    metadata = _merged(root / "metadata", "*metadata*.csv")
    labels = _merged(root / "multi_abnormality_labels", "*labels*.csv", labels=True)
    by_scan = {_scan_of(name): report_of(row) for name, row in reports.items()}
    by_scan.update((_scan_of(name), report) for name, report in (archive.reports or {}).items())
    for split in ("train", "valid"):
        for path in sorted(p for folder in (split, f"{split}_fixed") for p in (root / folder).glob("*/*/*.nii.gz")):
            name = path.name
            volume, scan = name.removesuffix(".nii.gz"), _scan_of(name)
            patient = scan.rpartition("_")[0] or scan
            own = report_of(reports.get(name, {}))
            yield Item(
                volume_id=volume,
                scan_id=scan,
                patient_id=patient,
                split="test" if split == "valid" else split_of(patient, 0.0, archive.validation_fraction),
                path=str(path.absolute()),
                source=path.relative_to(root).as_posix(),
                report=archive.report_of(volume, scan) or own or by_scan.get(scan, ""),
                labels={**labels_of(labels.get(name, {}), f"volume {name}"), **archive.labels_of(volume, scan)},
                metadata={field: metadata.get(name, {}).get(field) for field in METADATA_COLUMNS},
            )


def _scan_of(volume_name: str) -> str:
    """The scan of a volume's file name: train_1_a of train_1_a_2.nii.gz."""
    stem = volume_name.removesuffix(".nii.gz")
    return stem.rpartition("_")[0] or stem


def _merged(
    folder: Path, pattern: str, columns: tuple[str, ...] = (), *, required: bool = False, labels: bool = False
) -> dict[str, dict[str, Any]]:
    """VolumeName → row, merged from all tables of a kind.

    Args:
        columns: that each table must have.
        required: refuse a folder without such a table.
        labels: the tables hold labels, so that each must have a published one.
    """
    files = sorted(folder.glob(pattern))
    if required and not files:
        raise UserError(
            f"{folder} holds no table {pattern}: put CT-RATE's there, or give --reports.",
            code="no-table",
            field=str(folder),
            value=pattern,
        )
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        table = read_table(file)
        require_columns(file, table, ("VolumeName", *columns))
        if labels:
            require_labels(file, table)
        for row in rows_of(table):
            rows.setdefault(str(row["VolumeName"]), {}).update(row)
    return rows
