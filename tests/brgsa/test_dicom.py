"""DICOM series: in any orientation, in any order of files, and which are refused and why."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    JPEG2000Lossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from refusals import refused

from brgsa.volumes import Geometry, VolumeError, list_series, quality_warnings, read_volume, standardize
from scans import chest, save_dicom

RECORDED = ("rescale:header", "geometry:header")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_order_and_flip_of_axes_comes_out_the_same(order: tuple[int, int, int], tmp_path: Path) -> None:
    truth = chest((12, 10, 9))
    spacing = (15.0, 20.0, 30.0)
    for flips in itertools.product((1, -1), repeat=3):
        directions = np.zeros((3, 3))  # column a: where the series's axis a points
        directions[list(order), range(3)] = flips
        array = truth.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
        folder = tmp_path / "".join(map(str, flips))
        save_dicom(folder, array, tuple(spacing[a] for a in order), directions)
        volume = read_volume(folder)
        np.testing.assert_array_equal(volume.array, truth)
        assert volume.spacing == pytest.approx(spacing)
        assert volume.flags == RECORDED


def test_slices_are_ordered_by_position_whatever_their_names_and_numbers(tmp_path: Path) -> None:
    def shuffle(k: int, header: Dataset) -> None:
        header.InstanceNumber = (k * 7) % 20

    files = save_dicom(tmp_path / "a", chest(), change=shuffle)
    for file, name in zip(files, np.random.default_rng(0).permutation(len(files)), strict=True):
        file.rename(file.with_name(f"IM{name}"))  # no suffix either
    (tmp_path / "a" / "notes.txt").write_text("not DICOM")
    np.testing.assert_array_equal(read_volume(tmp_path / "a").array, chest())


def test_one_file_stands_for_its_series(tmp_path: Path) -> None:
    files = save_dicom(tmp_path, chest())
    save_dicom(tmp_path, chest(seed=1), series="1.2.4")
    np.testing.assert_array_equal(read_volume(files[3]).array, chest())


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    def rescale(k: int, header: Dataset) -> None:
        stored = np.frombuffer(header.PixelData, "<i2")
        if k % 2:  # half the range in twice the steps, and a slope that the first slice's integers could not hold
            header.RescaleSlope, header.RescaleIntercept = 0.5, -1024
            header.PixelData = (stored * 2 + 1).astype("<i2").tobytes()

    save_dicom(tmp_path, chest(), change=rescale)
    array = read_volume(tmp_path).array
    np.testing.assert_array_equal(array[:, :, ::2], chest()[:, :, ::2])
    np.testing.assert_array_equal(array[:, :, 1::2], chest()[:, :, 1::2] + 0.5)


def test_compressed_slices_are_read(tmp_path: Path) -> None:
    files = save_dicom(tmp_path, chest())
    for file in files:
        image = sitk.ReadImage(str(file), sitk.sitkInt16)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetUseCompression(True)
        for key in image.GetMetaDataKeys():
            if key.startswith(("0028|1052", "0028|1053")):
                image.EraseMetaData(key)
        writer.SetFileName(str(file))
        writer.Execute(image)
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID == JPEG2000Lossless
    np.testing.assert_array_equal(read_volume(tmp_path).array, chest())
    files[5].write_bytes(files[5].read_bytes()[:-400])
    with refused("file-damaged"):
        read_volume(tmp_path)


def enhanced(folder: Path, change: Callable[[int, Dataset], object] = lambda k, frame: None) -> Path:
    """The chest as one multi-frame file, its frames from head to feet."""
    (single, *_) = save_dicom(folder / "single", chest())
    header = pydicom.dcmread(single)
    shutil.rmtree(folder / "single")
    for name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(header, name)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    measures, plane, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [5, 5], 6
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    frames = []
    for k in reversed(range(chest().shape[2])):
        position, frame, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 6 * k]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
        change(k, frame)
        frames.append(frame)
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = [shared], frames
    header.NumberOfFrames = len(frames)
    header.PixelData = (chest()[:, :, ::-1].T + 1024).astype("<i2").tobytes()
    header.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder / "enhanced.dcm"


def test_a_multi_frame_file_is_a_volume(tmp_path: Path) -> None:
    for path in (enhanced(tmp_path), tmp_path):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, chest())
        assert volume.spacing == pytest.approx((5, 5, 6))


@pytest.mark.parametrize("count", [-3, 21, 2_000_000_000])
@pytest.mark.parametrize("deflated", [False, True])
def test_a_number_of_frames_that_cannot_be_is_damage(count: int, deflated: bool, tmp_path: Path) -> None:
    header = pydicom.dcmread(path := enhanced(tmp_path))
    header.NumberOfFrames = count
    if deflated:
        header.Rows = header.Columns = 0  # frames of no size, of which a file may hold any number
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)
    start = time.process_time()
    (series,) = list_series(tmp_path)
    assert (series.refused_code, time.process_time() - start < 5) == ("file-damaged", True)


def test_each_frame_has_its_own_rescale(tmp_path: Path) -> None:
    def rescale(k: int, frame: Dataset) -> None:
        frame.PixelValueTransformationSequence[0].RescaleIntercept = -1024 - k

    volume = read_volume(enhanced(tmp_path, rescale))
    np.testing.assert_array_equal(volume.array, chest() - np.arange(20))
    assert "rescale:varies 20 rescales" in volume.flags


# --- refusals ---------------------------------------------------------------------------------------------------------


def only(change: Callable[[Dataset], object], slices: slice = slice(7, 8)) -> Callable[[int, Dataset], None]:
    def on(k: int, header: Dataset) -> None:
        if k in range(99)[slices]:
            change(header)

    return on


def put(**tags: Any) -> Callable[[Dataset], None]:
    def change(header: Dataset) -> None:
        for name, value in tags.items():
            if value is None:
                delattr(header, name)
            else:
                setattr(header, name, value)

    return change


def coloured(k: int, header: Dataset) -> None:
    header.SOPClassUID, header.SamplesPerPixel, header.PhotometricInterpretation = (
        SecondaryCaptureImageStorage,
        3,
        "RGB",
    )
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.PlanarConfiguration = 0
    header.PixelData = bytes(header.Rows * header.Columns * 3)


everywhere = slice(None)
# What changes slice k, and the code and the value of the refusal.
REFUSED: dict[str, tuple[Callable[[int, Dataset], object], str, object]] = {
    "localizer": (only(put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), everywhere), "localizer", None),
    "localizer within": (only(put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])), "slices-missing", 12.0),
    "few slices": (only(put(Rows=0), slice(5, None)), "too-few-slices", 5),
    "colour": (coloured, "secondary-capture", None),
    "secondary capture": (only(put(SOPClassUID=SecondaryCaptureImageStorage), everywhere), "secondary-capture", None),
    "other modality": (only(put(Modality="PT"), everywhere), "not-ct", "PT"),
    "missing slice": (only(put(Rows=0)), "slices-missing", 12.0),
    "uneven": (lambda k, h: put(ImagePositionPatient=[0, 0, 6 * k + k % 2])(h), "slices-uneven", (5.0, 7.0)),
    "duplicate position": (only(put(ImagePositionPatient=[0, 0, 18])), "slices-overlap", 1),
    "aside": (only(put(ImagePositionPatient=[3, 0, 42])), "slices-aside", 3.0),
    "orientation": (only(put(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])), "slices-differ", "ImageOrientationPatient"),
    "orientation of nothing": (
        only(put(ImageOrientationPatient=[0, 0, 0, 0, 1, 0]), everywhere),
        "orientation-impossible",
        (0, 0, 0, 0, 1, 0),
    ),
    "spacing": (only(put(PixelSpacing=[2, 3])), "slices-differ", "PixelSpacing"),
    "zero spacing": (only(put(PixelSpacing=[0, 2]), everywhere), "spacing-impossible", "0×2"),
    "negative spacing": (only(put(PixelSpacing=[2, -2]), everywhere), "spacing-impossible", "2×-2"),
    "no spacing": (only(put(PixelSpacing=None)), "tag-missing", "PixelSpacing"),
    "no position": (only(put(ImagePositionPatient=None)), "tag-missing", "ImagePositionPatient"),
    "other matrix": (only(put(Rows=18, PixelData=bytes(18 * 40 * 2))), "slices-differ", "Rows and Columns"),
    "cut short": (only(put(PixelData=bytes(40))), "file-damaged", 1),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_ct_volume_is_refused_with_a_reason(case: str, tmp_path: Path) -> None:
    change, code, value = REFUSED[case]
    save_dicom(tmp_path, chest(), change=change)
    series = max(list_series(tmp_path), key=lambda series: series.slices)
    assert series.headers == ()
    with refused(code, value=value) as refusal:
        read_volume(tmp_path, series="1.2.3")
    assert isinstance(refusal.value, VolumeError)
    assert refusal.value.reason == series.refused
    assert refusal.value.reason.endswith(".")
    assert "\n" not in refusal.value.reason
    assert not {"secret", "1.2.3"} & set(refusal.value.reason.lower().split())
    assert "secret" not in repr(series)


def test_positions_rounded_to_a_tenth_pass(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), change=lambda k, h: put(ImagePositionPatient=[0, 0, round(0.6 * k, 1)])(h))
    save_dicom(
        tmp_path, chest(), series="9", change=lambda k, h: put(ImagePositionPatient=[0, 0, round(0.625 * k, 1)])(h)
    )
    assert [series.refused for series in list_series(tmp_path)] == ["", ""]


def test_a_folder_of_two_series_and_a_localizer(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), series="1.2.3")
    save_dicom(tmp_path, chest(seed=1), series="1.2.4")
    save_dicom(tmp_path, chest()[:, :, :1], series="1.2.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert [(s.uid, s.slices, bool(s.refused)) for s in list_series(tmp_path)] == [
        ("1.2.3", 20, False),
        ("1.2.4", 20, False),
        ("1.2.9", 1, True),
    ]
    with refused("several-series", field="SeriesInstanceUID", value=(20, 20)):
        read_volume(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path, series="1.2.4").array, chest(seed=1))
    with refused("localizer"):
        read_volume(tmp_path, series="1.2.9")
    with refused("no-such-series", field="SeriesInstanceUID"):
        read_volume(tmp_path, series="1.2.5")


def test_folders_and_files_that_are_no_series(tmp_path: Path) -> None:
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    with refused("no-dicom"):
        read_volume(tmp_path)
    for name in ("absent", "absent.dcm"):
        with refused("file-missing"):
            read_volume(tmp_path / name, series="1")
    (tmp_path / "page.dcm").write_text("<html>not found</html>")
    with refused("header-unreadable", value=1):
        read_volume(tmp_path)
    with refused("file-damaged"):
        read_volume(tmp_path / "page.dcm")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("<html>not found</html>"),
        lambda file: file.write_bytes(file.read_bytes()[:300]),  # in the middle of the header
        lambda file: (file.unlink(), file.symlink_to("nowhere")),
    ],
    ids=["empty", "page", "cut", "link"],
)
def test_a_file_without_a_header_is_listed_and_its_neighbours_are_flagged(
    spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    files = save_dicom(tmp_path, chest((40, 36, 24)))
    spoil(files[-1])
    whole, lost = sorted(list_series(tmp_path), key=lambda series: bool(series.refused))
    assert (whole.slices, lost.slices, lost.refused_code) == (23, 1, "header-unreadable")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, chest((40, 36, 24))[:, :, :23])
    assert volume.flags == (*RECORDED, "files:unreadable 1 files")
    spoil(files[10])
    with refused("slices-missing", value=12.0):
        read_volume(tmp_path, series="1.2.3")


def test_slices_without_a_rescale_are_no_hu(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), change=lambda k, h: put(RescaleSlope=None, RescaleIntercept=None)(h))
    volume = read_volume(tmp_path)
    assert "hu:implausible" in volume.flags
    assert quality_warnings(volume.flags)


def test_a_constant_series_is_no_picture(tmp_path: Path) -> None:
    save_dicom(tmp_path, np.full((12, 12, 12), 7, np.int16), SOPInstanceUID=generate_uid())
    with refused("voxels-constant", value=7):
        read_volume(tmp_path)


# --- real series ------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_two_kernels_of_a_real_scan_land_on_one_grid(shared_data: Path) -> None:
    study = shared_data / "dicom" / "A0002"
    sharp, soft = (read_volume(study / name) for name in ("series2_B70f", "series3_B40f"))
    assert sharp.spacing == soft.spacing == pytest.approx((0.646484375, 0.646484375, 8.0))
    assert sharp.flags == soft.flags == RECORDED
    files = [str(file) for file in sorted((study / "series3_B40f").glob("*.dcm"))]
    upright = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(files), "LPS")).T
    np.testing.assert_array_equal(soft.array, upright)
    grids = [standardize(volume, Geometry()).astype(float) for volume in (sharp, soft)]
    body = grids[1] > -900
    assert np.abs(grids[0] - grids[1])[body].mean() < 60
    assert np.corrcoef(grids[0][body], grids[1][body])[0, 1] > 0.97
    soft_tissue = np.median(grids[1][(grids[1] > -200) & (grids[1] < 200)])
    assert -120 < soft_tissue < 80
    lung = grids[1][(grids[1] < -700) & (grids[1] > -950)]
    assert len(lung) > 0.03 * grids[1].size
    # The patient lies on the table: below the body, so that the spine's bone is at the back of the middle third.
    bone = (grids[1] > 250)[100:156].sum(axis=(0, 2))
    inside = np.flatnonzero((grids[1] > -300).any(axis=(0, 2)))
    middle = (inside[0] + inside[-1]) // 2
    assert bone[middle:].sum() > 2 * bone[:middle].sum()
