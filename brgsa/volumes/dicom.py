"""DICOM folders: which series lie in them, which of those are CT volumes, and their voxels.

Geometry and order of the slices come from the headers alone; names and numbers of the files say nothing. Pixels go through
ITK and GDCM, which know the compressed transfer syntaxes and apply each slice's own rescale.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes.dicom_headers import Frame, Unreadable, is_dicom, read_frames
from brgsa.volumes.errors import VolumeError
from brgsa.volumes.files import CUT_SHORT, Stored

__all__ = ["Series", "is_dicom", "list_series", "read_series"]

FEWEST_SLICES = 8
SAME_POSITION = 1e-3  # mm
LARGEST_GAP = 1.5  # times the median step
UNEVEN, UNEVEN_SHARE = 0.11, 0.1  # mm, and share of the median step, whichever is more: positions are rounded to 0.1 mm
LARGEST_TILT = 0.5  # degrees between the normal of the slices and the line of their positions
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7."  # and its multi-frame kinds, whose UIDs go on from there


@dataclass(frozen=True)
class Series:
    """A DICOM series of a folder.

    Attributes:
        uid: SeriesInstanceUID; empty for a folder of files whose headers cannot be read.
        patient, study, accession: PatientID, StudyInstanceUID and AccessionNumber, as they stand in the header.
        slices: images of it.
        refused: why it cannot be used as a CT volume and how to mend that; empty where it can.
        frames: of a usable series, its slices in order along their normal.
    """

    uid: str = field(repr=False)
    patient: str = field(repr=False)
    study: str = field(repr=False)
    accession: str = field(repr=False)
    slices: int
    refused: str = ""
    frames: tuple[Frame, ...] = field(default=(), repr=False)


def list_series(folder: Path | str) -> tuple[Series, ...]:
    """The DICOM series of a folder (not of the folders in it), sorted by uid; refused ones with the reason.

    The last folders of a process are remembered, for as long as their files' sizes and times do not change.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        files = sorted((e.name, e.stat()) for e in entries if e.is_file() and not e.name.startswith("."))
    return _list_series(str(folder), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


@lru_cache(maxsize=64)
def _list_series(folder: str, files: tuple[tuple[str, int, int], ...]) -> tuple[Series, ...]:
    by_series: dict[str, list[Frame]] = {}
    unreadable = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's name the value, which may identify a patient
        for name, _, _ in files:
            try:
                frames = read_frames(Path(folder, name))
            except Unreadable:
                unreadable += 1
            else:
                for frame in frames:
                    by_series.setdefault(frame.series, []).append(frame)
    # A file without a header may be a slice of any of the series.
    spoilt = (
        f"{unreadable} files of its folder have no DICOM header that can be read, and may be slices of it: copy them again "
        "or take them away."
        if unreadable
        else ""
    )
    if unreadable and not by_series:
        return (Series("", "", "", "", unreadable, spoilt),)
    return tuple(_series(uid, by_series[uid], spoilt) for uid in sorted(by_series))


def _series(uid: str, frames: list[Frame], spoilt: str) -> Series:
    refused = _no_ct(frames) or _not_whole(frames) or spoilt or _no_stack(frames)
    first = frames[0]
    about = (uid, first.patient, first.study, first.accession, len(frames), refused)
    return Series(*about) if refused else Series(*about, frames=tuple(_in_order(frames)))


def _no_ct(frames: Sequence[Frame]) -> str:
    """Why a series is no CT volume by its kind; empty where it may be one."""
    if any(f.samples != 1 or f"{f.sop_class}.".startswith(SECONDARY_CAPTURE) for f in frames):
        return "it is a secondary capture or a colour picture, no CT slices; leave it out."
    other = [f.modality for f in frames if f.modality != "CT"]
    if other:
        return f"its modality is {other[0] or 'not given'}, not CT; leave it out."
    if all("LOCALIZER" in f.kinds for f in frames):
        return "it is a localizer (scout), no volume; leave it out."
    if len(frames) < FEWEST_SLICES:
        return f"it has only {len(frames)} slices; give a series of at least {FEWEST_SLICES}."
    return ""


def _not_whole(frames: Sequence[Frame]) -> str:
    broken = len({f.file for f in frames if not f.whole})
    if broken:
        return f"{broken} of its {len({f.file for f in frames})} files are cut short; copy the series again."
    if any(f.number is not None for f in frames):
        if len({f.file for f in frames}) > 1:
            return "it lies in several multi-frame files; join them into one, or export single slices."
        if len({f.rescale for f in frames}) > 1:
            return "the frames of its multi-frame file differ in rescale; export single slices."
    for name, values in (
        ("ImagePositionPatient", [f.position for f in frames]),
        ("ImageOrientationPatient", [f.orientation for f in frames]),
        ("PixelSpacing", [f.spacing for f in frames]),
    ):
        if any(value is None or not np.isfinite(value).all() for value in values):
            return f"its slices lack {name}; export the series again, with its geometry."
    return ""


def _no_stack(frames: Sequence[Frame]) -> str:
    """Why slices that have all they need do not make a volume; empty where they do."""
    first = frames[0]
    orientation, spacing = _array(f.orientation for f in frames), _array(f.spacing for f in frames)
    for what, same in (
        ("matrix size", all(f.matrix == first.matrix for f in frames)),
        ("PixelSpacing", np.allclose(spacing, spacing[0], rtol=1e-3)),
        ("ImageOrientationPatient", np.allclose(orientation, orientation[0], atol=1e-3)),
        ("kind (localizer or not)", len({"LOCALIZER" in f.kinds for f in frames}) == 1),
    ):
        if not same:
            return f"its slices differ in {what}; split it into series of one kind."
    row, column = orientation[0, :3], orientation[0, 3:]
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=0.02):
        return "its ImageOrientationPatient is no pair of directions; export the series again."
    if (spacing <= 0).any():
        return f"its PixelSpacing is {spacing[0][0]:g}×{spacing[0][1]:g} mm, which cannot be; export the series again."
    return _uneven(_array(f.position for f in frames), np.cross(row, column))


