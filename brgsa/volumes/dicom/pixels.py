"""The voxels of DICOM slices in HU: stored values times slope plus intercept, whatever the picture's display.

pydicom reads what is not compressed, deflated, or run-length encoded; ITK and GDCM decode the rest. Neither is given the
rescale or MONOCHROME1: ITK would turn the values of such a picture upside down.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes.dicom.headers import SliceHeader
from brgsa.volumes.geometry import AIR

TISSUE = (-1000.0, 3071.0)  # HU that voxels of a patient may have
_DISPLAY = ("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PixelPaddingValue")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


class Undecodable(Exception):
    """A file's pixels cannot be read; the argument is the name of its transfer syntax, empty where the file is damaged."""


def read_hu(slices: Sequence[SliceHeader]) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
    """The slices in HU (n, rows, columns): int16 where all values are whole numbers that fit, float32 otherwise.

    Raises:
        Undecodable: a file's pixels cannot be read.
        LeftOver: a file has more of them than its header says.
    """
    stored = _Stored()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings print values and paths, which may identify a patient
        planes = [_hounsfield(stored.plane(header), header) for header in slices]
    dtype = np.int16 if all(plane.dtype == np.int16 for plane in planes) else np.float32
    return np.stack([plane.astype(dtype, copy=False) for plane in planes])


class LeftOver(Exception):
    """A file holds more pixels than its Rows and Columns speak of; the argument is the number of bytes."""


class _Stored:
    """Stored values of slices; of a multi-frame file, the last one stays in memory."""

    def __init__(self) -> None:
        self._file = Path()
        self._frames: npt.NDArray[Any] = np.empty(0)

    def plane(self, header: SliceHeader) -> npt.NDArray[Any]:
        if header.file != self._file:
            self._file, self._frames = header.file, _decoded(header.file)
        frames = self._frames.reshape(-1, *self._frames.shape[-2:])
        number = header.frame or 0
        if number >= len(frames) or frames.shape[1:] != header.matrix:
            raise Undecodable("")
        plane: npt.NDArray[Any] = frames[number]
        return plane


def _decoded(file: Path) -> npt.NDArray[Any]:
    """A file's stored values: (rows, columns), or (frames, rows, columns)."""
    from pydicom import dcmread
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

    try:
        dataset = dcmread(file, force=True)
        syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
        if syntax is None:  # an old file without preamble
            syntax = ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
            dataset.ensure_file_meta()
            dataset.file_meta.TransferSyntaxUID = syntax
    except Exception as error:  # of any kind, by what is damaged
        raise Undecodable("") from error
    if not syntax.is_compressed or syntax.is_deflated:
        _check_length(dataset)
    try:
        if not syntax.is_compressed or syntax.is_deflated or syntax == RLELossless:
            values: npt.NDArray[Any] = pixel_array(dataset, raw=True)
            return values
        return _by_itk(dataset)
    except Exception as error:
        raise Undecodable(syntax.name if syntax.is_compressed and syntax != RLELossless else "") from error


def _check_length(dataset: Any) -> None:
    """Refuse uncompressed pixels of which at least a row or a column is left over; less is padding.

    Raises:
        LeftOver: there is more.
    """
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        size = int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) // 8
        frames = int(dataset.get("NumberOfFrames") or 1)
        more = len(dataset.PixelData) - rows * columns * size * frames
    except (AttributeError, TypeError, ValueError):
        return  # what is missing is refused where the pixels are read
    if more >= min(rows, columns) * size > 0:
        raise LeftOver(more)


def _by_itk(dataset: Any) -> npt.NDArray[Any]:
    """The stored values of a compressed file, by ITK, from a copy that says nothing of their meaning."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name in _DISPLAY:
        if name in dataset:
            delattr(dataset, name)
    for item in (i for name in _GROUPS for i in dataset.get(name) or []):
        if "PixelValueTransformationSequence" in item:
            del item.PixelValueTransformationSequence
    with tempfile.TemporaryDirectory(prefix="brgsa-") as folder:
        copy = Path(folder, "copy.dcm")
        dataset.save_as(copy, enforce_file_format=True)
        array: npt.NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(str(copy)))
    return array


def _hounsfield(stored: npt.NDArray[Any], header: SliceHeader) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
    slope, intercept = header.rescale or (1.0, 0.0)
    padding = _padding(stored, header, slope, intercept)
    if slope == 1 and intercept.is_integer() and stored.dtype.kind in "iu":
        low, high = int(stored.min()) + int(intercept), int(stored.max()) + int(intercept)
        if (low >= -32768 and high <= 32767) or padding is not None:
            values = stored.astype(np.int64) + int(intercept)
            if padding is not None:
                values[padding] = AIR
            if values.min() >= -32768 and values.max() <= 32767:
                return values.astype(np.int16)
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if padding is not None:
        hu[padding] = AIR
    return hu


def _padding(
    stored: npt.NDArray[Any], header: SliceHeader, slope: float, intercept: float
) -> npt.NDArray[np.bool_] | None:
    """Which pixels are filling and would not look like air; None where there are none.

    A value that tissue has, too, is filling only where it reaches the border of the picture.
    """
    if header.padding is None:
        return None
    low, high = header.padding
    if max(low * slope, high * slope) + intercept <= AIR:
        return None  # far below air, as air is cut off there
    filled: npt.NDArray[np.bool_] = (stored >= low) & (stored <= high)
    if not filled.any():
        return None
    ends = sorted((low * slope + intercept, high * slope + intercept))
    if ends[1] >= TISSUE[0] and ends[0] <= TISSUE[1]:
        from scipy import ndimage

        regions, _ = ndimage.label(filled)
        border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
        filled = np.isin(regions, np.unique(border[border > 0]))
    return filled if filled.any() else None
