"""Faults that no header tells: noise, a display window, slices written twice, two scans end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from formats import FORMATS, save_as

from brgsa.phantom import render, sample_cases
from brgsa.volumes import flag_name, quality_warnings, read_volume
from brgsa.volumes.checks import hounsfield
from brgsa.volumes.checks.picture import check_picture
from scans import SPACING, chest, save_nifti

Hu = npt.NDArray[np.int16]
REAL = (
    "ct/chest_a.nrrd",
    "ct/thorax_contrast.nii.gz",
    "ct/thorax_lowres.nrrd",
    "dicom/A0002/series2_B70f",
    "dicom/A0002/series3_B40f",
)


def names(volume: npt.NDArray[np.generic], spacing: tuple[float, ...] = SPACING) -> list[str]:
    return [flag_name(str(doubt)) for doubt in check_picture(volume, spacing)]


def shuffled(hu: Hu, seed: int = 0) -> Hu:
    return np.random.default_rng(seed).permutation(hu.ravel()).reshape(hu.shape)


def smooth_noise(hu: Hu, deviation: float) -> Hu:
    """Smooth noise that has the values of a scan, each as often; `deviation` in voxels."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(hu.shape), deviation)
    made = np.empty(hu.size, np.int16)
    made[noise.ravel().argsort()] = np.sort(hu.ravel())
    return made.reshape(hu.shape)


@pytest.fixture(scope="module")
def phantoms() -> list[tuple[npt.NDArray[np.float32], tuple[float, float, float]]]:
    """Volumes of soft and of sharp kernels, with their spacing."""
    cases = [case for case in sample_cases(12, 3) if len(case.reconstructions) == 2][:2]
    return [(render(case, i), grid.spacing) for case in cases for i, grid in enumerate(case.reconstructions)]


# --- each fault, in every format --------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Hu, str]] = {
    "noise": (shuffled(chest()), "voxels:noise correlation 0.0"),
    "a window": (chest().clip(-1000, 40), "hu:clipped above 40 HU"),
    "each slice twice": (np.repeat(chest((40, 36, 10)), 2, axis=2), "slices:repeated 10 of 20"),
    "a scan behind itself": (np.concatenate([chest((40, 36, 10))] * 2, axis=2), "slices:repeated 10 of 20"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_fault_is_flagged_in_every_format(fault: str, kind: str, tmp_path: Path) -> None:
    hu, flag = FAULTS[fault]
    volume = read_volume(save_as(kind, tmp_path, hu, SPACING))
    assert [found for found in volume.flags if found.startswith(flag)]
    assert quality_warnings(volume.flags)


def test_slices_are_those_of_the_patient_whatever_the_file_s_axes(tmp_path: Path) -> None:
    """The file's first axis goes up."""
    hu = np.repeat(chest((40, 36, 10)), 2, axis=2).transpose(2, 0, 1)
    affine = np.array([[0, -5.0, 0, 0], [0, 0, -5.0, 0], [6.0, 0, 0, 0], [0, 0, 0, 1]])
    assert read_volume(save_nifti(tmp_path / "a.nii", hu, affine)).flags[-1] == "slices:repeated 10 of 20"


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-1000, 200, "above 200 HU"),
        (-1000, 400, "above 400 HU"),
        (-800, 3071, "below -800 HU"),
        (-160, 240, "below -160 HU, above 240 HU"),
    ],
)
@pytest.mark.parametrize("integers", [True, False])
def test_a_window_is_told_by_its_ends(low: int, high: int, told: str, integers: bool) -> None:
    hu = chest() + np.random.default_rng(1).normal(0, 60, (40, 36, 20))
    bone = (np.arange(40)[:, None, None] // 4 == 4) & (hu > -300)  # of every density up to 900 HU
    hu = np.where(bone, np.random.default_rng(2).uniform(0, 900, hu.shape), hu).clip(low, high)
    values = hounsfield.sample(hu.astype(np.int16 if integers else np.float32))
    assert hounsfield.clipped(values) == told


@pytest.mark.parametrize("ends", [(-1000, 1000), (-1024, 3071), (-3024, 5000)])
def test_the_ends_of_formats_and_archives_are_no_window(ends: tuple[int, int]) -> None:
    hu = chest().astype(np.float32)
    hu[18:22, 14:18] = 6000  # metal
    assert hounsfield.clipped(hounsfield.sample(hu.clip(*ends))) is None


def test_a_drawing_s_plain_values_are_no_window() -> None:
    hu = np.full((20, 20, 20), -1000, np.int16)
    hu[4:16, 4:16], hu[8:10, 8:10] = 40, 700
    assert hounsfield.clipped(hounsfield.sample(hu)) is None


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.5, 1.0])
def test_smooth_noise_is_noise(deviation: float) -> None:
    assert names(smooth_noise(chest(), deviation), (5.0, 5.0, 6.0)) == ["voxels:noise"]


