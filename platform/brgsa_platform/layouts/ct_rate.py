"""CT-RATE's folders and tables, in either release."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from brgsa.errors import UserError
from brgsa_platform.layouts.ids import IdKind, canonical_id, loose_id
from brgsa_platform.layouts.item import Archive, Item, Listed, split_of
from brgsa_platform.layouts.tables.account import Listing, TableAccount
from brgsa_platform.layouts.tables.files import LABEL_TABLE, Table, read_table, table_files
from brgsa_platform.layouts.tables.join import (
    FINDINGS,
    IMPRESSIONS,
    Joined,
    accounts_of,
    disagreement,
    join_fields,
    join_labels,
    join_reports,
    merged,
    nothing_matched,
)
from brgsa_platform.layouts.tables.label_columns import Labels
from brgsa_platform.layouts.tables.matching import Volumes

METADATA_COLUMNS = ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing", "ImageOrientationPatient")


def ct_rate(archive: Archive) -> Listing:
    """The volumes of dataset/{train,valid}/PATIENT/SCAN/VOLUME.nii.gz, with the tables of reports, metadata and labels.

    `train_fixed` and `valid_fixed`, the folders of the later release, are read too. "valid" is the published test set; the
    validation split is cut from "train" by patient. A volume that the reports do not name has the report of another
    reconstruction of its scan. Label tables, CT-RATE-LT's among them, lie in `multi_abnormality_labels` or beside `dataset`.

    Raises:
        UserError: there are no reports ("no-table"), a table lacks a column that is needed, or two of a kind disagree
            ("disagreeing-tables").
    """
    root = archive.root / "dataset" if (archive.root / "dataset").is_dir() else archive.root
    volumes = Volumes(list(_volumes(archive, root)), scan_of)
    reports = _reports(root / "radiology_text_reports", volumes, required=not archive.reports_elsewhere)
    metadata = [
        join_fields("metadata", table, volumes, METADATA_COLUMNS) for table in _tables(root / "metadata", "metadata")
    ]
    labels, unused = _labels(archive.root, root, volumes)
    nothing_matched("reports", reports, volumes)
    nothing_matched("metadata", metadata, volumes)
    nothing_matched("labels", labels, volumes)
    texts = _one_report(reports)
    fields, known = merged(metadata), merged(labels)
    listed = [
        replace(
            volume,
            item=replace(
                volume.item,
                report=texts.get(volume.item.volume_id, ""),
                labels=known.get(volume.item.volume_id, {}),
                metadata=fields.get(volume.item.volume_id, dict.fromkeys(METADATA_COLUMNS)),
            ),
            shared_report=next((r.shared[s] for r in reports if (s := volume.item.scan_id) in r.shared), ""),
        )
        for volume in volumes.listed
    ]
    accounts = [*accounts_of(reports), *accounts_of(metadata), *accounts_of(labels), *unused]
    return Listing(listed, accounts, scan_of)


def _volumes(archive: Archive, root: Path) -> Iterator[Listed]:
    for split in ("train", "valid"):
        for path in sorted(p for folder in (split, f"{split}_fixed") for p in (root / folder).glob("*/*/*.nii.gz")):
            volume = canonical_id(path.name.removesuffix(".nii.gz"))
            scan = scan_of(volume)
            patient = scan.rpartition("_")[0] or scan
            source = path.relative_to(root).as_posix()
            item = Item(
                volume_id=volume,
                scan_id=scan,
                patient_id=patient,
                split="test" if split == "valid" else split_of(loose_id(patient), 0.0, archive.validation_fraction),
                path=str(path.absolute()),
                source=source,
                report="",
            )
            ids = {kind: [volume] for kind in (IdKind.VOLUME, IdKind.FILE)}
            ids |= {IdKind.SCAN: [scan], IdKind.PATIENT: [patient]}
            yield Listed(item, ids, origin=source)


def scan_of(volume: str) -> str:
    """The scan of a volume's id: train_1_a of train_1_a_2."""
    return volume.rpartition("_")[0] or volume


def _tables(folder: Path, kind: str) -> list[Table]:
    """The tables of a folder whose names hold a word."""
    return [read_table(p) for p in table_files(folder) if kind in p.name.lower()]


def _reports(folder: Path, volumes: Volumes, required: bool) -> list[Joined[str]]:
    tables = _tables(folder, "reports")
    if required and not tables:
        raise UserError(
            f"{folder} holds no table *reports*.csv: put CT-RATE's there, or give --reports.",
            code="no-table",
            field=str(folder),
            value="*reports*.csv",
        )
    for table in tables:
        table.require("VolumeName", FINDINGS, IMPRESSIONS)
    return [join_reports(table, volumes) for table in tables]


def _one_report(joined: list[Joined[str]]) -> dict[str, str]:
    """volume_id → its report, of tables that may not disagree."""
    texts: dict[str, str] = {}
    origin: dict[str, Joined[str]] = {}
    for one in joined:
        for name, text in one.of.items():
            if not text:
                continue
            first = origin.setdefault(name, one)
            if texts.setdefault(name, text) != text:
                raise disagreement(first, one, FINDINGS, name)
    return texts


def _labels(source: Path, root: Path, volumes: Volumes) -> tuple[list[Joined[Labels]], list[TableAccount]]:
    """The label tables of an archive, and accounts of those that are there and cannot be used.

    A label table says by its name that it is one. In `multi_abnormality_labels` it must be usable.
    """
    joined = []
    unused = []
    for path in table_files(root / "multi_abnormality_labels"):
        if not LABEL_TABLE.search(path.name):
            unused.append(TableAccount("labels", str(path), unused="its name does not say that it holds labels"))
            continue
        table = read_table(path)
        table.require("VolumeName")
        joined.append(join_labels(table, volumes))
    for path in dict.fromkeys(
        p for folder in (source, root) for p in table_files(folder) if LABEL_TABLE.search(p.name)
    ):
        try:
            joined.append(join_labels(read_table(path), volumes))
        except UserError as error:
            if error.code not in ("no-labels", "no-ids", "unreadable-table", "empty-table", "no-header"):
                raise
            unused.append(
                TableAccount("labels", str(path), unused="it has no ids, or no column of a known abnormality")
            )
    return joined, unused
