"""Reading CT files into HU and canonical orientation, the common grid, and the stored form."""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from brgsa.errors import UserError
from brgsa.volumes import Geometry, Volume, VolumeError, decode, encode, read_volume, standardize

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])
TABLE = {
    "RescaleSlope": "1",
    "RescaleIntercept": "-1024",
    "XYSpacing": "[2.0, 2.0]",
    "ZSpacing": "4.0",
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
    nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2.0, 4.0, 1.0]) if affine is None else affine), path)
    return path


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_order_and_flip_of_axes_comes_out_the_same(order: tuple[int, int, int], tmp_path: Path) -> None:
    truth = chest((12, 10, 9))
    spacing = np.array([1.5, 2.0, 3.0])
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
    image.SetSpacing((2.0, 2.5, 4.0))
    sitk.WriteImage(image, str(tmp_path / name))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.spacing == pytest.approx((2.0, 2.5, 4.0))
    assert volume.flags == ("rescale:header", "geometry:header")


def test_a_tilted_scan_takes_the_closest_axes_and_says_so(tmp_path: Path) -> None:
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = RAS_FROM_LPS @ turn * [2.0, 2.0, 4.0]
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", chest(), affine))
    np.testing.assert_array_equal(volume.array, chest())
    assert "orientation:tilted" in volume.flags


def test_a_trailing_axis_of_one_is_no_fourth_dimension(tmp_path: Path) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", chest()[..., None]))
    np.testing.assert_array_equal(volume.array, chest())


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


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": ("a.nii.gz", lambda p: p.unlink(), "no such file"),
    "folder": ("a.nii.gz", lambda p: (p.unlink(), p.mkdir()), "folder"),
    "empty": ("a.nii.gz", lambda p: p.write_bytes(b""), r"empty \(0 bytes\)"),
    "empty nrrd": ("a.nrrd", lambda p: p.write_bytes(b""), r"empty \(0 bytes\)"),
    "cut short": ("a.nii.gz", lambda p: cut(p, 0.5), "cut short"),
    "cut in its last bytes": ("a.nii.gz", lambda p: cut(p, 0.999), "cut short"),
    "whole gzip, cut image": ("a.nii.gz", shorten_inside, "cut short"),
    "cut nii": ("a.nii", lambda p: cut(p, 0.9), "cut short"),
    "cut nrrd": ("a.nrrd", lambda p: cut(p, 0.5), "cut short"),
    "cut mha": ("a.mha", lambda p: cut(p, 0.5), "cut short"),
    "text": ("a.nii.gz", lambda p: p.write_bytes(gzip.compress(b"hello")), "not an image"),
    "plain text": ("a.nii.gz", lambda p: p.write_bytes(b"<html>not found</html>"), "not an image"),
    "text nrrd": ("a.nrrd", lambda p: p.write_bytes(b"hello"), "not an image"),
    "2-D": ("a.nii.gz", lambda p: save_nifti(p, chest()[:, :, 0]), "2 dimensions"),
    "4-D": ("a.nii.gz", lambda p: save_nifti(p, np.stack([chest()] * 2, -1)), r"4 dimensions \(40×36×20×2\)"),
    "2-D nrrd": ("a.nrrd", lambda p: sitk.WriteImage(sitk.GetImageFromArray(chest()[0]), str(p)), "2 dimensions"),
    "colour": (
        "a.mha",
        lambda p: sitk.WriteImage(sitk.GetImageFromArray(np.zeros((9, 9, 9, 3), np.uint8), isVector=True), str(p)),
        "colour",
    ),
    "few slices": ("a.nii.gz", lambda p: save_nifti(p, chest()[:, :, :5]), "40×36×5"),
    "all NaN": ("a.nii.gz", put(np.nan), "100.00% of its voxels are NaN"),
    "one NaN": ("a.nii.gz", put(np.nan, (3, 4, 5)), "NaN"),
    "infinite": ("a.nii.gz", put(np.inf, (3, 4, 5)), "infinite"),
    "constant": ("a.nii.gz", put(-1000), "all of its voxels are -1000"),
    "zero spacing": ("a.nii.gz", lambda p: header_field(p, 80, 0.0), "spacing of 0×2×4"),
    "negative spacing": ("a.nii.gz", lambda p: header_field(p, 84, -2.0), "spacing of 2×-2×4"),
    "NaN spacing": ("a.nii.gz", lambda p: header_field(p, 88, np.nan), "spacing of 2×2×nan"),
    "zero spacing nrrd": ("a.nrrd", lambda p: replace(p, b"(0,0,4)", b"(0,0,0)"), "spacing of 2×2×0"),
    "zero spacing mha": ("a.mha", lambda p: replace(p, b"Spacing = 2 2 4", b"Spacing = 2 0 4"), "spacing of 2×0×4"),
    "negative spacing mha": (
        "a.mha",
        lambda p: replace(p, b"Spacing = 2 2 4", b"Spacing = 2 -2 4"),
        "spacing of 2 -2 4",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    name, spoil, words = BAD[case]
    image = sitk.GetImageFromArray(chest().T)
    image.SetSpacing((2.0, 2.0, 4.0))
    sitk.WriteImage(image, str(tmp_path / name))
    read_volume(tmp_path / name)
    spoil(tmp_path / name)
    with pytest.raises(VolumeError, match=words) as refusal:
        read_volume(tmp_path / name)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message.removeprefix(str(tmp_path))) < 200