def test_a_scan_with_as_much_noise_as_contrast_is_a_scan() -> None:
    assert names(chest() + np.random.default_rng(0).normal(0, 300, (40, 36, 20))) == []


# --- slices -----------------------------------------------------------------------------------------------------------


def test_one_slice_that_stands_for_a_lost_one_is_repeated() -> None:
    hu = chest()
    hu[:, :, 7] = hu[:, :, 6]
    assert [str(doubt) for doubt in check_picture(hu, SPACING)] == ["slices:repeated 1 of 20"]


def test_slices_that_hold_one_value_are_blank_and_not_repeated() -> None:
    hu = chest()
    hu[:, :, [0, 9, 10, 19]] = -1000
    assert [str(doubt) for doubt in check_picture(hu, SPACING)] == ["slices:blank 4 of 20"]
    assert names(np.full((20, 20, 20), 5, np.int16)) == ["slices:blank"]


@pytest.mark.parametrize("times", [2, 3])
def test_a_volume_that_was_enlarged_by_repeating_voxels_is_taken(times: int) -> None:
    assert names(np.kron(chest(), np.ones((times,) * 3, np.int16))) == []


def test_two_scans_end_to_end_jump(phantoms: list[tuple[Hu, tuple[float, float, float]]]) -> None:
    (first, spacing), (second, _) = phantoms[0], phantoms[2]
    x, y = (min(a, b) for a, b in zip(first.shape[:2], second.shape[:2], strict=True))
    joined = np.concatenate([first[:x, :y], second[:x, :y]], axis=2)
    assert [str(doubt).rpartition(",")[2] for doubt in check_picture(joined, spacing)] == [
        f" after slice {first.shape[2]} of {joined.shape[2]}"
    ]
    # Blank slices before it are counted, as whoever looks for the place counts them.
    blank = np.full((x, y, 3), -1000, joined.dtype)
    doubts = check_picture(np.concatenate([blank, joined], axis=2), spacing)
    assert [flag_name(str(doubt)) for doubt in doubts] == ["slices:blank", "slices:jump"]
    assert doubts[1].numbers.endswith(f"after slice {first.shape[2] + 3} of {joined.shape[2] + 3}")


def test_a_step_in_a_drawing_is_no_jump() -> None:
    """Slices of the test's chest differ by noise alone, but for one step, where its lungs begin."""
    hu = chest((40, 36, 40))
    change = np.abs(np.diff(hu.astype(float), axis=2)).mean(axis=(0, 1))
    assert change.max() > 5 * np.median(change)
    assert names(hu) == []


# --- no false flag ----------------------------------------------------------------------------------------------------


def test_phantoms_of_every_kernel_are_taken(phantoms: list[tuple[Hu, tuple[float, float, float]]]) -> None:
    for volume, spacing in phantoms:
        assert names(volume, spacing) == []
        assert hounsfield.clipped(hounsfield.sample(volume)) is None


@pytest.mark.shared
@pytest.mark.parametrize("path", REAL)
def test_real_scans_are_taken_and_their_faults_told(path: str, shared_data: Path) -> None:
    scan = read_volume(shared_data / path)
    assert quality_warnings(scan.flags) == []
    hu, spacing = scan.array, scan.spacing
    part = hu[:: -(-hu.shape[0] // 128), :: -(-hu.shape[1] // 128)]
    wide = tuple(s * n / m for s, n, m in zip(spacing, hu.shape, part.shape, strict=True))
    assert names(part, wide) == []
    assert names(part + np.random.default_rng(0).normal(0, 100, part.shape), wide) == [], "a sharp kernel's noise"
    assert names(shuffled(part), wide) == ["voxels:noise"]
    assert names(np.repeat(part, 2, axis=2), wide) == ["slices:repeated"]
    assert names(np.concatenate([part, np.roll(part, 1, axis=0)], axis=2), wide) == ["slices:jump"]
    for low, high in ((-1000, 200), (-160, 240), (-1350, 150), (-1000, 600)):
        assert hounsfield.clipped(hounsfield.sample(hu.clip(low, high)))