def _uneven(positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> str:
    """Why slices at these positions (n, 3) are not evenly stacked along the normal; empty where they are."""
    depth = positions @ normal
    order = np.argsort(depth)
    steps = np.diff(depth[order])
    if (steps < SAME_POSITION).any():
        count = int((steps < SAME_POSITION).sum())
        return f"{count} of its slices lie where another one does; keep one image a position."
    aside = positions - np.outer(depth, normal)
    tilt = np.degrees(np.arctan2(np.linalg.norm(aside - aside[order[0]], axis=1).max(), steps.sum()))
    if tilt > LARGEST_TILT:
        return f"its slices lie askew on one another (gantry tilt of {tilt:.1f}°); correct the tilt first, as dcm2niix does."
    step = float(np.median(steps))
    if steps.max() > LARGEST_GAP * step:
        return f"slices are missing: a gap of {steps.max():.4g} mm where others are {step:.4g} mm apart; copy it again."
    if np.abs(steps - step).max() > max(UNEVEN, UNEVEN_SHARE * step):
        return f"its slices are {steps.min():.4g} to {steps.max():.4g} mm apart; export a series of even spacing."
    return ""


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
    """Read a series: its folder, or any file of it.

    Args:
        uid: SeriesInstanceUID; may be left out where a folder has one usable series.

    Raises:
        VolumeError: there is no such file or series, several could be meant, or the series cannot be used.
    """
    if not path.exists():
        raise VolumeError(path, "there is no such file.")
    try:
        if path.is_file() and uid is None:
            frames = read_frames(path)
            uid = frames[0].series if frames else None
        found = list_series(path if path.is_dir() else path.parent)
    except Unreadable as error:
        raise VolumeError(path, CUT_SHORT) from error
    except OSError as error:
        raise VolumeError(path, f"the folder cannot be read ({error.strerror or error}).") from error
    series = _choose(path, found, uid)
    if series.refused:
        raise VolumeError(path, series.refused)
    return _read(path, series.frames)


def _choose(path: Path, found: Sequence[Series], uid: str | None) -> Series:
    if not found:
        raise VolumeError(path, "this folder holds no DICOM files.")
    if uid is not None:
        named = [series for series in found if series.uid == uid]
        if not named:
            raise VolumeError(path, "there is no series of that SeriesInstanceUID; correct it, or name its folder.")
        return named[0]
    usable = [series for series in found if not series.refused]
    if len(usable) > 1:
        counts = ", ".join(str(series.slices) for series in usable)
        raise VolumeError(
            path, f"it holds {len(usable)} CT series (of {counts} slices); name one by its SeriesInstanceUID."
        )
    if not usable and len(found) > 1:
        raise VolumeError(path, f"none of its {len(found)} series can be used; the first: {found[0].refused}")
    return (usable or found)[0]


def _read(path: Path, frames: Sequence[Frame]) -> Stored:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    first, last = frames[0], frames[-1]
    try:
        # As float32: slices may differ in slope and intercept, and the first one's type might not hold the others' values.
        if first.number is None:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames([str(f.file) for f in frames])
            reader.SetOutputPixelType(sitk.sitkFloat32)
            array = sitk.GetArrayFromImage(reader.Execute())
        else:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(first.file), sitk.sitkFloat32))
            array = array[[f.number or 0 for f in frames]]
    except RuntimeError as error:
        raise VolumeError(path, CUT_SHORT) from error
    if array.shape != (len(frames), *first.matrix):
        raise VolumeError(path, CUT_SHORT)
    normal, spacing = _normal(first), first.spacing or ()
    step = float((np.array(last.position) - np.array(first.position)) @ normal) / (len(frames) - 1)
    orientation = np.array(first.orientation)
    directions = np.stack([orientation[:3], orientation[3:], normal], axis=1)
    # DICOM names the distance of rows first; along a row (axis i) it is that of columns.
    return Stored(array.T, (spacing[1], spacing[0], step), directions / np.linalg.norm(directions, axis=0))
