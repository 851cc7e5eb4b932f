"""How much memory an upload's headers ask for. A reader takes it before it sees that the voxels are not there."""

from __future__ import annotations

import math
import mmap
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brgsa.errors import UserError

DEFLATED = b"1.2.840.10008.1.2.1.99"  # the transfer syntax of a DICOM file that is packed as a whole
SIZES = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"]


def stated_bytes(scan: Path) -> int:
    """The bytes of voxels that a file, or the files of a folder, say to hold; 0 for a header that is not understood, which its
    reader refuses, and for NIfTI, whose reader looks first whether the voxels are there.

    Raises:
        UserError: a DICOM file is deflated ("upload-compression"): only unpacking would tell.
    """
    if scan.is_dir():
        return sum(_dicom(file) for file in scan.iterdir())
    readers: Mapping[str, Callable[[Path], int]] = {".dcm": _dicom, ".npz": _arrays, ".nrrd": _image, ".mha": _image}
    read = readers.get(scan.suffix)
    return 0 if read is None else read(scan)


def _image(file: Path) -> int:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        voxel = sitk.Image([1] * len(reader.GetSize()), reader.GetPixelID(), reader.GetNumberOfComponents())
    except RuntimeError:
        return 0
    return int(math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * voxel.GetSizeOfPixelComponent())


def _arrays(file: Path) -> int:
    kinds: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    total = 0
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            try:
                with archive.open(name) as member:
                    shape, _, dtype = kinds[np.lib.format.read_magic(member)](member)
            except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
                continue
            total += math.prod(shape) * dtype.itemsize
    return total


def _dicom(file: Path) -> int:
    from pydicom import dcmread

    if _names_deflate(file):
        raise UserError(
            "The DICOM files are deflated, which is not read here: send them in another transfer syntax.",
            code="upload-compression",
        )
    try:
        header = dcmread(file, stop_before_pixels=True, specific_tags=SIZES, force=True)
        numbers = [int(header.get(name) or 1) for name in SIZES]
    except Exception:  # of any kind, by what is damaged
        return 0
    return math.prod(numbers) // 8


def _names_deflate(file: Path) -> bool:
    """Whether the syntax stands anywhere in a file: where its header has it, only a parser tells, which would unpack it."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(DEFLATED) >= 0
