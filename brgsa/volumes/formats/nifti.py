"""NIfTI, as one file or a pair, and Analyze 7.5.

They are parsed here from their bytes, with nibabel's header classes: ITK reads a .nii.gz that is cut short as if it were
whole, and silently turns a zero or negative spacing into a positive one.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes.checks.geometry import LARGEST_SHEAR, shear_of
from brgsa.volumes.errors import VolumeError, cut_short, missing
from brgsa.volumes.formats.shape import check_spacing, check_stored_size, not_an_image, not_numbers, three_dimensional
from brgsa.volumes.stored import Doubt, Stored, contradiction, millimetres

LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's axes are right, anterior, superior
UNITS = {
    1: ("m", 1000.0),
    3: ("µm", 0.001),
}  # lengths of xyzt_units that are no mm, and mm in each; 2 is mm, 0 not stated
SAME_LENGTH, SAME_ANGLE = 0.01, 1.0  # by which two forms of one header may differ: share of a length, degrees


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI or Analyze by its name."""
    return path.name.lower().endswith((".nii", ".hdr", ".img", ".nii.gz", ".hdr.gz", ".img.gz"))


def read_nifti(path: Path) -> Stored:
    """Read a NIfTI or Analyze file, or a pair by the name of either.

    Raises:
        VolumeError: see `formats.read_stored`.
        OSError: the file cannot be read.
    """
    from nibabel.spatialimages import HeaderDataError

    header_file, image_file = _pair(path)
    raw = _bytes(path, header_file)
    header, kind = _header(path, raw)
    if kind != "analyze" and header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # so nifti1.h reads a qfac of 0
    shape = three_dimensional(path, tuple(int(n) for n in header.get_data_shape()))
    unit, factor = UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0)) if kind != "analyze" else ("mm", 1.0)
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64) * factor
    check_spacing(path, pixdim.tolist())
    try:
        dtype = header.get_data_dtype()
        best = np.asarray(header.get_best_affine(), dtype=np.float64)
        affine, origin = best[:3, :3] * factor, LPS @ best[:3, 3] * factor
        slope, intercept = header.get_slope_inter()
        offset, count = int(header["vox_offset"]), math.prod(shape)
        if min(shape) < 1:
            raise ValueError(f"dimensions of {shape}")
    except (HeaderDataError, ValueError, KeyError, OverflowError) as error:
        raise VolumeError(
            path, f"its NIfTI header is damaged ({error}); export the scan again.", code="header-damaged"
        ) from error
    if dtype.kind not in "iuf":
        raise not_numbers(path)
    if image_file != header_file:
        raw, offset = _bytes(path, image_file), max(offset, 0)
    else:
        offset = max(offset, len(header.binaryblock) + 4)
    if len(raw) < offset + count * dtype.itemsize:
        raise cut_short(path)
    check_stored_size(path, len(raw) - offset, shape, dtype.itemsize)
    array = np.frombuffer(raw, dtype, count, offset).reshape(shape, order="F")
    if (slope, intercept) not in ((None, None), (1.0, 0.0)):
        array = array.astype(np.float32) * np.float32(slope) + np.float32(intercept or 0.0)
    columns = LPS @ affine
    lengths = np.linalg.norm(columns, axis=0)
    check_spacing(path, lengths.tolist())
    oriented = kind != "analyze" and bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    return Stored(
        array,
        (float(lengths[0]), float(lengths[1]), float(lengths[2])),
        columns / lengths,
        oriented=oriented,
        identity=bool(np.allclose(affine / lengths, np.eye(3), atol=1e-4)) or not oriented,
        doubts=(
            *([Doubt("units:converted", unit)] if factor != 1 else []),
            *(_contradictions(header, pixdim / factor) if oriented else ()),
        ),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
    )


