"""A tree of DICOM folders: one volume per series, with keyed hashes in place of everything that names a patient."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from brgsa.errors import UserError
from brgsa.volumes import Series, list_series
from brgsa_platform.layouts.account import Listing
from brgsa_platform.layouts.identity import pseudonym
from brgsa_platform.layouts.ids import IdKind, canonical_id, loose_id
from brgsa_platform.layouts.item import Archive, Item, Listed, split_of
from brgsa_platform.runtime.progress import progress

FOLDERS_PER_WORKER = 32  # with fewer, starting the process takes longer than it saves


def dicom(archive: Archive) -> Listing:
    """Every series below a folder, at any depth; one folder may hold several patients and series.

    `volume_id` is a hash of SeriesInstanceUID, `patient_id` of PatientID (StudyInstanceUID where that is empty), `scan_id` of
    PatientID with AccessionNumber (StudyInstanceUID where that is empty). `source` is made of `volume_id`. No other tag that
    may identify a patient is kept; `path` and `series` name the files for reading and never enter the store. A series that
    is no CT volume has the reason in `refused`. Splits are as in a manifest: a tenth of the patients is the test set.

    Raises:
        UserError: there is no key ("no-id-key"), a series lies in two folders ("split-series"), or a process that read headers
            died ("reader-died").
    """
    if not archive.key:
        raise UserError(
            "The layout dicom replaces identifiers by keyed hashes: give it a key (--id-key).",
            code="no-id-key",
            field="--id-key",
        )
    return Listing(list(_volumes(archive)))


def _volumes(archive: Archive) -> Iterator[Listed]:
    seen: dict[str, tuple[Path, bool]] = {}
    for folder, series in _all_series(archive.root):
        relative = folder.relative_to(archive.root).as_posix()
        first, was_refused = seen.setdefault(series.uid or relative, (folder, bool(series.refused)))
        if first != folder:
            if was_refused and series.refused:
                continue  # a second copy of a series that is no volume
            raise UserError(
                f"A series of {folder} lies in {first} too: keep its slices in one folder, and one copy.",
                code="split-series",
                field=str(folder),
                value=str(first),
            )
        yield _volume(archive, folder, relative, series)


def _volume(archive: Archive, folder: Path, relative: str, series: Series) -> Listed:
    """A series as a volume; `relative` is its folder's path in the archive, which serves as id where the header has none."""
    key = archive.key or b""
    volume = pseudonym(key, "series", series.uid or relative)
    study = series.study or series.uid or relative
    owner = series.patient or study
    item = Item(
        volume_id=volume,
        scan_id=pseudonym(key, "scan", series.patient, series.accession or study),
        patient_id=pseudonym(key, "patient", owner),
        split=split_of(pseudonym(key, "patient", loose_id(owner)), 0.1, archive.validation_fraction),
        path=str(folder.absolute()),
        source=f"dicom/{volume}",
        report="",
        series=series.uid or None,
        refused=series.refused,
    )
    ids = {
        IdKind.VOLUME: [volume],
        IdKind.SERIES: [series.uid],
        IdKind.SCAN: [item.scan_id],
        IdKind.ACCESSION: [canonical_id(series.accession)],
        IdKind.STUDY: [series.study],
        IdKind.FOLDER: [canonical_id(relative), canonical_id(folder.name)],
        IdKind.PATIENT: [canonical_id(series.patient)],
    }
    return Listed(item, ids, hashed=(IdKind.VOLUME, IdKind.SCAN), origin=str(folder))


def _all_series(root: Path) -> Iterator[tuple[Path, Series]]:
    """The series of every folder below `root`, in an order that does not depend on timing."""
    folders = [path for path, below, files in _walk(root) if files]
    workers = min(os.cpu_count() or 1, len(folders) // FOLDERS_PER_WORKER)
    with progress(len(folders), "read DICOM headers: folders") as advance:
        for folder, listed in zip(folders, _listed(folders, workers), strict=True):
            advance()
            for series in listed:
                yield folder, series


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`os.walk` in sorted order, without hidden folders."""
    for path, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(path), below, files


def _listed(folders: Sequence[Path], workers: int) -> Iterator[tuple[Series, ...]]:
    """The series of each folder, in the order of the folders."""
    if workers <= 1:
        yield from map(_series_of, folders)
        return
    # Processes, because headers are parsed in Python. Spawned, because the caller may have threads (Ray, torch).
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_series_of, folders, chunksize=4)
    except BrokenProcessPool as error:
        raise UserError(
            "A process that was reading DICOM headers died, perhaps because memory ran out: try again.",
            code="reader-died",
        ) from error


def _series_of(folder: Path) -> tuple[Series, ...]:
    """A folder's series without their slices, which would be much to send between processes."""
    try:
        return tuple(replace(series, frames=()) for series in list_series(folder))
    except OSError as error:
        reason = f"its folder cannot be read ({error.strerror or error}); mend its permissions, or take it away."
        return (Series("", "", "", "", 0, reason),)
