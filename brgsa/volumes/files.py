"""Image files as they are stored: voxels, spacing and axis directions, not interpreted yet.

NIfTI is parsed here from its bytes, with nibabel's header classes: ITK reads a .nii.gz that is cut short as if it were
whole, and silently turns a zero or negative spacing into a positive one. Other formats go through SimpleITK.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from brgsa.volumes.errors import VolumeError, cut_short, empty, missing, unreadable


@dataclass(frozen=True)
class Stored:
    """An image as its file holds it.

    Attributes:
        array: voxels (i, j, k) of any number type, i the fastest in the file, with the header's own rescale applied.
        spacing: mm along i, j, k.
        directions: float64 (3, 3); column a is the unit direction of axis a in LPS.
        oriented: whether the header gives the directions of the axes in the patient.
        stated: whether the file itself gives any geometry; if not, it is the one that the archive publishes.
    """

    array: npt.NDArray[Any]
    spacing: tuple[float, float, float]
    directions: npt.NDArray[np.float64]
    oriented: bool = True
    stated: bool = True


def read_stored(path: Path) -> Stored:
    """Read an image file.

    Raises:
        VolumeError: the file is missing, empty, cut short, not an image, not 3-D, or of an impossible spacing.
    """
    if not path.is_file():
        raise missing(path)
    try:
        if path.stat().st_size == 0:
            raise empty(path)
        nifti = path.name.lower().endswith((".nii", ".nii.gz"))
        return _read_nifti(path) if nifti else _read_itk(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _read_nifti(path: Path) -> Stored:
    from nibabel.spatialimages import HeaderDataError

    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        from isal import igzip, isal_zlib  # twice as fast as zlib, where most of the time of reading a scan goes

        damaged: Any = (EOFError, gzip.BadGzipFile, isal_zlib.error)
        try:
            raw = igzip.decompress(raw)  # type: ignore[no-untyped-call]
        except damaged as error:
            raise cut_short(path) from error
    header = _nifti_header(path, raw)
    shape = three_dimensional(path, tuple(int(n) for n in header.get_data_shape()))
    pixdim = [float(s) for s in header["pixdim"][1:4]]
    _check_spacing(path, pixdim)
    try:
        dtype = header.get_data_dtype()
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, ValueError) as error:
        raise VolumeError(
            path, f"its NIfTI header is damaged ({error}); export the scan again.", code="header-damaged"
        ) from error
    if dtype.kind not in "iuf":
        raise VolumeError(
            path,
            "its voxels are no plain numbers (colour or complex); give the CT's own intensities.",
            code="voxels-not-numbers",
        )
    count, offset = int(np.prod(shape)), max(int(header["vox_offset"]), len(header.binaryblock) + 4)
    if len(raw) < offset + count * dtype.itemsize:
        raise cut_short(path)
    array = np.frombuffer(raw, dtype, count, offset).reshape(shape, order="F")
    if (slope, intercept) not in ((None, None), (1.0, 0.0)):
        array = array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    columns = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]  # NIfTI's axes are right, anterior, superior
    lengths = np.linalg.norm(columns, axis=0)
    _check_spacing(path, lengths.tolist())
    spacing = (float(lengths[0]), float(lengths[1]), float(lengths[2]))
    oriented = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    return Stored(array, spacing, columns / lengths, oriented)


def _nifti_header(path: Path, raw: bytes) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    kinds: tuple[tuple[Any, int, bytes, bytes], ...] = (
        (Nifti1Header, 348, raw[344:347], b"n+1"),
        (Nifti2Header, 540, raw[4:7], b"n+2"),
    )
    for kind, length, mark, magic in kinds:
        if len(raw) >= length and mark == magic:
            return kind(raw[:length], check=False)
    raise _not_an_image(path)


def _not_an_image(path: Path) -> VolumeError:
    return VolumeError(
        path,
        "this is not an image that can be read: give NIfTI (.nii, .nii.gz), NRRD (.nrrd), MetaImage (.mha, .mhd), DICOM "
        "or RAD-ChestCT's .npz.",
        code="not-an-image",
    )


def _read_itk(path: Path) -> Stored:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _not_an_image(path) from error
    size = reader.GetSize()
    shape = three_dimensional(path, size)
    if reader.GetNumberOfComponents() != 1:
        raise VolumeError(
            path,
            "its voxels are no plain numbers (colour or vectors); give the CT's own intensities.",
            code="voxels-not-numbers",
        )
    _check_metaimage_spacing(path)
    spacing = reader.GetSpacing()[:3]
    _check_spacing(path, list(spacing))
    directions = np.array(reader.GetDirection()).reshape(len(size), len(size))[:3, :3]
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise cut_short(path) from error
    return Stored(array.reshape(shape[::-1]).T, (spacing[0], spacing[1], spacing[2]), directions)


def _check_metaimage_spacing(path: Path) -> None:
    """ITK takes the absolute value of a MetaImage's spacing, so a negative one is looked for in the text header."""
    if path.suffix.lower() in (".mha", ".mhd"):
        with path.open("rb") as file:
            line = re.search(rb"^ElementSpacing\s*=\s*(.+)$", file.read(4096), re.MULTILINE)
        if line and any(number.startswith(b"-") for number in line[1].split()):
            raise _impossible_spacing(path, line[1].decode(errors="replace").split())


