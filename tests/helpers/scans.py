"""Small scans for tests: an asymmetric chest, and the files that it may lie in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACING = (5.0, 5.0, 6.0)  # mm: `chest` is 200×180×120 mm, as a field of view may be
# A row of CT-RATE's metadata table.
TABLE = {
    "RescaleSlope": "1",
    "RescaleIntercept": "-1024",
    "XYSpacing": "[5.0, 5.0]",
    "ZSpacing": "6.0",
    "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
}


def chest(shape: tuple[int, int, int] = (40, 36, 20), seed: int = 0) -> npt.NDArray[np.int16]:
    """HU (x, y, z): air, a body with two lungs, a spine at its back, a liver at its right and below; with noise."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / 0.9) ** 2 + (y / 0.7) ** 2 < 1] = 40
    hu[(((np.abs(x) - 0.4) / 0.3) ** 2 + (y / 0.45) ** 2 < 1) & (z > -0.6)] = -850
    hu[(np.hypot(x, y - 0.5) < 0.15)] = 700
    hu[(x < -0.2) & (np.abs(x) < 0.7) & (np.abs(y) < 0.3) & (z < -0.6)] = 110
    return np.rint(hu + np.random.default_rng(seed).normal(0, 12, shape)).clip(-1024).astype(np.int16)


def save_nifti(path: Path, array: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-5.0, -5.0, 6.0, 1.0]) if affine is None else affine), path)
    return path


def save_dicom(
    folder: Path,
    hu: npt.NDArray[np.int16],
    spacing: tuple[float, float, float] = SPACING,
    directions: npt.NDArray[np.float64] | None = None,
    *,
    series: str = "1.2.3",
    change: Callable[[int, Dataset], object] | None = None,
    **tags: Any,
) -> list[Path]:
    """Write a CT series, a file a slice of `hu`'s last axis, and give the files in that order.

    Args:
        spacing: mm along the array's axes i (along a row), j and k.
        directions: column a is the direction of axis a in LPS; default straight.
        change: called with each slice's number and dataset before it is written; a dataset without rows is left out.
        tags: DICOM attributes of every slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    directions = np.eye(3) if directions is None else directions
    files = []
    for k in range(hu.shape[2]):
        slope, intercept = 1, -1024
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.PatientID, dataset.PatientName, dataset.AccessionNumber = "secretpatient", "Secret^Name", "secretacc"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.InstanceNumber = "1.2", series, k + 1
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = hu.shape[1], hu.shape[0]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        dataset.ImageOrientationPatient = [float(c) for c in (*directions[:, 0], *directions[:, 1])]
        dataset.ImagePositionPatient = [float(c) for c in directions[:, 2] * spacing[2] * k]
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.PixelData = (hu[:, :, k].T.astype(np.int16) - intercept).astype("<i2").tobytes()
        for name, value in tags.items():
            setattr(dataset, name, value)
        if change is not None:
            change(k, dataset)
        if not dataset.Rows:
            continue
        file = folder / f"{series}-{k:03d}.dcm"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(file, enforce_file_format=True)
        files.append(file)
    return files
