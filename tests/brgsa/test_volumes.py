"""Reading image files into canonical orientation, which files are refused, and the stored form."""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa.volumes import Geometry, decode, encode, read_volume, standardize
from scans import chest, save_nifti

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_order_and_flip_of_axes_comes_out_the_same(order: tuple[int, int, int], tmp_path: Path) -> None:
    truth = chest((12, 10, 9))
    spacing = np.array([15.0, 20.0, 30.0])
    for flips in itertools.product((1, -1), repeat=3):
        directions = np.zeros((3, 3))  # column a: where the file's axis a points
        directions[list(order), range(3)] = flips
        array = truth.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
        affine = np.eye(4)
        affine[:3, :3] = RAS_FROM_LPS @ directions * spacing[list(order)]
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        image.SetSpacing(spacing[list(order)].tolist())
        image.SetDirection(directions.ravel().tolist())
        sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
        for file in (save_nifti(tmp_path / "a.nii.gz", array, affine), tmp_path / "a.nrrd"):
            volume = read_volume(file)
            np.testing.assert_array_equal(volume.array, truth)
            np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-6)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd"])
def test_itk_and_we_agree_on_each_format(name: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(chest().T)
    image.SetSpacing((4.0, 4.5, 6.0))
    sitk.WriteImage(image, str(tmp_path / name))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.spacing == pytest.approx((4.0, 4.5, 6.0))
    assert volume.flags == ("rescale:header", "geometry:header")


def test_a_tilted_scan_takes_the_closest_axes_and_says_so(tmp_path: Path) -> None:
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = RAS_FROM_LPS @ turn * [5.0, 5.0, 6.0]
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", chest(), affine))
    np.testing.assert_array_equal(volume.array, chest())
    assert "orientation:tilted 20.0°" in volume.flags


def test_a_trailing_axis_of_one_is_no_fourth_dimension(tmp_path: Path) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", chest()[..., None]))
    np.testing.assert_array_equal(volume.array, chest())


# --- refusals ---------------------------------------------------------------------------------------------------------


def cut(path: Path, keep: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])


def header_field(path: Path, offset: int, value: float) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<f", raw, offset, value)
    path.write_bytes(gzip.compress(bytes(raw)))


def replace(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))


def shorten_inside(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))


