"""Files to volumes in Hounsfield units: NIfTI through nibabel, NRRD and MetaImage through SimpleITK.

CT-RATE comes in two releases (method.md, "Volumes"). In the first, a file's header carries neither geometry nor HU rescale
and both stand in the metadata table; in the second the header is right and the rescale is applied. Which one a file is, is
read off the file itself, and a rescale is never applied twice.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes.errors import VolumeError
from brgsa.volumes.volume import Volume, reorient

AIR = -1000.0  # HU
FEWEST_SLICES = 8  # below, a file is a scout view or a fragment
AIR_TOLERANCE = 300.0  # HU that the darkest tenth of a chest CT may be away from air
LARGEST_TILT = 10.0  # degrees off the patient's axes that pass without a flag
NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class _Header:
    """Stored values (i, j, k) and what the header says of them; `bare` when it says nothing of the geometry."""

    stored: npt.NDArray[Any]
    spacing: tuple[float, float, float]
    directions: npt.NDArray[np.float64]
    bare: bool


def read_volume(path: Path | str, metadata: Mapping[str, Any] | None = None) -> Volume:
    """Read one CT.

    Args:
        metadata: the volume's row of CT-RATE's metadata table (RescaleSlope, RescaleIntercept, XYSpacing, ZSpacing,
            ImageOrientationPatient), used where the file itself lacks geometry or rescale.

    Returns:
        The volume in HU and canonical order. Its flags tell where geometry and rescale came from ("geometry:header" or
        "geometry:csv", "rescale:header" or "rescale:csv") and what looks odd ("hu:implausible", "orientation:tilted").

    Raises:
        VolumeError: the file is not a usable CT volume; says why.
    """
    path = Path(path)
    header = _read(path)
    _check(path, header)
    flags = []
    spacing, directions = header.spacing, header.directions
    if metadata is not None and header.bare:
        spacing, directions = _geometry_of(path, metadata)
        flags.append("geometry:csv")
    else:
        flags.append("geometry:header")
    array = header.stored.astype(np.float32)
    if metadata is not None:
        slope, intercept = _number(path, metadata, "RescaleSlope"), _number(path, metadata, "RescaleIntercept")
        if _needs_rescale(array, slope, intercept):
            array *= slope
            array += intercept
            flags.append("rescale:csv")
        else:
            flags.append("rescale:header")
    if abs(_air_of(array) - AIR) > AIR_TOLERANCE:
        flags.append("hu:implausible")
    turned, spacing, tilt = reorient(array, spacing, directions)
    if tilt > LARGEST_TILT:
        flags.append("orientation:tilted")
    return Volume(turned, spacing, str(path), tuple(flags))


def _read(path: Path) -> _Header:
    if not path.exists():
        raise VolumeError(path, "there is no such file: correct the path")
    if path.is_dir():
        raise VolumeError(path, "is a folder: give a NIfTI, NRRD or MetaImage file")
    if path.stat().st_size == 0:
        raise VolumeError(path, "the file is empty: fetch it again")
    name = path.name.lower()
    if name.endswith(NIFTI):
        return _read_nifti(path)
    if name.endswith(ITK):
        return _read_itk(path)
    raise VolumeError(path, f"is none of {', '.join(NIFTI + ITK)}: convert it to one of these")


def _read_nifti(path: Path) -> _Header:
    import nibabel as nib

    try:
        image: Any = nib.load(path)  # type: ignore[attr-defined, unused-ignore]
        stored = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel, gzip and zlib each have their own
        raise VolumeError(path, f"cannot be read as NIfTI, truncated or damaged ({_first_line(error)})") from error
    while stored.ndim > 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    zooms = [float(z) for z in image.header["pixdim"][1:4]]
    affine = np.asarray(image.affine, dtype=np.float64)[:3]
    columns = np.linalg.norm(affine[:, :3], axis=0)
    if not all(math.isfinite(z) and z > 0 for z in (*zooms, *columns)):
        raise VolumeError(path, f"its voxel spacing is {tuple(zooms)} mm: correct the header, each must be above 0")
    # NIfTI's world points right, anterior, superior; ours left, posterior, superior.
    directions = np.diag([-1.0, -1.0, 1.0]) @ (affine[:, :3] / columns)
    bare = bool(np.array_equal(affine, np.eye(4)[:3]))
    return _Header(stored, (float(columns[0]), float(columns[1]), float(columns[2])), directions, bare)


def _read_itk(path: Path) -> _Header:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise VolumeError(path, f"cannot be read, truncated or damaged ({_first_line(error)})") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        size = "x".join(str(n) for n in image.GetSize())
        raise VolumeError(path, f"is not a 3-D volume of one value a voxel but {size}: give one scan a file")
    spacing = image.GetSpacing()
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise VolumeError(path, f"its voxel spacing is {spacing} mm: correct the header, each must be above 0")
    stored = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    directions = np.array(image.GetDirection(), dtype=np.float64).reshape(3, 3)
    return _Header(stored, (spacing[0], spacing[1], spacing[2]), directions, bare=False)


def _check(path: Path, header: _Header) -> None:
    stored = header.stored
    if stored.ndim != 3:
        raise VolumeError(path, f"is a {stored.ndim}-D image of shape {stored.shape}: give a 3-D volume")
    if min(stored.shape) < FEWEST_SLICES:
        raise VolumeError(path, f"is only {stored.shape} voxels: a scan needs at least {FEWEST_SLICES} along each axis")
    if not np.issubdtype(stored.dtype, np.number) or np.iscomplexobj(stored):
        raise VolumeError(path, f"its voxels are of type {stored.dtype}, not numbers")
    if not np.isfinite(stored).all():
        raise VolumeError(path, "holds voxels that are not numbers (NaN or infinite): export it again")
    if stored.min() == stored.max():
        raise VolumeError(path, f"every voxel is {stored.min()}: export it again")


def _geometry_of(path: Path, metadata: Mapping[str, Any]) -> tuple[tuple[float, float, float], npt.NDArray[np.float64]]:
    """Spacing and directions from a metadata row: rows run along the first cosine, columns along the second (DICOM)."""
    in_plane = _numbers(path, metadata, "XYSpacing", 2)
    spacing = (in_plane[0], in_plane[1], _number(path, metadata, "ZSpacing"))
    if min(spacing) <= 0:
        raise VolumeError(path, f"its voxel spacing in the metadata table is {spacing} mm: each must be above 0")
    cosines = np.array(_numbers(path, metadata, "ImageOrientationPatient", 6)).reshape(2, 3)
    normal = np.cross(cosines[0], cosines[1])
    return spacing, np.stack([cosines[0], cosines[1], normal], axis=1)


def _number(path: Path, metadata: Mapping[str, Any], field: str) -> float:
    try:
        value = float(metadata[field])
    except (KeyError, TypeError, ValueError) as error:
        raise VolumeError(path, f"its row of the metadata table has no number in {field}") from error
    if not math.isfinite(value):
        raise VolumeError(path, f"its row of the metadata table has no number in {field}")
    return value


def _numbers(path: Path, metadata: Mapping[str, Any], field: str, count: int) -> list[float]:
    try:
        values = [float(v) for v in ast.literal_eval(str(metadata[field]))]
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise VolumeError(path, f"its row of the metadata table has no list of {count} numbers in {field}") from error
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise VolumeError(path, f"its row of the metadata table has no list of {count} numbers in {field}")
    return values


def _needs_rescale(array: npt.NDArray[np.float32], slope: float, intercept: float) -> bool:
    """Whether the values are stored ones, not HU: whichever reading puts the scan's air nearer to -1000 HU is right."""
    air = _air_of(array)
    return abs(air * slope + intercept - AIR) < abs(air - AIR)


def _air_of(array: npt.NDArray[np.float32]) -> float:
    """The value of air: the middle of the darkest tenth, without the padding that scanners write outside the circle."""
    sample = np.sort(array[::3, ::3, ::2], axis=None)
    lowest = sample[0]
    inside = sample[np.searchsorted(sample, lowest, side="right") :]
    # Padding is one value far below air; a scan clipped at air has that very value in its darkest voxels too.
    values = inside if len(inside) > len(sample) // 4 and inside[0] - lowest > AIR_TOLERANCE else sample
    return float(values[len(values) // 20])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
