"""Geometry is doubted in every format alike: shear, sizes that no chest has, units, contradictions, what is not stated."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from formats import FORMATS, RAS_FROM_LPS, save_as, save_metaimage, save_nrrd
from refusals import refused

from brgsa.volumes import flag_name, quality_warnings, read_volume
from brgsa.volumes.checks.geometry import check_geometry
from scans import SPACING, TABLE, chest, save_nifti

RECORDED = ("rescale:header", "geometry:header")


def askew(tilt: float, axis: int = 1) -> npt.NDArray[np.float64]:
    """Straight axes, but for the third, which leans by `tilt` degrees to another."""
    directions = np.eye(3)
    directions[axis, 2], directions[2, 2] = np.sin(np.radians(tilt)), np.cos(np.radians(tilt))
    return directions


# --- what headers leave to their format -------------------------------------------------------------------------------


def test_a_nifti_s_qfac_of_zero_is_one(tmp_path: Path) -> None:
    """As nifti1.h says."""
    image = nibabel.Nifti1Image(chest(), None)
    image.set_qform(np.diag([-5.0, -5.0, 6.0, 1.0]), 1)
    nibabel.save(image, path := tmp_path / "a.nii")
    raw = bytearray(path.read_bytes())
    assert raw[76:80] == np.float32(1).tobytes()
    raw[76:80] = bytes(4)
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_volume(path).array, chest())


@pytest.mark.parametrize(("kind", "suffix"), [("nrrd", ".nhdr"), ("metaimage", ".mhd")])
def test_the_missing_file_of_a_header_is_named(kind: str, suffix: str, tmp_path: Path) -> None:
    named = {"nrrd": {"data file": "gone.raw", "encoding": "raw"}, "metaimage": {}}[kind]
    write = {"nrrd": save_nrrd, "metaimage": save_metaimage}[kind]
    path = write(tmp_path / f"gone{suffix}", chest(), SPACING, np.eye(3), named)
    (tmp_path / "gone.raw").unlink(missing_ok=True)
    with refused("file-missing", path=str(path), value="gone.raw"):
        read_volume(path)


@pytest.mark.parametrize("where", ["data/a.zraw", "absolute", "LIST"])
def test_a_compressed_metaimage_finds_its_voxels_where_its_header_says(where: str, tmp_path: Path) -> None:
    path = save_metaimage(tmp_path / "a.mhd", chest(), SPACING, np.eye(3), {"CompressedData": "True"})
    raw, elsewhere = (tmp_path / "a.raw").read_bytes(), tmp_path / "data" / "a.zraw"
    (tmp_path / "a.raw").unlink()
    elsewhere.parent.mkdir()
    named = str(elsewhere) if where == "absolute" else where
    if where == "LIST":  # ITK reads no compressed list, so that this one is left to it uncompressed
        slices = np.split(np.frombuffer(raw, np.uint8), chest().shape[2])
        for k, voxels in enumerate(slices):
            (elsewhere.parent / f"{k}.raw").write_bytes(voxels.tobytes())
        named += "".join(f"\ndata/{k}.raw" for k in range(len(slices)))
    else:
        elsewhere.write_bytes(zlib.compress(raw))
    text = path.read_text().replace("= a.raw", f"= {named}")
    path.write_text(text.replace("CompressedData = True", "CompressedData = False") if where == "LIST" else text)
    np.testing.assert_array_equal(read_volume(path).array, chest())


@pytest.mark.parametrize("kind", ["nrrd", "metaimage"])
def test_a_packed_file_is_unpacked_no_further_than_its_header_says(kind: str, tmp_path: Path) -> None:
    """64 MB of zeros behind a header of 128 bytes: a reader that unpacked them all would take that much."""
    zeros = bytes(64_000_000)
    if kind == "nrrd":
        path = tmp_path / "a.nrrd"
        head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: gzip\nendian: little\nspacings: 1 1 1\n\n"
        packed = gzip.compress(zeros)
    else:
        path = tmp_path / "a.mha"
        head = (
            "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nCompressedData = True\n"
            "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        )
        packed = zlib.compress(zeros)
    path.write_bytes(head.encode() + packed)
    tracemalloc.start()
    try:
        with refused("file-damaged"):
            read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < len(zeros) / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "named"), [("nrrd", "a.mha"), ("metaimage", "a.nrrd"), ("metaimage", "a.tif")])
def test_a_name_of_another_format_is_refused(kind: str, named: str, tmp_path: Path) -> None:
    path = save_as(kind, tmp_path, chest(), SPACING).rename(tmp_path / named)
    with refused("name-misleads", value=path.suffix) as refusal:
        read_volume(path)
    assert str(tmp_path) not in refusal.value.reason


@pytest.mark.parametrize("suffix", [".vtk", ".gipl", ".tif"])
def test_formats_of_itk_that_nobody_checks_here_are_refused(suffix: str, tmp_path: Path) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(chest().T.copy()), str(tmp_path / f"a{suffix}"))
    with refused("not-an-image"):
        read_volume(tmp_path / f"a{suffix}", trust_geometry=True)


@pytest.mark.parametrize("spacing", ["nan nan nan", "5 5 NaN", "inf 5 6", "5 0.0 6", "-5 5 6"])
def test_a_nrrd_s_spacing_that_itk_takes_for_another_is_refused(spacing: str, tmp_path: Path) -> None:
    fields = {"space": "", "space directions": "", "space origin": "", "spacings": spacing}
    path = save_nrrd(tmp_path / "a.nrrd", chest(), SPACING, np.eye(3), fields)
    with refused("spacing-impossible", value=spacing.replace(" ", "×")):
        read_volume(path, trust_geometry=True)


def test_a_metaimage_s_text_is_not_read_as_voxels(tmp_path: Path) -> None:
    path = save_metaimage(tmp_path / "a.mha", chest(), SPACING, np.eye(3), {"HeaderSize": "100"})
    with refused("header-damaged"):
        read_volume(path)


def test_a_nrrd_s_encoding_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = save_nrrd(tmp_path / "a.nrrd", chest(), SPACING, np.eye(3), {"encoding": "bzip2"})
    with refused("encoding-unknown", field="encoding", value="bzip2"):
        read_volume(path)


# --- gantry tilt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_sheared_scan_is_put_upright(kind: str, axis: int, tmp_path: Path) -> None:
    """Each slice is a voxel further aside than the one below, so the upright scan has the very same values."""
    truth, step = chest(), 30.0
    tilt = float(np.degrees(np.arctan2(5.0, step)))
    path = save_as(kind, tmp_path, truth, (5.0, 5.0, float(np.hypot(5.0, step))), askew(tilt, axis))
    volume = read_volume(path)
    assert volume.spacing == pytest.approx((5.0, 5.0, step), rel=1e-5)
    assert volume.flags == (*RECORDED, f"shear:corrected {tilt:.1f}°")
    wide = np.full((40 + 19 * (axis == 0), 36 + 19 * (axis == 1), 20), -1000.0)
    for k in range(20):
        x, y = k * (axis == 0), k * (axis == 1)
        wide[x : x + 40, y : y + 36, k] = truth[:, :, k]
    assert volume.array.shape == wide.shape
    np.testing.assert_allclose(volume.array, wide, atol=0.5)


@pytest.mark.parametrize("kind", FORMATS)
def test_slices_that_lean_with_the_gantry_stand_upright_in_the_patient(kind: str, tmp_path: Path) -> None:
    """The table moves along z; rows run to the left, columns lean."""
    a = np.radians(15)
    directions = np.array([[1, 0, 0], [0, np.cos(a), 0], [0, -np.sin(a), 1]])
    volume = read_volume(save_as(kind, tmp_path, chest(), SPACING, directions))
    assert volume.spacing == pytest.approx((5.0, 5.0 * np.cos(a), 6.0), rel=1e-5)
    assert volume.flags == (*RECORDED, "shear:corrected 15.0°")
    assert volume.array.shape[:2] == (40, 36)


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "metaimage", "dicom"])
@pytest.mark.parametrize("tilt", [46.0, 70.0, 89.0])
def test_axes_that_no_gantry_tilts_so_far_are_refused(kind: str, tilt: float, tmp_path: Path) -> None:
    path = save_as(kind, tmp_path, chest(), SPACING, askew(tilt))
    with refused("shear-implausible", value=f"{tilt}°"):
        read_volume(path, trust_geometry=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_scan_that_only_lies_askew_is_flagged(kind: str, tmp_path: Path) -> None:
    a = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    volume = read_volume(save_as(kind, tmp_path, chest(), SPACING, turn))
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.flags == (*RECORDED, "orientation:tilted 20.0°")


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("spacing", "size"),
    [
        ((1.0, 1.0, 1.0), "40×36×20 mm"),
        ((3.0, 3.0, 6.0), "120×108×120 mm"),
        ((5.0, 4.0, 6.0), "200×144×120 mm"),
        ((5.0, 5.0, 4.9), "200×180×98 mm"),
        ((5000.0, 5000.0, 6000.0), "2e+05×1.8e+05×1.2e+05 mm"),
        ((18.0, 18.0, 6.0), "720×648×120 mm"),
        ((5.0, 5.0, 126.0), "200×180×2520 mm"),
        ((0.005, 0.005, 0.006), "0.2×0.18×0.12 mm"),
    ],
)
def test_a_size_that_no_chest_has_is_refused_unless_trusted(
    kind: str, spacing: tuple[float, float, float], size: str, tmp_path: Path
) -> None:
    path = save_as(kind, tmp_path, chest(), spacing)
    with refused("size-implausible", field="geometry", value=size) as refusal:
        read_volume(path)
    assert "--trust-geometry" in str(refusal.value)
    volume = read_volume(path, trust_geometry=True)
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.spacing == pytest.approx(spacing, rel=1e-5)
    assert f"size:implausible {size}" in volume.flags
    assert any(size in sentence for sentence in quality_warnings(volume.flags))


def test_sizes_are_of_the_patient_s_axes() -> None:
    straight, along_x = np.eye(3), np.eye(3)[:, [2, 0, 1]]
    assert check_geometry((40, 36, 20), (5.0, 5.0, 6.0), straight).extent == (200.0, 180.0, 120.0)
    report = check_geometry((20, 40, 36), (6.0, 5.0, 5.0), along_x)
    assert (report.extent, report.doubts) == ((200.0, 180.0, 120.0), ())
    for shape in ((30, 30, 20), (140, 140, 500)):  # 150×150×100 mm and 700×700×2500 mm are the ends of what may be
        assert check_geometry(shape, (5.0, 5.0, 5.0), straight).doubts == ()


@pytest.mark.shared
def test_the_real_table_s_sizes_are_those_of_chests(shared_data: Path) -> None:
    import pandas as pd

    table = pd.read_csv(shared_data / "ct-rate" / "valid_metadata.csv")
    in_plane = table.XYSpacing.str.extract(r"\[([\d.]+), ([\d.]+)\]").astype(float)
    odd = 0
    for across, down, spaces, count, rows, columns in zip(
        in_plane[0], in_plane[1], table.ZSpacing, table.NumberofSlices, table.Rows, table.Columns, strict=True
    ):
        report = check_geometry((columns, rows, count), (across, down, spaces), np.eye(3))
        odd += report.refused is not None
    assert odd <= 0.01 * len(table)


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "metaimage", "dicom"])
def test_spacing_of_one_along_the_format_s_own_axes_is_flagged(kind: str, tmp_path: Path) -> None:
    hu = np.kron(chest(), np.ones((4, 5, 6), np.int16))  # 160×180×120 voxels
    own = RAS_FROM_LPS if kind == "nifti" else np.eye(3)
    volume = read_volume(save_as(kind, tmp_path, hu, (1.0, 1.0, 1.0), own))
    assert volume.flags == (*RECORDED, "spacing:unit 1×1×1 mm")
    volume = read_volume(save_as(kind, tmp_path / "other", hu, (1.0, 1.0, 1.01), own))
    assert volume.flags == RECORDED


# --- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "name", "times"), [("meter", "m", 0.001), ("micron", "µm", 1000.0), ("mm", "", 1.0)])
def test_nifti_s_unit_is_converted(unit: str, name: str, times: float, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(chest(), np.diag([-5.0 * times, -5.0 * times, 6.0 * times, 1.0]))
    image.header.set_xyzt_units(unit, "sec")
    image.set_qform(image.affine, 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.spacing == pytest.approx(SPACING, rel=1e-5)
    assert volume.flags == (*RECORDED, *([f"units:converted {name}"] if name else []))


@pytest.mark.parametrize(
    ("kind", "line", "times"),
    [
        ("nrrd", {"space units": '"um" "um" "um"'}, 1000.0),
        ("nrrd", {"space units": '"m" "m" "m"'}, 0.001),
        ("nrrd", {"space units": '"cm" "cm" "cm"'}, 0.1),
        ("nrrd", {"space units": '"mm" "mm" "mm"'}, 1.0),
        ("metaimage", {"DistanceUnits": "um"}, 1000.0),
        ("metaimage", {"DistanceUnits": "cm"}, 0.1),
        ("metaimage", {"DistanceUnits": "mm"}, 1.0),
    ],
)
def test_a_text_header_s_unit_is_converted(kind: str, line: dict[str, str], times: float, tmp_path: Path) -> None:
    spacing = (5.0 * times, 5.0 * times, 6.0 * times)
    volume = read_volume(save_as(kind, tmp_path, chest(), spacing, header=line))
    assert volume.spacing == pytest.approx(SPACING, rel=1e-6)
    assert (volume.flags == RECORDED) == (times == 1)
    assert {flag_name(flag) for flag in volume.flags} <= {*RECORDED, "units:converted"}


@pytest.mark.parametrize("units", ['"furlong" "furlong" "furlong"', '"mm" "mm" "um"'])
def test_a_unit_that_is_none_is_refused(units: str, tmp_path: Path) -> None:
    with refused("unit-unknown", field="units"):
        read_volume(save_as("nrrd", tmp_path, chest(), SPACING, header={"space units": units}))


# --- contradictions ---------------------------------------------------------------------------------------------------


def nifti_of(path: Path, sform: npt.NDArray[np.float64], qform: npt.NDArray[np.float64], pixdim: Any = None) -> Path:
    image = nibabel.Nifti1Image(chest(), sform)
    image.set_qform(qform, 1)
    image.set_sform(sform, 1)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    nibabel.save(image, path)
    return path


STRAIGHT = np.diag([-5.0, -5.0, 6.0, 1.0])


def test_forms_of_a_nifti_that_agree_are_taken(tmp_path: Path) -> None:
    a = np.radians(7)
    turned = STRAIGHT.copy()
    turned[:3, :3] = RAS_FROM_LPS @ [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]] * SPACING
    for affine in (STRAIGHT, turned):
        assert read_volume(nifti_of(tmp_path / "a.nii", affine, affine)).flags == RECORDED


@pytest.mark.parametrize(
    ("sform", "qform", "pixdim", "numbers"),
    [
        (np.diag([5.0, 5.0, 6.0, 1.0]), STRAIGHT, None, "qform and sform 180° apart"),
        (STRAIGHT, np.diag([-5.0, 5.0, -6.0, 1.0]), None, "qform and sform 180° apart"),
        (STRAIGHT[:, [1, 0, 2, 3]] * [-1, 1, 1, 1], STRAIGHT, None, "qform and sform 90° apart"),
        (STRAIGHT, STRAIGHT, (5.0, 5.0, 3.0), "pixdim 5×5×3 mm, sform 5×5×6 mm"),
        (STRAIGHT, STRAIGHT, (1.0, 1.0, 1.0), "pixdim 1×1×1 mm, sform 5×5×6 mm"),
    ],
)
def test_forms_of_a_nifti_that_contradict_each_other_are_refused(
    sform: npt.NDArray[np.float64], qform: npt.NDArray[np.float64], pixdim: Any, numbers: str, tmp_path: Path
) -> None:
    path = nifti_of(tmp_path / "a.nii.gz", sform, qform, pixdim)
    with refused("geometry-contradictory", field="geometry", value=numbers):
        read_volume(path)
    volume = read_volume(path, trust_geometry=True)
    assert f"geometry:contradictory {numbers}" in volume.flags
    assert any(numbers in sentence for sentence in quality_warnings(volume.flags))


def test_a_qform_that_is_no_rotation_is_a_contradiction(tmp_path: Path) -> None:
    path = nifti_of(tmp_path / "a.nii", STRAIGHT, STRAIGHT)
    raw = bytearray(path.read_bytes())
    raw[256:268] = np.array([0.9, 0.9, 0.9], "<f4").tobytes()
    path.write_bytes(raw)
    with refused("geometry-contradictory", value="qform is no rotation"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, trust_geometry=True).array, chest())


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("metaimage", {"AnatomicalOrientation": "LPI"}),
        ("metaimage", {"AnatomicalOrientation": "ASR"}),
    ],
)
def test_text_headers_that_contradict_themselves_are_refused(kind: str, line: dict[str, str], tmp_path: Path) -> None:
    path = save_as(kind, tmp_path, chest(), SPACING, header=line)
    with refused("geometry-contradictory"):
        read_volume(path)
    volume = read_volume(path, trust_geometry=True)
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.spacing == pytest.approx(SPACING)
    assert "geometry:contradictory" in map(flag_name, volume.flags)


@pytest.mark.parametrize("line", [{"spacings": "5 5 3"}, {"space directions": "", "spacings": "5 5 6"}])
def test_a_nrrd_that_gives_spacings_beside_a_space_is_refused(line: dict[str, str], tmp_path: Path) -> None:
    with refused("header-damaged"):
        read_volume(save_as("nrrd", tmp_path, chest(), SPACING, header=line), trust_geometry=True)


@pytest.mark.parametrize("named", ["RAI", "???", "UNKNOWN"])
def test_an_orientation_that_says_the_same_or_nothing_is_none(named: str, tmp_path: Path) -> None:
    path = save_as("metaimage", tmp_path, chest(), SPACING, header={"AnatomicalOrientation": named})
    assert read_volume(path).flags == RECORDED


# --- what is not stated -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("nrrd", {"space": "", "space directions": "", "space origin": "", "spacings": "5 5 6"}),
        ("nrrd", {"space": "", "space dimension": "3"}),
        ("nrrd", {"space": "scanner-xyz"}),
        ("metaimage", {"TransformMatrix": ""}),
    ],
)
def test_an_orientation_that_is_not_stated_is_flagged(kind: str, header: dict[str, str], tmp_path: Path) -> None:
    volume = read_volume(save_as(kind, tmp_path, chest(), SPACING, header=header))
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.spacing == pytest.approx(SPACING)
    assert volume.flags == (*RECORDED, "orientation:assumed")


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("nrrd", {"space": "", "space directions": "", "space origin": ""}),
        ("metaimage", {"ElementSpacing": ""}),
    ],
)
def test_a_spacing_that_is_not_stated_is_refused_or_flagged(kind: str, header: dict[str, str], tmp_path: Path) -> None:
    """Also where 1 mm would give a chest's size: half as large as it is, or twice."""
    path = save_as(kind, tmp_path, chest((200, 180, 120)), (0.8, 0.8, 1.5), header=header)
    with refused("spacing-assumed", value="1×1×1 mm"):
        read_volume(path)
    flags = {flag_name(flag) for flag in read_volume(path, trust_geometry=True).flags}
    assert {"spacing:assumed", "spacing:unit"} <= flags
    assert "size:implausible" not in flags


