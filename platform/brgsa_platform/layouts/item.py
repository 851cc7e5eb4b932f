"""One volume of an archive, and the archive as a layout takes it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Item:
    """One volume to prepare.

    `path`, `series` and `folders` are for reading only and never enter the store: in a DICOM archive they may name the patient.

    Attributes:
        volume_id, scan_id, patient_id: a patient has scans, a scan has one or more volumes (reconstructions).
        split: one of `SPLITS`.
        path: the file, or the folder of a DICOM series.
        source: the file's name in the store: its path below the archive's folder, or a replacement that names nobody.
        report: its text; empty where there is none.
        labels: abnormality → 1, 0, or None where it is unknown.
        metadata: the volume's row in its archive's metadata table, as `brgsa.volumes.read_volume` takes it; None in
            layouts without one.
        series: DICOM's `Series.name`: the SeriesInstanceUID, with what tells several volumes of it apart.
        folders: the folders over which a DICOM series is spread; as `path`, never in the store.
        unreported: the archive is published without reports, so that a missing report is no fault.
        refused: why the volume cannot be used, as far as listing the archive shows; empty where nothing is wrong.
    """

    volume_id: str
    scan_id: str
    patient_id: str
    split: str
    path: str
    source: str
    report: str
    labels: dict[str, int | None] = field(default_factory=dict)
    metadata: dict[str, Any] | None = None
    series: str | None = None
    folders: tuple[str, ...] = ()
    unreported: bool = False
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The attributes as a dict; `Item(**tree)` builds the volume again."""
        return asdict(self)


@dataclass(frozen=True)
class Archive:
    """An archive, with the tables and options that the user gives beside it.

    Attributes:
        root: the archive's folder, or a manifest.
        validation_fraction: share of the training patients that becomes the validation split.
        reports, labels: volume or scan id → report or labels, from tables beside the archive; None without a table.
        key: of the hashes that replace identifiers.
        roots: absolute paths or URLs that a manifest's paths may lead to, besides its own folder.
    """

    root: Path
    validation_fraction: float
    reports: Mapping[str, str] | None = None
    labels: Mapping[str, Mapping[str, int | None]] | None = None
    key: bytes | None = None
    roots: Sequence[str] = ()

    def report_of(self, *ids: str) -> str:
        """The report of the first of `ids` that the table beside the archive has; empty where it has none of them."""
        return next((self.reports[i] for i in ids if i in self.reports), "") if self.reports else ""

    def labels_of(self, *ids: str) -> dict[str, int | None]:
        """The labels of the first of `ids` that the table beside the archive has; empty where it has none of them."""
        return dict(next((self.labels[i] for i in ids if i in self.labels), {})) if self.labels else {}


def split_of(patient: str, test: float, validation: float) -> str:
    """A patient's split, from a hash of the id: the same in every run and for every order of the table.

    Args:
        patient: the id.
        test, validation: shares of the patients in these splits, from 0 to 1.
    """
    share = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    if share < test:
        return "test"
    return "validation" if share < test + validation else "train"