def put(value: Any, at: tuple[int, ...] | None = None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        array = chest().astype(np.float32)
        array[at or ...] = value
        save_nifti(path, array)

    return change


# A file, what spoils it, and the code of its refusal with the value that is named, if any.
BAD: dict[str, tuple[Any, ...]] = {
    "missing": ("a.nii.gz", lambda p: p.unlink(), "file-missing"),
    "folder": ("a.nii.gz", lambda p: (p.unlink(), p.mkdir()), "no-dicom"),
    "empty": ("a.nii.gz", lambda p: p.write_bytes(b""), "file-empty"),
    "empty nrrd": ("a.nrrd", lambda p: p.write_bytes(b""), "file-empty"),
    "cut short": ("a.nii.gz", lambda p: cut(p, 0.5), "file-damaged"),
    "cut in its last bytes": ("a.nii.gz", lambda p: cut(p, 0.999), "file-damaged"),
    "whole gzip, cut image": ("a.nii.gz", shorten_inside, "file-damaged"),
    "cut nii": ("a.nii", lambda p: cut(p, 0.9), "file-damaged"),
    "cut nrrd": ("a.nrrd", lambda p: cut(p, 0.5), "file-damaged"),
    "cut mha": ("a.mha", lambda p: cut(p, 0.5), "file-damaged"),
    "text": ("a.nii.gz", lambda p: p.write_bytes(gzip.compress(b"hello")), "not-an-image"),
    "plain text": ("a.nii.gz", lambda p: p.write_bytes(b"<html>not found</html>"), "not-an-image"),
    "text nrrd": ("a.nrrd", lambda p: p.write_bytes(b"hello"), "not-an-image"),
    "2-D": ("a.nii.gz", lambda p: save_nifti(p, chest()[:, :, 0]), "not-3d", (40, 36)),
    "4-D": ("a.nii.gz", lambda p: save_nifti(p, np.stack([chest()] * 2, -1)), "not-3d", (40, 36, 20, 2)),
    "2-D nrrd": ("a.nrrd", lambda p: sitk.WriteImage(sitk.GetImageFromArray(chest()[0]), str(p)), "not-3d", (20, 36)),
    "colour": (
        "a.mha",
        lambda p: sitk.WriteImage(sitk.GetImageFromArray(np.zeros((9, 9, 9, 3), np.uint8), isVector=True), str(p)),
        "voxels-not-numbers",
    ),
    "few slices": ("a.nii.gz", lambda p: save_nifti(p, chest()[:, :, :5]), "volume-too-small", (40, 36, 5)),
    "all NaN": ("a.nii.gz", put(np.nan), "voxels-not-finite", 1.0),
    "one NaN": ("a.nii.gz", put(np.nan, (3, 4, 5)), "voxels-not-finite"),
    "infinite": ("a.nii.gz", put(np.inf, (3, 4, 5)), "voxels-not-finite"),
    "constant": ("a.nii.gz", put(-1000), "voxels-constant", -1000),
    "zero spacing": ("a.nii.gz", lambda p: header_field(p, 80, 0.0), "spacing-impossible", "0×5×6"),
    "negative spacing": ("a.nii.gz", lambda p: header_field(p, 84, -2.0), "spacing-impossible", "5×-2×6"),
    "NaN spacing": ("a.nii.gz", lambda p: header_field(p, 88, np.nan), "spacing-impossible", "5×5×nan"),
    "zero spacing nrrd": ("a.nrrd", lambda p: replace(p, b"(0,0,6)", b"(0,0,0)"), "spacing-impossible", "5×5×0"),
    "zero spacing mha": (
        "a.mha",
        lambda p: replace(p, b"Spacing = 5 5 6", b"Spacing = 5 0 6"),
        "spacing-impossible",
        "5×0×6",
    ),
    "negative spacing mha": (
        "a.mha",
        lambda p: replace(p, b"Spacing = 5 5 6", b"Spacing = 5 -2 6"),
        "spacing-impossible",
        "5×-2×6",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    name, spoil, code, *value = BAD[case]
    image = sitk.GetImageFromArray(chest().T)
    image.SetSpacing((5.0, 5.0, 6.0))
    sitk.WriteImage(image, str(tmp_path / name))
    read_volume(tmp_path / name)
    spoil(tmp_path / name)
    with refused(code, path=str(tmp_path / name), **({"value": value[0]} if value else {})) as refusal:
        read_volume(tmp_path / name)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message.removeprefix(str(tmp_path))) < 200


# --- the stored form --------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 40)] * 3), seed=st.integers(0, 99))
def test_what_is_stored_comes_back(shape: tuple[int, int, int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(-1000, 1001, shape).astype(np.int16)
    stored = encode(array.transpose(2, 0, 1))
    assert stored == encode(array.transpose(2, 0, 1).copy())
    back = decode(stored)
    np.testing.assert_array_equal(back, array.transpose(2, 0, 1))
    assert back.dtype == np.int16
    assert back.flags.writeable
    np.testing.assert_array_equal(blosc2.ndarray_from_cframe(stored)[:], back)
    for memory in (np.zeros_like(back), np.zeros((1, 1, 1), np.int16), np.zeros(back.shape, np.int32)):
        np.testing.assert_array_equal(decode(stored, memory), back)


# --- real scans -------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ["chest_a.nrrd", "thorax_contrast.nii.gz", "thorax_lowres.nrrd"])
def test_a_real_chest_stands_upright(name: str, shared_data: Path) -> None:
    volume = read_volume(shared_data / "ct" / name)
    assert volume.flags == ("rescale:header", "geometry:header")
    upright = sitk.DICOMOrient(sitk.ReadImage(str(shared_data / "ct" / name)), "LPS")
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(upright).T)
    np.testing.assert_allclose(volume.spacing, upright.GetSpacing(), rtol=1e-5)

    hu = standardize(volume, Geometry(spacing=(3.0, 3.0, 6.0), shape=(128, 128, 64)))
    inside = np.argwhere(hu > -500)
    low, high = inside.min(axis=0), inside.max(axis=0)
    body = hu[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    third = body.shape[0] // 3
    if "contrast" not in name:  # there the heart is as bright as bone
        bone = [np.mean(part > 250) for part in np.array_split(body[third:-third], 3, axis=1)]
        assert bone[2] > 2 * bone[0], "the spine lies at the back"
    lung = [np.mean((part < -700) & (part > -950)) for part in np.array_split(body, 3, axis=0)]
    assert min(lung[0], lung[2]) > 0.05, "a lung on each side"
    assert hu.min() == -1000
    assert 800 < hu.max() <= 1000