@pytest.mark.parametrize("named", ["a.hdr", "a.img"])
def test_analyze_says_nothing_of_directions(named: str, tmp_path: Path) -> None:
    image = nibabel.AnalyzeImage(chest(), STRAIGHT)
    nibabel.save(image, tmp_path / "a.img")
    volume = read_volume(tmp_path / named)
    np.testing.assert_array_equal(volume.array, chest()[:, ::-1])  # to the left, to anterior, up
    assert volume.spacing == pytest.approx(SPACING)
    assert volume.flags == (*RECORDED, "orientation:assumed")


@pytest.mark.parametrize("named", ["a.hdr", "a.img", "a.hdr.gz", "a.img.gz"])
def test_a_nifti_pair_is_read_by_either_name(named: str, tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(chest(), STRAIGHT), tmp_path / f"a.img{'.gz' if named.endswith('gz') else ''}")
    volume = read_volume(tmp_path / named)
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.flags == RECORDED
    other = named.replace("hdr", "x").replace("img", "hdr").replace("x", "img")
    (tmp_path / other).unlink()
    with refused("file-missing"):
        read_volume(tmp_path / named)


# --- a table beside the header ----------------------------------------------------------------------------------------


def test_a_table_makes_good_a_header_that_says_nothing(tmp_path: Path) -> None:
    """CT-RATE's first release: 1×1×1 mm and unturned axes, and the geometry in its table."""
    path = save_nifti(tmp_path / "a.nii.gz", (chest() + 1024).astype(np.int16), np.eye(4))
    assert read_volume(path, TABLE).flags == ("rescale:csv", "geometry:csv")
    with refused("size-implausible", value="40×36×20 mm"):
        read_volume(path)


def test_a_table_s_geometry_is_doubted_too(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", (chest() + 1024).astype(np.int16), np.eye(4))
    with refused("size-implausible", value="40×36×120 mm"):
        read_volume(path, {**TABLE, "XYSpacing": "[1.0, 1.0]"})


def test_a_scan_that_was_put_upright_keeps_its_place(tmp_path: Path) -> None:
    """The middle of the upright grid is where the middle of the file's voxels lies in the patient."""
    truth = chest()
    path = save_as("nifti", tmp_path, truth, (5.0, 5.0, float(np.hypot(5.0, 30.0))), askew(9.5))
    volume = read_volume(path)
    assert volume.placement is not None
    in_file = nibabel.load(path)
    middle = in_file.affine @ [*((np.array(in_file.shape) - 1) / 2), 1]
    made = volume.placement.to_file(volume.array)
    found = volume.placement.affine @ [*((np.array(made.shape) - 1) / 2), 1]
    np.testing.assert_allclose(found[:3], np.diag([-1.0, -1.0, 1.0]) @ middle[:3], atol=1e-4)
    assert made.shape != in_file.shape
