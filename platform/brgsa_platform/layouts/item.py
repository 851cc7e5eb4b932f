"""One volume of an archive, and the archive as a layout takes it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from brgsa_platform.layouts.ids import IdKind

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
class Listed:
    """A volume as its layout lists it, with all that a table may call it by.

    Attributes:
        item: the volume, with the report and the labels that its archive has for it.
        ids: kind → its ids of that kind; only such as the archive itself states. They may name the patient and never enter
            the store.
        hashed: kinds whose ids are hashes of this run, which no table has but one that was made from a store.
        origin: where the archive names it, for messages: a row's number or a file.
        shared_report: the report of another reconstruction of its scan, where it has none of its own.
    """

    item: Item
    ids: Mapping[IdKind, Sequence[str]] = field(repr=False)
    hashed: Sequence[IdKind] = ()
    origin: str = ""
    shared_report: str = ""


@dataclass(frozen=True)
class Archive:
    """An archive, and the options that the user gives with it.

    Attributes:
        root: the archive's folder, or a manifest.
        validation_fraction: share of the training patients that becomes the validation split.
        reports_elsewhere: a table of reports lies beside the archive, so that its own may be missing.
        key: of the hashes that replace identifiers.
        roots: absolute paths or URLs that a manifest's paths may lead to, besides its own folder.
    """

    root: Path
    validation_fraction: float
    reports_elsewhere: bool = False
    key: bytes | None = None
    roots: Sequence[str] = ()


def split_of(patient: str, test: float, validation: float) -> str:
    """A patient's split, from a hash of the id: the same in every run and for every order of the table.

    Args:
        patient: the id, as `ids.loose_id` gives it: one that is written in two ways is in one split.
        test, validation: shares of the patients in these splits, from 0 to 1.
    """
    share = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    if share < test:
        return "test"
    return "validation" if share < test + validation else "train"
