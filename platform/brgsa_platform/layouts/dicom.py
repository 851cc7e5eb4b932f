"""A tree of DICOM folders: one volume per series, with keyed hashes in place of everything that names a patient."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from brgsa.errors import UserError
from brgsa.volumes import Series, folders_below, list_series
from brgsa_platform.layouts.identity import pseudonym
from brgsa_platform.layouts.ids import IdKind, canonical_id, loose_id
from brgsa_platform.layouts.item import Archive, Item, Listed, split_of
from brgsa_platform.layouts.tables.account import Listing
from brgsa_platform.runtime.progress import progress

FOLDERS_PER_WORKER = 32  # with fewer, starting the process takes longer than it saves


def dicom(archive: Archive) -> Listing:
    """Every series below a folder, at any depth; one folder may hold several patients and series.

    `volume_id` is a hash of SeriesInstanceUID, `patient_id` of PatientID (StudyInstanceUID where that is empty), `scan_id` of
    PatientID with AccessionNumber (StudyInstanceUID where that is empty). `source` is made of `volume_id`. No other tag that
    may identify a patient is kept; `path` and `series` name the files for reading and never enter the store. A series over
    several folders is put together; one of several acquisitions is a volume for each. What is no CT volume has the reason
    in `refused`, and takes nothing beside it along. Splits are as in a manifest: a tenth of the patients is the test set.

    Raises:
        UserError: there is no key ("no-id-key"), or a process that read headers died ("reader-died").
    """
    if not archive.key:
        raise UserError(
            "The layout dicom replaces identifiers by keyed hashes: give it a key (--id-key).",
            code="no-id-key",
            field="--id-key",
        )
    found = list(_all_series(archive.root))
    owners = Counter(uid for uid, *_ in {_group(series) for _, series in found})
    return Listing([_volume(archive, folders, series, alone=owners[series.uid] == 1) for folders, series in found])


def _volume(archive: Archive, folders: Sequence[Path], series: Series, alone: bool) -> Listed:
    """A series as a volume.

    Its folder's path in the archive serves as id where the header has none.

    Args:
        alone: no other patient or study has slices of its SeriesInstanceUID.
    """
    key = archive.key or b""
    folder = folders[0]
    relative = folder.relative_to(archive.root).as_posix()
    part = series.name.removeprefix(series.uid)
    volume = pseudonym(
        key, "series", series.uid or relative, *(() if alone else _group(series)[1:]), *([part] if part else [])
    )
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
        series=series.name or None,
        folders=tuple(str(folder.absolute()) for folder in folders),
        refused=series.refused,
    )
    names = [name for path in folders for name in (path.relative_to(archive.root).as_posix(), path.name)]
    ids = {
        IdKind.VOLUME: [volume],
        IdKind.SERIES: [series.uid],
        IdKind.SCAN: [item.scan_id],
        IdKind.ACCESSION: [canonical_id(series.accession)],
        IdKind.STUDY: [series.study],
        IdKind.FOLDER: [canonical_id(name) for name in dict.fromkeys(names)],
        IdKind.PATIENT: [canonical_id(series.patient)],
    }
    return Listed(item, ids, hashed=(IdKind.VOLUME, IdKind.SCAN), origin=str(folder))


def _group(series: Series) -> tuple[str, str, str, str]:
    """What slices of one volume have to agree in, whatever folders they lie in."""
    return series.uid, series.patient, series.study, series.accession


def _all_series(root: Path) -> Iterator[tuple[tuple[Path, ...], Series]]:
    """The series of every folder below `root`, in an order that does not depend on timing, with the folders of each.

    A series that lies in several folders is put together from all of them.
    """
    folders = list(folders_below(root))
    workers = min(os.cpu_count() or 1, len(folders) // FOLDERS_PER_WORKER)
    groups: dict[object, list[tuple[Path, Series]]] = {}
    with progress(len(folders), "read DICOM headers: folders") as advance:
        for folder, listed in zip(folders, _listed(folders, workers), strict=True):
            advance()
            for series in listed:
                groups.setdefault(_group(series) if series.uid else folder, []).append((folder, series))
    for group, members in groups.items():
        within = tuple(dict.fromkeys(folder for folder, _ in members))
        together = [series for _, series in members] if len(within) == 1 else _series_of(within)
        yield from ((within, series) for series in together if group in (_group(series), *within))


def _listed(folders: Sequence[Path], workers: int) -> Iterator[tuple[Series, ...]]:
    """The series of each folder, in the order of the folders."""
    alone = [(folder,) for folder in folders]
    if workers <= 1:
        yield from map(_series_of, alone)
        return
    # Processes, because headers are parsed in Python. Spawned, because the caller may have threads (Ray, torch).
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_series_of, alone, chunksize=4)
    except BrokenProcessPool as error:
        raise UserError(
            "A process that was reading DICOM headers died, perhaps because memory ran out: try again.",
            code="reader-died",
        ) from error


def _series_of(folders: Sequence[Path]) -> tuple[Series, ...]:
    """The series of folders without their slices, which would be much to send between processes."""
    try:
        return tuple(replace(series, headers=()) for series in list_series(folders))
    except OSError as error:
        reason = f"its folder cannot be read ({error.strerror or error}); mend its permissions, or take it away."
        return (Series("", "", "", "", "", 0, reason),)
