"""Whether a volume is in HU yet, and what CT-RATE's metadata table is taken for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from refusals import refused

from brgsa.volumes import flag_name, quality_warnings, read_volume
from brgsa.volumes.quality_flags import QUALITY_FLAGS
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
    assert first.spacing == (5.0, 5.0, 6.0)
    assert first.flags == ("rescale:csv", "geometry:csv")


def test_a_scan_with_little_air_is_not_rescaled_twice(tmp_path: Path) -> None:
    hu = chest()
    hu[hu < -200] = -100  # fat all around, as in a narrow reconstruction
    hu[18:22, 14:18] = -900
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", hu), TABLE)
    np.testing.assert_array_equal(volume.array, hu)


def test_what_looks_like_no_chest_either_way_is_flagged(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(5000, 9000, (40, 36, 20)).astype(np.int16)
    path = save_nifti(tmp_path / "a.nii.gz", array)
    assert {"rescale:header", "hu:implausible", "geometry:header"} < set(read_volume(path).flags)
    assert "rescale:unsure" in read_volume(path, TABLE).flags


def test_an_inverted_picture_is_flagged(tmp_path: Path) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", (-chest()).astype(np.int16)))
    assert "hu:implausible" in volume.flags


@pytest.mark.parametrize("value", [0, -100, 500])
def test_a_masked_scan_is_flagged(value: int, tmp_path: Path) -> None:
    """All around the lungs, or around the body, is one value."""
    hu = chest()
    for outside in (hu > -700, hu < -900):
        volume = read_volume(save_nifti(tmp_path / "a.nii.gz", np.where(outside, value, hu).astype(np.int16)))
        assert f"hu:filled {value} HU" in volume.flags
    body = read_volume(save_nifti(tmp_path / "a.nii.gz", np.where(hu < -900, -1000, hu).astype(np.int16)))
    assert body.flags == ("rescale:header", "geometry:header"), "air around the body is where air is"


@pytest.mark.parametrize("value", [0, -1000, -32768])
def test_blank_slices_are_flagged_along_the_patient(value: int, tmp_path: Path) -> None:
    hu = chest()
    hu[:, :, 7], hu[:, :, 19] = value, value
    assert read_volume(save_nifti(tmp_path / "a.nii.gz", hu)).flags[-1] == "slices:blank 2 of 20"
    along_x = np.array([[0, -5.0, 0, 0], [0, 0, -5, 0], [6, 0, 0, 0], [0, 0, 0, 1]])
    path = save_nifti(tmp_path / "b.nii.gz", np.ascontiguousarray(hu.transpose(2, 0, 1)), along_x)
    assert read_volume(path).flags[-1] == "slices:blank 2 of 20"


def test_the_header_s_own_rescale_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(chest(), np.diag([-5.0, -5.0, 6.0, 1.0]))
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
    assert volume.spacing == (5.0, 5.0, 6.0)
    assert "spacing:disagrees header 5×5×6 mm, table 5×5×2.5 mm" in volume.flags


@pytest.mark.parametrize(
    ("field", "text", "code", "named"),
    [
        ("XYSpacing", "", "spacing-missing", "XYSpacing and ZSpacing"),
        ("XYSpacing", "[0.7]", "metadata-value", "XYSpacing"),
        ("ZSpacing", "0", "metadata-value", "XYSpacing and ZSpacing"),
        ("ZSpacing", "-1.5", "metadata-value", "XYSpacing and ZSpacing"),
        ("RescaleSlope", "one", "metadata-value", "RescaleSlope"),
        ("ImageOrientationPatient", "[0, 0, 0, 0, 1, 0]", "metadata-value", "ImageOrientationPatient"),
    ],
)
def test_a_broken_row_of_the_table_is_named(field: str, text: str, code: str, named: str, tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", (chest() + 1024).astype(np.int16), np.eye(4))
    with refused(code, field=named):
        read_volume(path, {**TABLE, field: text})


# --- what contradicts itself ------------------------------------------------------------------------------------------


def test_a_rescale_applied_twice_is_seen(tmp_path: Path) -> None:
    for intercept in (-1024, -8192):
        twice = save_nifti(tmp_path / "a.nii.gz", (chest().astype(np.int32) + intercept).astype(np.int16))
        volume = read_volume(twice, {**TABLE, "RescaleIntercept": str(intercept)})
        assert {"rescale:twice", "rescale:unsure", "hu:implausible"} <= set(volume.flags)
        assert QUALITY_FLAGS["rescale:twice"] in quality_warnings(volume.flags)


@pytest.mark.parametrize("change", [{"RescaleIntercept": "-8192"}, {"RescaleSlope": "4"}])
def test_a_table_of_another_rescale_is_seen(change: dict[str, str], tmp_path: Path) -> None:
    stored = save_nifti(tmp_path / "a.nii.gz", (chest() + 1024).astype(np.int16), np.eye(4))
    volume = read_volume(stored, {**TABLE, **change})
    assert {"rescale:unsure", "hu:implausible"} <= set(volume.flags)
    assert "rescale:twice" not in volume.flags
    # Voxels that are HU already need no table, a wrong one included.
    fixed = read_volume(save_nifti(tmp_path / "b.nii.gz", chest()), {**TABLE, **change})
    np.testing.assert_array_equal(fixed.array, chest())
    assert quality_warnings(fixed.flags) == []


@pytest.mark.parametrize("slope", ["0", "-1"])
def test_a_slope_that_cannot_be_is_refused(slope: str, tmp_path: Path) -> None:
    with refused("metadata-value", field="RescaleSlope", value=float(slope)):
        read_volume(save_nifti(tmp_path / "a.nii.gz", chest()), {**TABLE, "RescaleSlope": slope})


def test_half_of_one_release_and_half_of_the_other_is_seen(tmp_path: Path) -> None:
    hu_without_geometry = read_volume(save_nifti(tmp_path / "a.nii.gz", chest(), np.eye(4)), TABLE)
    assert hu_without_geometry.flags == ("rescale:header", "geometry:csv", "release:mixed")
    np.testing.assert_array_equal(hu_without_geometry.array, chest())
    stored_with_geometry = read_volume(save_nifti(tmp_path / "b.nii.gz", (chest() + 1024).astype(np.int16)), TABLE)
    assert stored_with_geometry.flags == ("rescale:csv", "geometry:header", "release:mixed")
    np.testing.assert_array_equal(stored_with_geometry.array, chest())
    # A table whose rescale would change nothing says nothing about the release.
    nothing = {**TABLE, "RescaleIntercept": "0"}
    assert read_volume(tmp_path / "a.nii.gz", nothing).flags == ("rescale:header", "geometry:csv")


def test_only_what_is_doubtful_gives_a_warning() -> None:
    origins = ("rescale:csv", "geometry:csv", "rescale:header", "geometry:header", "units:converted um")
    assert quality_warnings(origins) == []
    doubtful = ("rescale:unsure", "spacing:disagrees", "orientation:assumed", "release:mixed")
    warnings = quality_warnings((*origins, *doubtful))
    assert warnings == [QUALITY_FLAGS[flag] for flag in doubtful]
    assert quality_warnings(["size:implausible 64×56×24 mm"])[0].endswith(" (64×56×24 mm).")
    assert all(sentence.endswith(".") and sentence.count(". ") == 0 for sentence in QUALITY_FLAGS.values())


# --- real rows --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared
def test_every_row_of_the_real_table_is_understood_in_both_releases(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "ct-rate" / "valid_metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3039
    hu = chest((16, 14, 12))  # of no chest's size with these spacings
    trusted = {"trust_geometry": True}
    paths: dict[tuple[str, str], Path] = {}
    for intercept in {row["RescaleIntercept"] for row in rows}:
        stored = (hu.astype(np.int32) - int(intercept)).astype(np.int16)
        paths["first", intercept] = save_nifti(tmp_path / f"first{intercept}.nii", stored, np.eye(4))
    for number, row in enumerate(rows):
        spacing = [*json.loads(row["XYSpacing"]), float(row["ZSpacing"])]
        first = read_volume(paths["first", row["RescaleIntercept"]], row, **trusted)
        assert first.flags[:2] == ("rescale:csv", "geometry:csv")
        np.testing.assert_array_equal(first.array, hu)
        assert first.spacing == pytest.approx(tuple(spacing))
        if number % 50 == 0:
            fixed = save_nifti(tmp_path / "fixed.nii", hu, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))
            volume = read_volume(fixed, row, **trusted)
            assert volume.flags[:2] == ("rescale:header", "geometry:header")
            np.testing.assert_array_equal(volume.array, hu)
            wrong = np.diag([-spacing[0], -spacing[1], 2 * spacing[2], 1.0])
            volume = read_volume(save_nifti(tmp_path / "wrong.nii", hu, wrong), row, **trusted)
            assert "spacing:disagrees" in map(flag_name, volume.flags)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["chest_a.nrrd", "thorax_contrast.nii.gz", "thorax_lowres.nrrd"])
@pytest.mark.parametrize("intercept", [-1024, -8192])
def test_a_real_scan_is_told_apart_in_both_releases(
    name: str, intercept: int, shared_data: Path, tmp_path: Path
) -> None:
    scan = read_volume(shared_data / "ct" / name)
    hu, (x, y, z) = scan.array[::2, ::2, ::2], (2 * s for s in scan.spacing)
    known = np.diag([-x, -y, z, 1.0])
    row = {**TABLE, "XYSpacing": f"[{x}, {y}]", "ZSpacing": str(z), "RescaleIntercept": str(intercept)}
    states = {0: "rescale:header", 1: "rescale:csv", -1: "rescale:twice"}
    for times, flag in states.items():
        array = (hu - times * intercept).astype(np.int16)
        volume = read_volume(save_nifti(tmp_path / "a.nii", array, np.eye(4) if times else known), row)
        assert flag in volume.flags
        assert (quality_warnings(volume.flags) == []) == (times >= 0)