# --- the common grid --------------------------------------------------------------------------------------------------


def itk_linear(volume: Volume, geometry: Geometry) -> npt.NDArray[np.float64]:
    """SimpleITK's linear resampling onto the grid centred on the scan."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(volume.spacing)
    middle = (np.array(volume.array.shape) - 1) / 2 * volume.spacing
    origin = middle - (np.array(geometry.shape) - 1) / 2 * geometry.spacing
    identity = sitk.Transform(3, sitk.sitkIdentity)
    grid = (geometry.shape, identity, sitk.sitkLinear, origin.tolist(), geometry.spacing, np.eye(3).ravel().tolist())
    return sitk.GetArrayFromImage(sitk.Resample(image, *grid, -1000.0)).T.clip(*geometry.clip)


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((1.5, 1.5, 3.0), (64, 64, 32)), ((2.7, 3.1, 7.0), (20, 18, 12)), ((0.9, 4.0, 1.3), (31, 40, 17))],
)
def test_linear_resampling_is_itk_s(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> None:
    volume = Volume(chest().astype(np.float32), (2.0, 1.7, 4.0))
    geometry = Geometry(spacing=spacing, shape=shape)
    ours = standardize(volume, geometry)
    assert ours.dtype == np.int16
    assert ours.flags.c_contiguous
    assert np.abs(ours - itk_linear(volume, geometry)).max() <= 1


def test_the_same_grid_changes_nothing_and_padding_is_air() -> None:
    volume = Volume(chest((10, 12, 8)).astype(np.float32), (1.5, 1.5, 3.0))
    inside = chest((10, 12, 8)).clip(-1000, 1000)
    np.testing.assert_array_equal(standardize(volume, Geometry(shape=(10, 12, 8))), inside)
    padded = standardize(volume, Geometry(shape=(14, 12, 12)))
    np.testing.assert_array_equal(padded[2:12, :, 2:10], inside)
    assert (padded[:2] == -1000).all()
    assert (padded[..., -2:] == -1000).all()
    np.testing.assert_array_equal(standardize(volume, Geometry(shape=(4, 6, 8))), inside[3:7, 3:9])
    narrow = standardize(volume, Geometry(shape=(14, 12, 8), clip=(-200.0, 300.0)))
    assert narrow.min() == -200
    assert narrow[0, 0, 0] == -200


def test_antialias_averages_where_plain_interpolation_drops() -> None:
    fine = np.zeros((48, 48, 48), np.float32)
    fine[::4] = 800.0  # thin sheets, a quarter of the volume
    volume = Volume(fine, (1.0, 1.0, 1.0))
    coarse = {"spacing": (4.0, 4.0, 4.0), "shape": (12, 12, 12)}
    inside = (slice(2, -2),) * 3
    plain = standardize(volume, Geometry(**coarse))[inside]
    smooth = standardize(volume, Geometry(**coarse, antialias=True))[inside]
    assert np.abs(smooth - 200.0).max() <= 1
    assert np.abs(plain - 200.0).min() > 100
    upwards = Geometry(spacing=(0.7, 0.7, 0.7), shape=(24, 24, 24))
    fine_grid = Geometry(spacing=(0.7, 0.7, 0.7), shape=(24, 24, 24), antialias=True)
    np.testing.assert_array_equal(standardize(volume, upwards), standardize(volume, fine_grid))


sizes, millimetres = st.integers(8, 24), st.floats(0.3, 9.0)


@settings(max_examples=60, deadline=None)
@given(
    have=st.tuples(sizes, sizes, sizes),
    here=st.tuples(millimetres, millimetres, millimetres),
    want=st.tuples(st.integers(1, 20), sizes, sizes),
    there=st.tuples(millimetres, millimetres, millimetres),
    antialias=st.booleans(),
)
def test_any_scan_fits_any_grid(have: Any, here: Any, want: Any, there: Any, antialias: bool) -> None:
    scan = np.full(have, 55.0, np.float32)
    out = standardize(Volume(scan, here), Geometry(there, want, antialias=antialias))
    assert out.shape == want
    assert set(np.unique(out)) <= {-1000, 55}
    assert out[tuple((n - 1) // 2 for n in want)] == 55


def test_geometry_survives_json_and_names_its_mistakes() -> None:
    geometry = Geometry((1.0, 2.0, 3.0), (4, 5, 6), (-500.0, 500.0), antialias=True)
    assert Geometry.from_dict(geometry.to_dict()) == geometry
    with pytest.raises(UserError, match=r"geometry\.spaces is unknown"):
        Geometry.from_dict({"spaces": [1, 1, 1]})
    for change, word in (
        ({"spacing": [0, 1, 1]}, "spacing"),
        ({"shape": [4, 4]}, "shape"),
        ({"clip": [1000, -1000]}, "clip"),
        ({"clip": [-40000, 1000]}, "clip"),
    ):
        with pytest.raises(UserError, match=f"geometry.{word}"):
            Geometry.from_dict(change)


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
