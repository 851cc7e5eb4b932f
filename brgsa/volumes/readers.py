"""CT files to volumes in Hounsfield units and canonical orientation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes.checks import hounsfield
from brgsa.volumes.checks.geometry import LARGEST_SHEAR, GeometryReport, check_geometry
from brgsa.volumes.checks.picture import check_picture
from brgsa.volumes.dicom import is_dicom, read_series
from brgsa.volumes.errors import VolumeError, unreadable
from brgsa.volumes.formats import read_stored
from brgsa.volumes.quality_flags import QUALITY_FLAGS
from brgsa.volumes.stored import Doubt, Stored, millimetres, to_affine
from brgsa.volumes.upright import upright
from brgsa.volumes.volume import Placement, Volume, axis_order, reorient

FEWEST_VOXELS = 8  # along any axis
SAME_SPACING = 0.01  # relative difference

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def read_volume(
    path: Path | str,
    metadata: Mapping[str, Any] | None = None,
    series: str | None = None,
    *,
    folders: Sequence[Path | str] = (),
    trust_geometry: bool = False,
) -> Volume:
    """Read one CT volume: NIfTI, Analyze, NRRD, MetaImage, RAD-ChestCT's `.npz`, or a DICOM series.

    Args:
        path: the file; for DICOM the folder of the series, one above it, or any file of it.
        metadata: the volume's row of its archive's metadata table, where it has one.
            Of CT-RATE's columns, `XYSpacing`, `ZSpacing` and `ImageOrientationPatient` give the geometry where the header
            has none (spacing 1×1×1, as in the first release; the array axes i, j, k are then along the row cosine, the
            column cosine and their normal). `RescaleSlope` and `RescaleIntercept` are applied where the voxels are not HU
            yet, and never twice. Of RAD-ChestCT's columns, `final_spacing` and `orig_orientation` are used; its voxels are
            HU already.
        series: the SeriesInstanceUID (or `Series.name`), where a DICOM folder holds several usable series.
        folders: all folders over which a DICOM series is spread, where that is known.
        trust_geometry: take a geometry that contradicts itself or that no chest has; the flag stays.

    Returns:
        The volume in HU. A scan that lies askew is turned by the closest axis permutation and flips, not resampled; one
        whose axes are not at right angles (gantry tilt) is resampled upright. Its flags are `rescale:csv` or `rescale:header`
        (applied already), `geometry:csv` or `geometry:header`, and whatever looks odd, some with numbers behind a space:
        `quality_warnings` says what it means.

    Raises:
        VolumeError: the file is missing, damaged, not an image or not 3-D; it has fewer than 8 voxels along an axis, a
            single value, a value that is not a number, an impossible spacing, or no geometry at all; its geometry lacks the
            spacing ("spacing-assumed"), contradicts itself ("geometry-contradictory") or is not that of a chest
            ("size-implausible", "shear-implausible"); the DICOM series is not whole, not CT, or one of several and not named.
    """
    path = Path(path)
    stored = _read(path, series, folders)
    _check_content(path, stored.array)
    rescale = _rescale(path, metadata)
    array, flags = _hounsfield(stored.array, rescale)
    spacing, directions, geometry_flags = _geometry(path, stored, metadata)
    by_header = "geometry:header" in geometry_flags
    # A table that gives the geometry makes good what the header says of it; other doubts are not of the geometry.
    doubts = [doubt for doubt in stored.doubts if by_header or not doubt.refused]
    if by_header and not stored.spaced:
        doubts.insert(0, Doubt("spacing:assumed", millimetres(spacing), refused=True))
    report = check_geometry(array.shape, spacing, directions, bare=by_header and stored.identity, doubts=doubts)
    _check_geometry(path, report, trust_geometry)
    affine = stored.affine
    turned, turned_spacing, _ = reorient(array, spacing, directions)
    flags += geometry_flags
    flags += map(str, check_picture(turned, turned_spacing))
    if report.shear > LARGEST_SHEAR:
        array, spacing, directions, affine = _made_upright(array, spacing, directions, affine)
        turned, turned_spacing, _ = reorient(array, spacing, directions)
    order, flips, _ = axis_order(directions)
    if rescale and "rescale:unsure" not in flags and ("rescale:csv" in flags) != ("geometry:csv" in flags):
        flags.append("release:mixed")
    flags += map(str, report.doubts)
    return Volume(turned, turned_spacing, str(path), tuple(flags), Placement(affine, order, flips))


def _made_upright(
    array: npt.NDArray[Any],
    spacing: tuple[float, float, float],
    directions: npt.NDArray[np.float64],
    affine: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float32], tuple[float, float, float], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A sheared scan on its upright grid, whose middle is where the scan's was: array, spacing, directions and affine."""
    middle = affine @ [*((np.array(array.shape) - 1) / 2), 1]
    made, steps, frame = upright(array, spacing, directions)
    origin = middle[:3] - (frame * steps) @ ((np.array(made.shape) - 1) / 2)
    return made, steps, frame, to_affine(steps, frame, origin)


