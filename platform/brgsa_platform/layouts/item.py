"""One volume of an archive, and what a layout is given to find it."""

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

    `path` and `series` are for reading only and never enter the store: of a DICOM archive they may name the patient.

    Attributes:
        path: the file, or the folder of a DICOM series.
        source: how the store names the file: where it lies below the archive's folder, or what stands for that.
        report: its text; empty where there is none.
        labels: 1, 0, or None (unknown) per label name.
        metadata: the volume's row of its archive's metadata table, as `brgsa.volumes.read_volume` takes it; None in
            layouts without one.
        series: DICOM's SeriesInstanceUID, where the path is a folder of several.
        unreported: whether the archive is published without reports, so that a missing one is no fault.
        refused: why it cannot be used, found while listing; empty where nothing was.
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
    unreported: bool = False
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Archive:
    """What a layout reads volumes from.

    Attributes:
        root: the archive's folder, or a manifest.
        validation_fraction: share of the training patients that is set aside.
        reports, labels: of the tables given beside the archive, by volume or scan id; None where none was given.
        key: of the hashes that replace identifiers.
        roots: absolute paths or URLs, beside its own folder, that a manifest may lead to.
    """

    root: Path
    validation_fraction: float
    reports: Mapping[str, str] | None = None
    labels: Mapping[str, Mapping[str, int | None]] | None = None
    key: bytes | None = None
    roots: Sequence[str] = ()

    def report_of(self, *ids: str) -> str:
        """The given table's report by the first of `ids` that it has; empty where it has none."""
        return next((self.reports[i] for i in ids if i in self.reports), "") if self.reports else ""

    def labels_of(self, *ids: str) -> dict[str, int | None]:
        """The given table's labels by the first of `ids` that it has; empty where it has none."""
        return dict(next((self.labels[i] for i in ids if i in self.labels), {})) if self.labels else {}


def split_of(patient: str, test: float, validation: float) -> str:
    """A patient's split, from a hash of the id: the same in every run and for every order of the table."""
    share = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    if share < test:
        return "test"
    return "validation" if share < test + validation else "train"