def _pair(path: Path) -> tuple[Path, Path]:
    """The files of header and voxels."""
    name = path.name
    for have, other in ((".hdr", ".img"), (".img", ".hdr"), (".HDR", ".IMG"), (".IMG", ".HDR")):
        for zipped in ("", ".gz"):
            if name.endswith(have + zipped):
                base = name.removesuffix(have + zipped)
                found = next((f for end in ("", ".gz") if (f := path.with_name(base + other + end)).is_file()), None)
                if found is None:
                    raise missing(path.with_name(base + other + zipped))
                return (path, found) if have.lower() == ".hdr" else (found, path)
    return path, path


def _bytes(path: Path, file: Path) -> bytes:
    raw = file.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    from isal import igzip, isal_zlib  # twice as fast as zlib, where most of the time of reading a scan goes

    damaged: Any = (EOFError, gzip.BadGzipFile, isal_zlib.error)
    try:
        unpacked: bytes = igzip.decompress(raw)  # type: ignore[no-untyped-call]
    except damaged as error:
        raise cut_short(path) from error
    return unpacked


def _header(path: Path, raw: bytes) -> tuple[Any, str]:
    """The header, and whether it is of "nifti" or "analyze"."""
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
    from nibabel.spm99analyze import Spm99AnalyzeHeader

    kinds: tuple[tuple[Any, int, bytes, bytes], ...] = (
        (Nifti1Header, 348, raw[344:347], b"n+1"),
        (Nifti1PairHeader, 348, raw[344:347], b"ni1"),
        (Nifti2Header, 540, raw[4:7], b"n+2"),
        (Nifti2PairHeader, 540, raw[4:7], b"ni2"),
    )
    for kind, length, mark, magic in kinds:
        if len(raw) >= length and mark == magic:
            return kind(raw[:length], check=False), "nifti"
    size = {int.from_bytes(raw[:4], order) for order in ("little", "big")}
    if len(raw) >= 348 and 348 in size and not path.name.lower().endswith((".nii", ".nii.gz")):
        return Spm99AnalyzeHeader(raw[:348], check=False), "analyze"  # type: ignore[no-untyped-call]
    raise not_an_image(path)


def _contradictions(header: Any, pixdim: npt.NDArray[np.float64]) -> list[Doubt]:
    """What sform, qform and pixdim say differently; all in the header's own unit."""
    from nibabel.spatialimages import HeaderDataError

    if header["sform_code"] <= 0:
        return []
    sform = np.asarray(header.get_sform()[:3, :3], dtype=np.float64)
    lengths = np.linalg.norm(sform, axis=0)
    if not lengths.all():
        return []
    directions = sform / lengths
    sheared = shear_of(directions)
    # Of a sheared scan, some write the distance of the slices and others that of the voxels.
    heights = np.abs(np.linalg.det(sform)) / np.array(
        [np.linalg.norm(np.cross(sform[:, a], sform[:, b])) for a, b in ((1, 2), (0, 2), (0, 1))]
    )
    found = []
    if not all(_near(p, (a, b), SAME_LENGTH) for p, a, b in zip(pixdim, lengths, heights, strict=True)):
        found.append(contradiction(f"pixdim {millimetres(pixdim)}, sform {millimetres(lengths)}"))
    if header["qform_code"] > 0:
        try:
            qform = np.asarray(header.get_qform(coded=False)[:3, :3], dtype=np.float64)
        except (HeaderDataError, ValueError):
            return [*found, contradiction("qform is no rotation")]
        turned = qform / np.linalg.norm(qform, axis=0)
        cosines = np.sum(turned * directions, axis=0)
        angle = float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())
        if angle > SAME_ANGLE + (sheared if sheared > LARGEST_SHEAR else 0.0):
            found.append(contradiction(f"qform and sform {angle:.0f}° apart"))
    return found


def _near(value: float, others: tuple[float, float], share: float) -> bool:
    low, high = min(others), max(others)
    return low * (1 - share) <= value <= high * (1 + share)
