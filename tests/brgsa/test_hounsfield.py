"""Whether a volume is in HU yet, and what CT-RATE's metadata table is taken for."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brgsa.volumes import VolumeError, read_volume
from scans import TABLE, chest, save_nifti


# --- Hounsfield units -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [-1024, -8192])
@pytest.mark.parametrize("padded", [False, True])
def test_both_releases_of_ct_rate_give_the_same_hu(intercept: int, padded: bool, tmp_path: Path) -> None:
    hu = chest()
    if padded:  # scanners write one low value outside their round field of view
        hu[:6], hu[-6:] = -2000, -2000
    table = {**TABLE, "RescaleIntercept": str(intercept)}
    first = read_volume(save_nifti(tmp_path / "first.nii.gz", (hu - intercept).astype(np.int16), np.eye(4)), table)
    fixed = read_volume(save_nifti(tmp_path / "fixed.nii.gz", hu), table)
    np.testing.assert_array_equal(fixed.array, hu)
    assert fixed.flags == ("rescale:header", "geometry:header")
    # A NIfTI of unit matrix has axes to right and anterior; the table says left and posterior, and it is right.
    np.testing.assert_array_equal(first.array, hu)
    assert first.spacing == (2.0, 2.0, 4.0)
    assert first.flags == ("rescale:csv", "geometry:csv")


def test_a_scan_with_little_air_is_not_rescaled_twice(tmp_path: Path) -> None:
    hu = chest()
    hu[hu < -200] = -100  # fat all around, as in a narrow reconstruction
    hu[18:22, 14:18] = -900
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", hu), TABLE)
    np.testing.assert_array_equal(volume.array, hu)


def test_what_looks_like_no_chest_either_way_is_flagged(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(5000, 9000, (20, 20, 20)).astype(np.int16)
    path = save_nifti(tmp_path / "a.nii.gz", array)
    assert set(read_volume(path).flags) == {"rescale:header", "hu:implausible", "geometry:header"}
    assert "rescale:unsure" in read_volume(path, TABLE).flags


def test_the_header_s_own_rescale_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(chest(), np.diag([-2.0, -2.0, 4.0, 1.0]))
    image.header.set_slope_inter(0.5, -100.0)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").array, chest() * 0.5 - 100)


# --- geometry from the table ------------------------------------------------------------------------------------------


def test_the_table_s_orientation_turns_the_volume(tmp_path: Path) -> None:
    # Feet first, prone: rows to the patient's right, columns to anterior.
    table = {**TABLE, "ImageOrientationPatient": "[-1.0, 0.0, 0.0, 0.0, -1.0, -0.0]"}
    stored = (chest() + 1024).astype(np.int16)
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", stored, np.eye(4)), table)
    np.testing.assert_array_equal(volume.array, chest()[::-1, ::-1])


def test_header_and_table_that_disagree_are_flagged(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", chest())
    volume = read_volume(path, {**TABLE, "ZSpacing": "2.5"})
    assert volume.spacing == (2.0, 2.0, 4.0)
    assert "spacing:disagrees" in volume.flags


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"XYSpacing": ""}, "XYSpacing"),
        ({"XYSpacing": "[0.7]"}, "XYSpacing"),
        ({"ZSpacing": "0"}, "ZSpacing"),
        ({"ZSpacing": "-1.5"}, "ZSpacing"),
        ({"RescaleSlope": "one"}, "RescaleSlope"),
        ({"ImageOrientationPatient": "[0, 0, 0, 0, 1, 0]"}, "ImageOrientationPatient"),
    ],
)
def test_a_broken_row_of_the_table_is_named(change: dict[str, str], words: str, tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", (chest() + 1024).astype(np.int16), np.eye(4))
    with pytest.raises(VolumeError, match=words):
        read_volume(path, {**TABLE, **change})


