"""DICOM folders: the series that they hold, which of those are CT volumes, and their voxels.

Geometry and order of the slices come from the headers alone, never from the names of the files.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from brgsa.volumes.dicom.folders import folders_below
from brgsa.volumes.dicom.headers import SliceHeader, Unreadable, read_headers
from brgsa.volumes.dicom.pixels import LeftOver, Undecodable, read_hu
from brgsa.volumes.dicom.slices import Refusal, why_no_slice, without_copies
from brgsa.volumes.dicom.stacks import geometry_of, stacks
from brgsa.volumes.errors import VolumeError, cut_short, left_over, missing, unreadable
from brgsa.volumes.stored import Doubt, Stored


class SeveralSeries(VolumeError):
    """A folder holds several volumes, and which one is meant is not said.

    Attributes:
        choices: a line for each, for somebody who has to choose: its `Series.name`, slices, description. They may identify the
            patient, so the message does not have them.
    """

    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """The slices of one volume, or those of a series that are none for the same reason.

    Attributes:
        name: what `read_series` takes: the SeriesInstanceUID; behind it a colon and a number where one series holds several
            volumes, or the reason's code for what was left out beside a volume. Empty for files without a header.
        uid: SeriesInstanceUID.
        patient, study, accession: PatientID, StudyInstanceUID and AccessionNumber, as the header gives them.
        slices: number of its images.
        refused: why it cannot be used as a CT volume, and how to mend that; empty where it can.
        headers: the slices of a usable series, in order along their normal.
        refused_code, refused_value, refused_field: of the refusal.
        doubts: what is odd in a usable series.
        description: SeriesDescription, ConvolutionKernel and AcquisitionNumber, for somebody who has to choose.
    """

    name: str = field(repr=False)
    uid: str = field(repr=False)
    patient: str = field(repr=False)
    study: str = field(repr=False)
    accession: str = field(repr=False)
    slices: int
    refused: str = ""
    headers: tuple[SliceHeader, ...] = field(default=(), repr=False)
    refused_code: str = ""
    refused_value: object = None
    refused_field: str = ""
    doubts: tuple[Doubt, ...] = ()
    description: str = field(default="", repr=False)


def list_series(folders: Path | str | Iterable[Path | str]) -> tuple[Series, ...]:
    """The DICOM series of one or several folders (not of their subfolders), sorted by uid; a refused one has the reason.

    Slices are of one volume where they agree in patient, study, series and in all that makes one scan, in whatever of the
    folders they lie. What is no slice is left out and listed for itself. A process remembers its last 64 calls for as long
    as the files keep their sizes and times.

    Raises:
        OSError: a folder cannot be read.
    """
    listed = [folders] if isinstance(folders, Path | str) else list(folders)
    return _list_series(tuple(file for folder in listed for file in _files(folder)))


def _files(folder: Path | str) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of each file in a folder; of a link that leads nowhere the size is -1."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns
            elif entry.is_symlink() and not os.path.exists(entry.path):
                yield entry.path, -1, 0


@lru_cache(maxsize=64)
def _list_series(files: tuple[tuple[str, int, int], ...]) -> tuple[Series, ...]:
    groups: dict[tuple[str, str, str, str], list[SliceHeader]] = {}
    strange = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings print values, which may identify a patient
        for name, size, _ in files:
            try:
                headers = read_headers(Path(name)) if size >= 0 else None
            except Unreadable:
                headers = None
            strange += headers is None
            for header in headers or ():
                key = (header.series, header.patient, header.study, header.accession)
                groups.setdefault(key, []).append(header)
        found = [series for key in sorted(groups) for series in _series(groups[key])]
    if strange:
        # A file without a header may be a slice of any of the series: they are whole in themselves, but may be longer.
        doubt = Doubt("files:unreadable", f"{strange} files")
        found = [s if s.refused else replace(s, doubts=(*s.doubts, doubt)) for s in found]
        reason = (
            f"{strange} files have no DICOM header that can be read, or end in it; copy them again, or take them away."
        )
        found.append(
            Series("", "", "", "", "", strange, reason, refused_code="header-unreadable", refused_value=strange)
        )
    return tuple(_named(found))


def _series(headers: Sequence[SliceHeader]) -> Iterator[Series]:
    """What the pictures of one patient's series are: its volumes, then what was left out, a reason each."""
    originals = any("ORIGINAL" in h.kinds and h.modality == "CT" for h in headers)
    slices: list[SliceHeader] = []
    left_out: dict[Refusal, list[SliceHeader]] = {}
    for header in headers:
        refusal = why_no_slice(header, originals)
        if refusal is None:
            slices.append(header)
        else:
            left_out.setdefault(refusal, []).append(header)
    for stack in stacks(without_copies(slices)) if slices else ():
        if stack.refusal is None:
            yield replace(_described(stack.slices), headers=tuple(stack.slices), doubts=stack.doubts)
        else:
            yield _refused(stack.slices, stack.refusal)
    for refusal, pictures in left_out.items():
        yield _refused(pictures, refusal)


