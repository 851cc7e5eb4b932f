"""Files that hold more voxels than their headers speak of: a size was changed, and every row would be read askew."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from formats import save_metaimage, save_nrrd
from pydicom.dataset import Dataset
from refusals import refused
from transcode import transcode

from brgsa.volumes import read_volume
from scans import SPACING, chest, save_dicom, save_nifti

HU = chest()
STRAIGHT = np.eye(3)


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"Rows": 30}, 6 * 40 * 2),
        ({"Columns": 39}, 36 * 2),
        ({"Rows": 35}, 40 * 2),
        ({"Rows": 20, "Columns": 36}, 720 * 2),
    ],
)
@pytest.mark.parametrize("syntax", ["explicit", "deflated"])
def test_dicom_of_fewer_rows_or_columns_than_stored(
    change: dict[str, int], more: int, syntax: str, tmp_path: Path
) -> None:
    files = save_dicom(tmp_path, HU, change=lambda k, header: header.update(_tags(change)))
    if syntax == "deflated":
        for file in files:
            transcode(file, syntax)
    with refused("size-contradictory", field="Rows and Columns", value=more):
        read_volume(tmp_path)


def _tags(values: dict[str, int]) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def test_padding_behind_dicom_s_pixels_is_none_of_them(tmp_path: Path) -> None:
    def pad(k: int, header: Dataset) -> None:
        header.PixelData = header.PixelData + bytes(2 * k)

    save_dicom(tmp_path, HU, change=pad)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, HU)


@pytest.mark.parametrize("shape", [(40, 36, 19), (39, 36, 20), (40, 35, 20)])
@pytest.mark.parametrize("kind", ["a.nii", "a.nii.gz", "a.img"])
def test_nifti_of_a_smaller_size_than_stored(kind: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    path = tmp_path / kind
    image = (nibabel.Nifti1Pair if kind == "a.img" else nibabel.Nifti1Image)(HU, np.diag([-5.0, -5.0, 6.0, 1.0]))
    nibabel.save(image, path)
    header = path.with_suffix(".hdr") if kind == "a.img" else path
    with nibabel.openers.Opener(header) as file:
        raw = bytearray(file.read())
    raw[42:48] = np.array(shape, "<i2").tobytes()
    with nibabel.openers.Opener(header, "wb") as file:
        file.write(bytes(raw))
    with refused("size-contradictory", value=HU.nbytes - 2 * int(np.prod(shape))):
        read_volume(path)


def test_padding_behind_nifti_s_voxels_is_none_of_them(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", HU)
    path.write_bytes(path.read_bytes() + bytes(500))
    np.testing.assert_array_equal(read_volume(path).array, HU)


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("kind", ["nrrd", "metaimage"])
def test_text_headers_of_a_smaller_size_than_stored(kind: str, detached: bool, tmp_path: Path) -> None:
    for sizes, more in (("40 36 20", 0), ("39 36 20", 36 * 20 * 2), ("40 36 19", 40 * 36 * 2)):
        if kind == "nrrd":
            path = save_nrrd(tmp_path / "a.nrrd", HU, SPACING, STRAIGHT, {"encoding": "raw", "sizes": sizes})
            if detached:
                head, _, voxels = path.read_bytes().partition(b"\n\n")
                (tmp_path / "voxels").write_bytes(voxels)
                path = tmp_path / "a.nhdr"
                path.write_bytes(head + b"\ndata file: voxels\n")
        else:
            name = "a.mhd" if detached else "a.mha"
            path = save_metaimage(tmp_path / name, HU, SPACING, STRAIGHT, {"DimSize": sizes})
        if more:
            with refused("size-contradictory", field="shape", value=more):
                read_volume(path)
        else:
            np.testing.assert_array_equal(read_volume(path).array, HU)
