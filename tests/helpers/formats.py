"""One scan in every format, its header written by hand, so that a test can say in it whatever a program may say."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from scans import save_dicom

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])
FORMATS = ("nifti", "nifti-2", "nifti-pair", "nrrd", "metaimage", "dicom")
NUMBERS = {
    "int16": "MET_SHORT",
    "int32": "MET_INT",
    "float32": "MET_FLOAT",
    "uint16": "MET_USHORT",
    "float64": "MET_DOUBLE",
}
Geometry = tuple[tuple[float, float, float], npt.NDArray[np.float64]]


def save_as(
    kind: str,
    folder: Path,
    array: npt.NDArray[Any],
    spacing: tuple[float, float, float],
    directions: npt.NDArray[np.float64] | None = None,
    header: Mapping[str, str] | None = None,
) -> Path:
    """Write a scan (i, j, k) in one of `FORMATS` and give the path to read.

    Args:
        directions: unit columns in LPS, at right angles or not; default straight.
        header: lines of a text header to add, to change, or (with an empty text) to leave out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    directions = np.eye(3) if directions is None else directions
    match kind:
        case "nrrd":
            return save_nrrd(folder / "a.nrrd", array, spacing, directions, header)
        case "metaimage":
            return save_metaimage(folder / "a.mha", array, spacing, directions, header)
        case "dicom":
            return _save_dicom(folder, array, spacing, directions)
    affine = np.eye(4)
    affine[:3, :3] = RAS_FROM_LPS @ directions * spacing
    made = {"nifti": nibabel.Nifti1Image, "nifti-2": nibabel.Nifti2Image, "nifti-pair": nibabel.Nifti1Pair}[kind]
    path = folder / {"nifti": "a.nii.gz", "nifti-2": "a.nii", "nifti-pair": "a.img"}[kind]
    nibabel.save(made(array, affine), path)
    return path


def _save_dicom(
    folder: Path,
    array: npt.NDArray[Any],
    spacing: tuple[float, float, float],
    directions: npt.NDArray[np.float64],
) -> Path:
    def place(k: int, header: Dataset) -> None:
        header.ImagePositionPatient = [f"{c:.6f}"[:16] for c in directions[:, 2] * spacing[2] * k]
        header.PixelSpacing = [f"{spacing[1]:.8g}", f"{spacing[0]:.8g}"]

    save_dicom(folder, array, (1, 1, 1), directions, change=place)
    return folder


def save_nrrd(
    path: Path,
    array: npt.NDArray[Any],
    spacing: tuple[float, float, float],
    directions: npt.NDArray[np.float64],
    header: Mapping[str, str] | None = None,
) -> Path:
    """A NRRD in LPS, compressed where its header does not say otherwise."""
    vectors = " ".join("({})".format(",".join(f"{c:.12g}" for c in column)) for column in (directions * spacing).T)
    fields = {
        "type": {"float32": "float", "float64": "double"}.get(str(array.dtype), str(array.dtype)),
        "dimension": "3",
        "space dimension": "",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape)),
        "space directions": vectors,
        "space origin": "(0,0,0)",
        "endian": "little",
        "encoding": "gzip",
        **(header or {}),
    }
    text = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in fields.items() if value) + "\n"
    raw = array.astype(array.dtype.newbyteorder("<" if fields["endian"] == "little" else ">")).tobytes(order="F")
    path.write_bytes(text.encode() + (gzip.compress(raw) if fields["encoding"] == "gzip" else raw))
    return path


def save_metaimage(
    path: Path,
    array: npt.NDArray[Any],
    spacing: tuple[float, float, float],
    directions: npt.NDArray[np.float64],
    header: Mapping[str, str] | None = None,
) -> Path:
    """A MetaImage: one file as .mha, two as .mhd."""
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": " ".join(f"{c:.12g}" for c in directions.T.ravel()),
        "Offset": "0 0 0",
        "ElementSpacing": " ".join(f"{s:.12g}" for s in spacing),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": NUMBERS[str(array.dtype)],
        **(header or {}),
        "ElementDataFile": "LOCAL" if path.suffix == ".mha" else f"{path.stem}.raw",
    }
    text = "".join(f"{name} = {value}\n" for name, value in fields.items() if value).encode()
    order = ">" if fields["BinaryDataByteOrderMSB"] == "True" else "<"
    raw = array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    if path.suffix == ".mha":
        path.write_bytes(text + raw)
    else:
        path.write_bytes(text)
        path.with_suffix(".raw").write_bytes(raw)
    return path