def _described(headers: Sequence[SliceHeader]) -> Series:
    first = headers[0]
    acquisition = first.traits["AcquisitionNumber"]
    words = (
        first.traits["SeriesDescription"],
        first.traits["ConvolutionKernel"] and f"kernel {first.traits['ConvolutionKernel']}",
        acquisition and f"acquisition {acquisition}",
    )
    description = ", ".join(word for word in words if word)
    uid = first.series
    return Series(uid, uid, first.patient, first.study, first.accession, len(headers), description=description)


def _refused(headers: Sequence[SliceHeader], refusal: Refusal) -> Series:
    return replace(
        _described(headers),
        refused=refusal.reason,
        refused_code=refusal.code,
        refused_value=refusal.value,
        refused_field=refusal.field,
    )


def _named(found: Sequence[Series]) -> Iterator[Series]:
    """The series with names of their own: a plain uid for the only volume of a uid, or for all that there is of it."""
    by_uid: dict[str, list[Series]] = {}
    for series in found:
        by_uid.setdefault(series.uid, []).append(series)
    for uid, alike in by_uid.items():
        usable = sum(not series.refused for series in alike)
        codes: dict[str, int] = {}
        number = 0
        for series in alike:
            if len(alike) == 1 or (usable == 1 and not series.refused):
                yield series
            elif not series.refused:
                number += 1
                yield replace(series, name=f"{uid}:{number}")
            else:
                codes[series.refused_code] = codes.get(series.refused_code, 0) + 1
                again = codes[series.refused_code]
                yield replace(series, name=f"{uid}:{series.refused_code}" + (f"-{again}" if again > 1 else ""))


def read_series(path: Path, name: str | None = None, folders: Sequence[Path | str] = ()) -> Stored:
    """Read the voxels of a series, in HU.

    Args:
        path: the folder of the series, one above it, or any file of it.
        name: SeriesInstanceUID, or the `Series.name`; it may be left out where there is one usable series.
        folders: all folders over which the series is spread, where that is known.

    Raises:
        VolumeError: there is no such file or series, several could be meant (`SeveralSeries`), or the series cannot be used.
    """
    if not path.exists():
        raise missing(path)
    try:
        if path.is_file() and name is None:
            headers = read_headers(path)
            name = headers[0].series if headers else None
        series = _choose(path, list_series(folders or (folders_below(path) if path.is_dir() else [path.parent])), name)
    except Unreadable as error:
        raise cut_short(path) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if series.refused:
        raise _as_error(path, series)
    try:
        array = read_hu(series.headers)
    except LeftOver as error:
        raise left_over(path, error.args[0], "Rows and Columns") from error
    except Undecodable as error:
        if not str(error):
            raise cut_short(path) from error
        raise VolumeError(
            path,
            f"a slice cannot be decoded (transfer syntax {error}); copy it again, or export it uncompressed.",
            code="file-damaged",
            field="TransferSyntaxUID",
            value=str(error),
        ) from error
    spacing, directions = geometry_of(series.headers)
    identity = bool((abs(directions - [[1, 0, 0], [0, 1, 0], [0, 0, 1]]) < 1e-4).all())
    x, y, z = series.headers[0].position or (0.0, 0.0, 0.0)
    return Stored(array.T, spacing, directions, identity=identity, doubts=series.doubts, origin=(x, y, z))


def _as_error(path: Path, series: Series) -> VolumeError:
    return VolumeError(
        path, series.refused, code=series.refused_code, field=series.refused_field, value=series.refused_value
    )


def _choose(path: Path, candidates: Sequence[Series], name: str | None) -> Series:
    if not candidates:
        raise VolumeError(path, "this folder holds no DICOM files.", code="no-dicom")
    if name is not None:
        exact = [series for series in candidates if series.name == name]
        candidates = exact if exact and not exact[0].refused else [s for s in candidates if name in (s.name, s.uid)]
        if not candidates:
            raise VolumeError(
                path,
                "there is no series of that SeriesInstanceUID; correct it, or name its folder.",
                code="no-such-series",
                field="SeriesInstanceUID",
            )
    usable = [series for series in candidates if not series.refused]
    if len(usable) > 1:
        several = SeveralSeries(
            path,
            f"it holds {len(usable)} CT series; name one by its SeriesInstanceUID.",
            code="several-series",
            field="SeriesInstanceUID",
            value=tuple(series.slices for series in usable),
        )
        several.choices = tuple(
            f"{s.name}: {s.slices} slices" + (f", {s.description}" if s.description else "") for s in usable
        )
        raise several
    if not usable and name is None and len(candidates) > 1:
        raise VolumeError(
            path,
            f"none of its {len(candidates)} series can be used; the first: {candidates[0].refused}",
            code="no-usable-series",
            value=candidates[0].refused_code,
        )
    return max(usable or candidates, key=lambda series: series.slices)
