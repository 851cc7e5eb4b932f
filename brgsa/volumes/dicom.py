"""DICOM folders: the series that they hold, which of those are CT volumes, and their voxels.

Geometry and order of the slices come from the headers alone, never from the names of the files. Pixels go through ITK and
GDCM, which know the compressed transfer syntaxes and apply each slice's own rescale.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from brgsa.volumes.dicom_headers import Frame, Unreadable, is_dicom, read_frames
from brgsa.volumes.errors import VolumeError, cut_short, missing, unreadable
from brgsa.volumes.files import Stored

__all__ = ["Series", "is_dicom", "list_series", "read_series"]

FEWEST_SLICES = 8
SAME_POSITION = 1e-3  # mm
LARGEST_GAP = 1.5  # times the median step
UNEVEN, UNEVEN_SHARE = 0.11, 0.1  # mm, and share of the median step, whichever is more: positions are rounded to 0.1 mm
LARGEST_TILT = 0.5  # degrees between the normal of the slices and the line of their positions
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7."  # the UIDs of its multi-frame kinds begin with this, too


class Refusal(NamedTuple):
    """Why a series cannot be used as a CT volume.

    Attributes:
        code: the kind of fault, as in `UserError`.
        reason: what is wrong and how to fix it.
        value: the tag or the number at fault, where there is one.
    """

    code: str
    reason: str
    value: object = None


@dataclass(frozen=True)
class Series:
    """A DICOM series of a folder.

    Attributes:
        uid: SeriesInstanceUID; empty for a folder of files whose headers cannot be read.
        patient, study, accession: PatientID, StudyInstanceUID and AccessionNumber, as the header gives them.
        slices: number of its images.
        refused: why it cannot be used as a CT volume, and how to fix that; empty where it can.
        frames: the slices of a usable series, in order along their normal.
        refused_code, refused_value: the code and value of the `Refusal`.
    """

    uid: str = field(repr=False)
    patient: str = field(repr=False)
    study: str = field(repr=False)
    accession: str = field(repr=False)
    slices: int
    refused: str = ""
    frames: tuple[Frame, ...] = field(default=(), repr=False)
    refused_code: str = ""
    refused_value: object = None


def list_series(folder: Path | str) -> tuple[Series, ...]:
    """The DICOM series of a folder (not of its subfolders), sorted by uid; a refused one has the reason.

    A process remembers its last 64 folders for as long as their files keep their sizes and times.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        files = sorted((e.name, e.stat()) for e in entries if e.is_file() and not e.name.startswith("."))
    return _list_series(str(folder), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


@lru_cache(maxsize=64)
def _list_series(folder: str, files: tuple[tuple[str, int, int], ...]) -> tuple[Series, ...]:
    by_series: dict[str, list[Frame]] = {}
    unreadable_files = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings print values, which may identify a patient
        for name, _, _ in files:
            try:
                frames = read_frames(Path(folder, name))
            except Unreadable:
                unreadable_files += 1
            else:
                for frame in frames:
                    by_series.setdefault(frame.series, []).append(frame)
    # A file without a header may be a slice of any of the series.
    headless = (
        Refusal(
            "header-unreadable",
            f"{unreadable_files} files of its folder have no DICOM header that can be read, and may be slices of it: copy "
            "them again or take them away.",
            unreadable_files,
        )
        if unreadable_files
        else None
    )
    if headless and not by_series:
        return (_refused_series(Series("", "", "", "", unreadable_files), headless),)
    return tuple(_series(uid, by_series[uid], headless) for uid in sorted(by_series))


def _series(uid: str, frames: list[Frame], headless: Refusal | None) -> Series:
    first = frames[0]
    series = Series(uid, first.patient, first.study, first.accession, len(frames))
    refusal = _not_ct(frames) or _not_whole(frames) or headless or _not_a_stack(frames)
    return _refused_series(series, refusal) if refusal else replace(series, frames=tuple(_in_order(frames)))


def _refused_series(series: Series, refusal: Refusal) -> Series:
    return replace(series, refused=refusal.reason, refused_code=refusal.code, refused_value=refusal.value)


def _not_ct(frames: Sequence[Frame]) -> Refusal | None:
    """Why a series is not a CT volume by its kind; None where it may be one."""
    if any(f.samples != 1 or f"{f.sop_class}.".startswith(SECONDARY_CAPTURE) for f in frames):
        return Refusal(
            "secondary-capture", "it is a secondary capture or a colour picture, no CT slices; leave it out."
        )
    other = [f.modality for f in frames if f.modality != "CT"]
    if other:
        return Refusal("not-ct", f"its modality is {other[0] or 'not given'}, not CT; leave it out.", other[0])
    if all("LOCALIZER" in f.kinds for f in frames):
        return Refusal("localizer", "it is a localizer (scout), no volume; leave it out.")
    if len(frames) < FEWEST_SLICES:
        count = len(frames)
        return Refusal(
            "too-few-slices", f"it has only {count} slices; give a series of at least {FEWEST_SLICES}.", count
        )
    return None


def _not_whole(frames: Sequence[Frame]) -> Refusal | None:
    """Why the files of a series do not hold all of a volume; None where they do."""
    files = {f.file for f in frames}
    broken = len({f.file for f in frames if not f.whole})
    if broken:
        return Refusal(
            "file-damaged", f"{broken} of its {len(files)} files are cut short; copy the series again.", broken
        )
    if any(f.number is not None for f in frames):
        if len(files) > 1:
            return Refusal(
                "several-multi-frame-files",
                "it consists of several multi-frame files; join them into one, or export single slices.",
                len(files),
            )
        if len({f.rescale for f in frames}) > 1:
            return Refusal(
                "rescale-differs", "the frames of its multi-frame file differ in rescale; export single slices."
            )
    for name, values in (
        ("ImagePositionPatient", [f.position for f in frames]),
        ("ImageOrientationPatient", [f.orientation for f in frames]),
        ("PixelSpacing", [f.spacing for f in frames]),
    ):
        if any(value is None or not np.isfinite(value).all() for value in values):
            return Refusal("tag-missing", f"its slices lack {name}; export the series again, with its geometry.", name)
    return None


def _not_a_stack(frames: Sequence[Frame]) -> Refusal | None:
    """Why slices that have all their tags do not make a volume; None where they do."""
    first = frames[0]
    orientation, spacing = _array(f.orientation for f in frames), _array(f.spacing for f in frames)
    for what, same in (
        ("matrix size", all(f.matrix == first.matrix for f in frames)),
        ("PixelSpacing", np.allclose(spacing, spacing[0], rtol=1e-3)),
        ("ImageOrientationPatient", np.allclose(orientation, orientation[0], atol=1e-3)),
        ("kind (localizer or not)", len({"LOCALIZER" in f.kinds for f in frames}) == 1),
    ):
        if not same:
            return Refusal("slices-differ", f"its slices differ in {what}; split it into series of one kind.", what)
    row, column = orientation[0, :3], orientation[0, 3:]
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=0.02):
        return Refusal(
            "orientation-impossible",
            "its ImageOrientationPatient is no pair of directions; export the series again.",
            tuple(orientation[0].tolist()),
        )
    if (spacing <= 0).any():
        numbers = "×".join(f"{s:g}" for s in spacing[0])
        return Refusal(
            "spacing-impossible",
            f"its PixelSpacing is {numbers} mm, which cannot be; export the series again.",
            numbers,
        )
    return _not_even(_array(f.position for f in frames), np.cross(row, column))