def _read(path: Path, series: str | None, folders: Sequence[Path | str]) -> Stored:
    try:
        dicom = series is not None or path.is_dir() or is_dicom(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return read_series(path, series, folders) if dicom else read_stored(path)


def _check_geometry(path: Path, report: GeometryReport, trusted: bool) -> None:
    doubt = report.refused
    if doubt is None or (trusted and not doubt.final):
        return
    topic, note = doubt.flag.split(":")
    meaning = QUALITY_FLAGS[doubt.flag].removesuffix(".")
    trust = "" if doubt.final else ", or take it with --trust-geometry where you know it is right"
    raise VolumeError(
        path,
        f"{meaning} ({doubt.numbers}): correct the header{trust}.",
        code=f"{topic}-{note}",
        field="geometry",
        value=doubt.numbers,
    )


def _check_content(path: Path, array: npt.NDArray[Any]) -> None:
    if min(array.shape) < FEWEST_VOXELS:
        sizes = "×".join(map(str, array.shape))
        raise VolumeError(
            path,
            f"the volume has only {sizes} voxels; give one of at least {FEWEST_VOXELS} slices in every direction.",
            code="volume-too-small",
            field="shape",
            value=array.shape,
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        share = max(1 - float(np.isfinite(array).mean()), 1e-4)
        raise VolumeError(
            path,
            f"{share:.2%} of its voxels are NaN or infinite; export the scan again.",
            code="voxels-not-finite",
            value=share,
        )
    if np.ptp(hounsfield.sample(array)) == 0 and array.min() == array.max():
        raise VolumeError(
            path,
            f"all of its voxels are {array.flat[0]:g}: there is no picture in it; export the scan again.",
            code="voxels-constant",
            value=array.flat[0].item(),
        )


def _rescale(path: Path, metadata: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Slope and intercept of the metadata row; None where it has none, or where they would change nothing."""
    slope, intercept = _numbers(path, metadata, "RescaleSlope", 1), _numbers(path, metadata, "RescaleIntercept", 1)
    if not slope or not intercept or (slope[0], intercept[0]) == (1.0, 0.0):
        return None
    if slope[0] <= 0:
        raise _bad_metadata(path, "RescaleSlope", slope[0], f"{slope[0]:g}, which cannot be: correct the table.")
    return slope[0], intercept[0]


def _hounsfield(
    array: npt.NDArray[Any], rescale: tuple[float, float] | None
) -> tuple[npt.NDArray[np.int16] | npt.NDArray[np.float32], list[str]]:
    values = hounsfield.sample(array)
    flags = ["rescale:header"]
    applied = (1.0, 0.0)
    if rescale:
        slope, intercept = np.float32(rescale[0]), np.float32(rescale[1])
        apply, sure = hounsfield.needs_rescale(values, *rescale)
        if apply:
            applied = rescale
            values = values * slope + intercept
            flags = ["rescale:csv"]
        if not sure:
            flags.append("rescale:unsure")
    if (filling := hounsfield.filling(values)) is not None:
        flags.append(str(Doubt("hu:filled", f"{filling:g} HU")))
    if (ends := hounsfield.clipped(values)) is not None:
        flags.append(str(Doubt("hu:clipped", ends)))
    if hounsfield.likeness(values) < hounsfield.PLAUSIBLE or hounsfield.is_bright(values):
        flags.append("hu:implausible")
        if rescale and hounsfield.likeness(hounsfield.taken_back(values, *rescale)) >= hounsfield.PLAUSIBLE:
            flags.append("rescale:twice")
    return _rescaled(array, *applied), flags


def _rescaled(
    array: npt.NDArray[Any], slope: float, intercept: float
) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
    """Voxels in HU; as int16 where they are whole numbers that fit, which halves the work on a large scan."""
    if array.dtype.kind in "iu" and slope == 1 and float(intercept).is_integer():
        low, high = int(array.min()) + int(intercept), int(array.max()) + int(intercept)
        if low >= -32768 and high <= 32767:
            if array.dtype != np.int16:
                return (array.astype(np.int32) + int(intercept)).astype(np.int16)
            return array + np.int16(intercept) if intercept else array
    return np.asarray(array, dtype=np.float32) * np.float32(slope) + np.float32(intercept)


def _geometry(
    path: Path, stored: Stored, metadata: Mapping[str, Any] | None
) -> tuple[tuple[float, float, float], npt.NDArray[np.float64], list[str]]:
    if not stored.stated:
        return _published_geometry(path, stored, metadata)
    in_plane, between = _numbers(path, metadata, "XYSpacing", 2), _numbers(path, metadata, "ZSpacing", 1)
    table = (in_plane[0], in_plane[1], between[0]) if in_plane and between else None
    if table and not all(math.isfinite(s) and s > 0 for s in table):
        raise _bad_metadata(path, "XYSpacing and ZSpacing", table, f"{table}, which cannot be: correct it.")
    bare = bool(np.allclose(stored.spacing, 1.0, atol=1e-4))
    if bare and table:
        orientation = _numbers(path, metadata, "ImageOrientationPatient", 6)
        flags = ["geometry:csv"] + ([] if orientation else ["orientation:assumed"])
        return table, _directions(path, orientation or [1, 0, 0, 0, 1, 0]), flags
    if bare and metadata is not None:
        raise VolumeError(
            path,
            "neither its header nor its metadata row gives a spacing: add XYSpacing and ZSpacing to the metadata CSV.",
            code="spacing-missing",
            field="XYSpacing and ZSpacing",
        )
    flags = ["geometry:header"]
    flags += [] if stored.oriented else ["orientation:assumed"]
    if table and not np.allclose(stored.spacing, table, rtol=SAME_SPACING):
        numbers = f"header {millimetres(stored.spacing)}, table {millimetres(table)}"
        flags.append(str(Doubt("spacing:disagrees", numbers)))
    return stored.spacing, stored.directions, flags


def _published_geometry(
    path: Path, stored: Stored, metadata: Mapping[str, Any] | None
) -> tuple[tuple[float, float, float], npt.NDArray[np.float64], list[str]]:
    """RAD-ChestCT's geometry: that of the metadata row, or without a row that of the whole archive."""
    voxel = _numbers(path, metadata, "final_spacing", 1)
    if voxel is None:
        return stored.spacing, stored.directions, ["geometry:assumed"]
    if not (math.isfinite(voxel[0]) and voxel[0] > 0):
        raise _bad_metadata(path, "final_spacing", voxel[0], f"{voxel[0]:g} mm, which cannot be: correct it.")
    orientation = _numbers(path, metadata, "orig_orientation", 6) or [1, 0, 0, 0, 1, 0]
    # The archive's slices are sorted by falling position, against the normal.
    directions = _directions(path, orientation, "orig_orientation") * [1, 1, -1]
    return (voxel[0], voxel[0], voxel[0]), directions, ["geometry:csv"]


def _directions(
    path: Path, orientation: list[float], field: str = "ImageOrientationPatient"
) -> npt.NDArray[np.float64]:
    """DICOM's row and column cosines to the directions (3, 3) of the axes i, j, k, a column each."""
    row, column = np.array(orientation[:3], dtype=np.float64), np.array(orientation[3:], dtype=np.float64)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(lengths, 1.0, atol=0.01) or abs(float(row @ column)) > 0.05:
        raise _bad_metadata(
            path, field, tuple(orientation), f"{orientation}, no pair of directions: correct the table."
        )
    return np.stack([row, column, np.cross(row, column)], axis=1)


def _numbers(path: Path, metadata: Mapping[str, Any] | None, field: str, count: int) -> list[float] | None:
    """The numbers of a field, written as a number or like "[0.7, 0.7]"; None where the row has none.

    Raises:
        VolumeError: the field holds something else.
    """
    value = None if metadata is None else metadata.get(field)
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        return None
    numbers = [float(number) for number in _NUMBER.findall(str(value))]
    if len(numbers) != count:
        raise _bad_metadata(path, field, value, f"as {value!r}, not {count} numbers: correct the table.")
    return numbers


def _bad_metadata(path: Path, field: str, value: object, what: str) -> VolumeError:
    return VolumeError(path, f"its metadata row gives {field} {what}", code="metadata-value", field=field, value=value)