def three_dimensional(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape without trailing axes of length one.

    Raises:
        VolumeError: the number of axes that remain is not three.
    """
    wanted = shape[:3] if all(n == 1 for n in shape[3:]) else shape
    if len(wanted) != 3:
        sizes = "×".join(map(str, shape))
        raise VolumeError(
            path,
            f"the image has {len(shape)} dimensions ({sizes}); give one 3-D volume a file.",
            code="not-3d",
            field="shape",
            value=shape,
        )
    return wanted[0], wanted[1], wanted[2]


def _check_spacing(path: Path, spacing: list[float]) -> None:
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise _impossible_spacing(path, [f"{s:g}" for s in spacing])


def _impossible_spacing(path: Path, spacing: list[str]) -> VolumeError:
    numbers = "×".join(spacing)
    return VolumeError(
        path,
        f"its header gives a spacing of {numbers} mm, which cannot be: correct the header or export the scan again.",
        code="spacing-impossible",
        field="spacing",
        value=numbers,
    )


def data_files(path: Path) -> list[Path]:
    """The files of voxels that a header of NRRD or MetaImage points to, as absolute paths; none where the voxels are in it
    or the file is something else or cannot be read.

    A pattern of files (`slice%03d.raw`) gives one path with the pattern in it.
    """
    try:
        with path.open("rb") as file:
            if path.suffix.lower() in (".mha", ".mhd"):
                named, rest = _field(file, rb"\s*ElementDataFile\s*[=:]\s*(\S.*?)\s*$", end=None)
            elif file.read(4) == b"NRRD":
                named, rest = _field(file, rb"(?i)data ?file\s*:\s*(\S.*?)\s*$", end=b"")
            else:
                return []
    except OSError:
        return []
    folder = os.path.dirname(os.path.abspath(path))
    return [Path(os.path.normpath(os.path.join(folder, os.fsdecode(name)))) for name in _names(named, rest)]


def _field(file: BinaryIO, pattern: bytes, end: bytes | None) -> tuple[bytes, list[bytes]]:
    """The value of a text header's field, and the lines behind it where it is a list; empty where the header has none.

    Args:
        pattern: of the field's line.
        end: the line at which the header ends; None where it ends with the field.
    """
    for line in file:
        if end is not None and line.strip() == end:
            break
        if found := re.match(pattern, line):
            return found[1], file.read().splitlines() if found[1].split()[0].upper() == b"LIST" else []
    return b"", []


def _names(named: bytes, rest: Sequence[bytes]) -> list[bytes]:
    """The files that a field names: itself, those of the list behind it, or a pattern with its first and last number."""
    if rest:
        return [line.strip() for line in rest if line.strip()]
    if not named or named.upper() in (b"LOCAL", b"LOCAL_FILE"):
        return []
    pattern = re.match(rb"(.*%.*?)\s+-?\d+\s+-?\d+", named)
    return [pattern[1] if pattern else named]