def _not_even(positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> Refusal | None:
    """Why slices at these positions, mm (n, 3), are not evenly stacked along the normal; None where they are."""
    depth = positions @ normal
    order = np.argsort(depth)
    steps = np.diff(depth[order])
    if (steps < SAME_POSITION).any():
        count = int((steps < SAME_POSITION).sum())
        return Refusal(
            "slices-overlap", f"{count} of its slices are where another one is; keep one image a position.", count
        )
    aside = positions - np.outer(depth, normal)
    tilt = np.degrees(np.arctan2(np.linalg.norm(aside - aside[order[0]], axis=1).max(), steps.sum()))
    if tilt > LARGEST_TILT:
        return Refusal(
            "gantry-tilt",
            f"its slices are stacked askew (gantry tilt of {tilt:.1f}°); correct the tilt first, as dcm2niix does.",
            round(float(tilt), 1),
        )
    step = float(np.median(steps))
    if steps.max() > LARGEST_GAP * step:
        return Refusal(
            "slices-missing",
            f"slices are missing: a gap of {steps.max():.4g} mm where others are {step:.4g} mm apart; copy it again.",
            float(steps.max()),
        )
    if np.abs(steps - step).max() > max(UNEVEN, UNEVEN_SHARE * step):
        return Refusal(
            "slices-uneven",
            f"its slices are {steps.min():.4g} to {steps.max():.4g} mm apart; export a series of even spacing.",
            (float(steps.min()), float(steps.max())),
        )
    return None


def _in_order(frames: Sequence[Frame]) -> list[Frame]:
    normal = _normal(frames[0])
    return sorted(frames, key=lambda f: float(np.dot(f.position or (), normal)))


def _normal(frame: Frame) -> npt.NDArray[np.float64]:
    orientation = np.array(frame.orientation)
    normal: npt.NDArray[np.float64] = np.cross(orientation[:3], orientation[3:])
    return normal


def _array(values: Any) -> npt.NDArray[np.float64]:
    return np.array(list(values), dtype=np.float64)


def read_series(path: Path, uid: str | None = None) -> Stored:
    """Read the voxels of a series, float32 HU.

    Args:
        path: the folder of the series, or any file of it.
        uid: SeriesInstanceUID; it may be left out where a folder has one usable series.

    Raises:
        VolumeError: there is no such file or series, several could be meant, or the series cannot be used.
    """
    if not path.exists():
        raise missing(path)
    try:
        if path.is_file() and uid is None:
            frames = read_frames(path)
            uid = frames[0].series if frames else None
        candidates = list_series(path if path.is_dir() else path.parent)
    except Unreadable as error:
        raise cut_short(path) from error
    except OSError as error:
        raise unreadable(path, error) from error
    series = _choose(path, candidates, uid)
    if series.refused:
        raise VolumeError(path, series.refused, code=series.refused_code, value=series.refused_value)
    return _read(path, series.frames)


def _choose(path: Path, candidates: Sequence[Series], uid: str | None) -> Series:
    if not candidates:
        raise VolumeError(path, "this folder holds no DICOM files.", code="no-dicom")
    if uid is not None:
        named = [series for series in candidates if series.uid == uid]
        if not named:
            raise VolumeError(
                path,
                "there is no series of that SeriesInstanceUID; correct it, or name its folder.",
                code="no-such-series",
                field="SeriesInstanceUID",
            )
        return named[0]
    usable = [series for series in candidates if not series.refused]
    if len(usable) > 1:
        counts = tuple(series.slices for series in usable)
        raise VolumeError(
            path,
            f"it holds {len(usable)} CT series (of {', '.join(map(str, counts))} slices); name one by its "
            "SeriesInstanceUID.",
            code="several-series",
            field="SeriesInstanceUID",
            value=counts,
        )
    if not usable and len(candidates) > 1:
        raise VolumeError(
            path,
            f"none of its {len(candidates)} series can be used; the first: {candidates[0].refused}",
            code="no-usable-series",
            value=candidates[0].refused_code,
        )
    return (usable or candidates)[0]


def _read(path: Path, frames: Sequence[Frame]) -> Stored:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    first, last = frames[0], frames[-1]
    try:
        # As float32: slices may differ in slope and intercept, and the type of the first may not hold the others' values.
        if first.number is None:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames([str(f.file) for f in frames])
            reader.SetOutputPixelType(sitk.sitkFloat32)
            array = sitk.GetArrayFromImage(reader.Execute())
        else:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(first.file), sitk.sitkFloat32))
            array = array[[f.number or 0 for f in frames]]
    except RuntimeError as error:
        raise cut_short(path) from error
    if array.shape != (len(frames), *first.matrix):
        raise cut_short(path)
    normal, spacing = _normal(first), first.spacing or ()
    step = float((np.array(last.position) - np.array(first.position)) @ normal) / (len(frames) - 1)
    orientation = np.array(first.orientation)
    directions = np.stack([orientation[:3], orientation[3:], normal], axis=1)
    # DICOM gives the distance between rows first; along a row (axis i) the distance is that between columns.
    return Stored(array.T, (spacing[1], spacing[0], step), directions / np.linalg.norm(directions, axis=0))
