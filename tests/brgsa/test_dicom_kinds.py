"""DICOM as it leaves scanners, PACS and discs: what is one volume, what is several, and what is left out alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from refusals import refused
from transcode import SYNTAXES, transcode

from brgsa.volumes import Series, SeveralSeries, Volume, list_series, quality_warnings, read_volume
from scans import SPACING, chest, save_dicom

RECORDED = ("rescale:header", "geometry:header")
ORIGINAL = ["ORIGINAL", "PRIMARY", "AXIAL"]
TIME = "101500"


def usable(folder: Path) -> list[Series]:
    return [series for series in list_series(folder) if not series.refused]


def left_out(folder: Path) -> dict[str, int]:
    """Code → pictures."""
    return {series.refused_code: series.slices for series in list_series(folder) if series.refused}


def all_of(folder: Path) -> list[Volume]:
    return [read_volume(folder, series=series.name) for series in usable(folder)]


def shifted(by: float, **tags: Any) -> Callable[[int, Dataset], None]:
    """Every slice `by` mm higher, with other tags."""

    def change(k: int, header: Dataset) -> None:
        header.ImagePositionPatient = [0, 0, SPACING[2] * k + by]
        for name, value in tags.items():
            setattr(header, name, value(k) if callable(value) else value)

    return change


def two(folder: Path, first: dict[str, Any], second: dict[str, Any], by: float = 3.0) -> None:
    """Two phases in one folder under one SeriesInstanceUID, the second `by` mm higher."""
    save_dicom(folder, chest(), change=shifted(0.0, **first))
    for file in folder.iterdir():
        file.rename(file.with_name(f"a{file.name}"))
    save_dicom(folder, chest(seed=1), change=shifted(by, **second))


# --- the meaning of stored values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("display", ["MONOCHROME1", "MONOCHROME2"])
def test_hu_are_the_same_in_every_transfer_syntax_and_display(syntax: str, display: str, tmp_path: Path) -> None:
    for file in save_dicom(tmp_path, chest(), PhotometricInterpretation=display):
        transcode(file, syntax)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.flags == RECORDED


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg-2000"])
@pytest.mark.parametrize(
    ("signed", "stored", "tag"),
    [
        (1, -2000, -2000),
        (0, 63536, 63536),  # -2000 in a picture without signs
        (1, -2000, 63536),  # written with the other sign
        (0, 4095, 4095),  # 3071 HU: bright
        (0, 3024, 3024),  # 2000 HU, which bone may have, too
        (1, 0, 0),
    ],
)
def test_padding_is_air(signed: int, stored: int, tag: int, syntax: str, tmp_path: Path) -> None:
    hu = chest()
    hu[20, 18, 5] = 2000  # a voxel of the patient that has the value of some padding

    def pad(k: int, header: Dataset) -> None:
        values = (hu[:, :, k].T.astype(np.int32) + 1024).astype(np.int64)
        values[:4] = stored
        header.PixelData = (values % 65536).astype("<u2").tobytes()
        header.PixelRepresentation = signed
        header.add_new("PixelPaddingValue", "SS" if -32768 <= tag < 0 else "US", tag)

    for file in save_dicom(tmp_path, hu, change=pad):
        transcode(file, syntax)
    array = read_volume(tmp_path).array
    assert (array[:, :4] <= -1000).all()
    np.testing.assert_array_equal(array[:, 4:], hu[:, 4:])


def test_a_range_of_padding_is_air(tmp_path: Path) -> None:
    def pad(k: int, header: Dataset) -> None:
        values = np.frombuffer(header.PixelData, "<i2").reshape(header.Rows, header.Columns).copy()
        values[:2], values[2:4] = 5000, 5003
        header.PixelData = values.tobytes()
        header.add_new("PixelPaddingValue", "SS", 5000)
        header.add_new("PixelPaddingRangeLimit", "SS", 5005)

    save_dicom(tmp_path, chest(), change=pad)
    array = read_volume(tmp_path).array
    assert (array[:, :4] == -1000).all()
    np.testing.assert_array_equal(array[:, 4:], chest()[:, 4:])


# --- one volume, or several -------------------------------------------------------------------------------------------

DIFFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "acquisition": ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    "acquisition in one of them": ({}, {"AcquisitionNumber": 2}),
    "time": ({"AcquisitionTime": TIME}, {"AcquisitionTime": "101530"}),
    "time of each slice": (
        {"AcquisitionTime": lambda k: f"1015{k // 4:02d}.{k % 4}"},
        {"AcquisitionTime": lambda k: f"1016{k // 4:02d}.{k % 4}"},
    ),
    "time there and back": (
        {"AcquisitionTime": lambda k: f"1015{k:02d}"},
        {"AcquisitionTime": lambda k: f"1016{20 - k:02d}"},
    ),
    "date and time": ({"AcquisitionDateTime": "20260101235959"}, {"AcquisitionDateTime": "20260102000010"}),
    "kernel": ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}),
    "kernel of several values": ({"ConvolutionKernel": ["Br40d", "3"]}, {"ConvolutionKernel": ["Br40d", "4"]}),
    "thickness": ({"SliceThickness": "6"}, {"SliceThickness": "1.5"}),
    "tube": ({"KVP": "80"}, {"KVP": "140"}),
    "image type": ({}, {"ImageType": [*ORIGINAL, "CT_SOM5 SPI"]}),
    "contrast": ({}, {"ContrastBolusAgent": "Iopromide"}),
    "frame of reference": ({"FrameOfReferenceUID": "1.5"}, {"FrameOfReferenceUID": "1.50"}),
    "temporal position": ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
    "cardiac phase": ({"NominalPercentageOfCardiacPhase": 40.0}, {"NominalPercentageOfCardiacPhase": 75.0}),
    "study": ({}, {"StudyInstanceUID": "1.3"}),
    "patient": ({}, {"PatientID": "secretother"}),
    "accession": ({}, {"AccessionNumber": "secretother"}),
}


@pytest.mark.parametrize("by", [3.0, 0.0, 6.0])
@pytest.mark.parametrize("case", DIFFERENCES)
def test_two_scans_under_one_series_are_two_volumes(case: str, by: float, tmp_path: Path) -> None:
    two(tmp_path, *DIFFERENCES[case], by)
    assert left_out(tmp_path) == {}
    volumes = all_of(tmp_path)
    assert [volume.spacing for volume in volumes] == [SPACING] * 2
    for seed in (0, 1):
        assert sum(np.array_equal(volume.array, chest(seed=seed)) for volume in volumes) == 1
    with refused("several-series", field="SeriesInstanceUID", value=(20, 20)):
        read_volume(tmp_path)
    with refused("several-series"):
        read_volume(tmp_path, series="1.2.3")


@pytest.mark.parametrize("first", [21, 1])
def test_stacks_that_only_their_numbers_tell_apart_are_refused(first: int, tmp_path: Path) -> None:
    two(tmp_path, {"InstanceNumber": lambda k: k + 1}, {"InstanceNumber": lambda k: k + first})
    assert left_out(tmp_path) == {"slices-interleaved": 40}
    with refused("slices-interleaved", field="InstanceNumber", value=2):
        read_volume(tmp_path)


def test_two_scans_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    two(tmp_path, {}, {}, by=0.0)
    with refused("slices-overlap", value=20):
        read_volume(tmp_path)


def test_a_scan_taken_step_by_step_is_one_volume(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), change=lambda k, h: setattr(h, "AcquisitionNumber", k // 4 + 1))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.flags == (*RECORDED, "acquisitions:joined 5")


def test_parts_that_are_no_volumes_are_refused_with_what_differs(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), change=lambda k, h: setattr(h, "AcquisitionNumber", k % 5))
    with refused("slices-differ", field="AcquisitionNumber"):
        read_volume(tmp_path)
    assert left_out(tmp_path) == {"slices-differ": 20}


def test_a_few_slices_of_another_acquisition_are_left_out(tmp_path: Path) -> None:
    """The watch for the contrast: one place, again and again."""
    save_dicom(tmp_path, chest(), AcquisitionNumber=2)
    for file in tmp_path.iterdir():
        file.rename(file.with_name(f"a{file.name}"))
    watch = shifted(0.0, AcquisitionNumber=1, ImagePositionPatient=[0, 0, 60])
    save_dicom(tmp_path, chest((40, 36, 9)), change=watch)
    np.testing.assert_array_equal(read_volume(tmp_path).array, chest())
    assert left_out(tmp_path) == {"slices-overlap": 9}


def test_times_out_of_order_are_flagged_and_times_without_order_refused(tmp_path: Path) -> None:
    save_dicom(tmp_path / "a", chest(), change=lambda k, h: setattr(h, "AcquisitionTime", f"1015{k ^ 1:02d}"))
    volume = read_volume(tmp_path / "a")
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.flags == (*RECORDED, "times:disordered correlation 0.98")
    save_dicom(tmp_path / "b", chest(), change=lambda k, h: setattr(h, "AcquisitionTime", f"1015{k * 7 % 20:02d}"))
    with refused("slices-interleaved", field="AcquisitionTime"):
        read_volume(tmp_path / "b")


def test_a_slice_without_its_rescale_is_not_taken_for_hu(tmp_path: Path) -> None:
    def forget(k: int, header: Dataset) -> None:
        if k == 19:
            del header.RescaleIntercept

    save_dicom(tmp_path, chest(), change=forget)
    with refused("tag-missing", field="RescaleSlope"):
        read_volume(tmp_path)


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", ["explicit", "deflated"])
def test_copies_count_once(syntax: str, tmp_path: Path) -> None:
    files = save_dicom(tmp_path, chest())
    for file in files:
        transcode(file, syntax)
    for file in files[5:8]:
        shutil.copy(file, file.with_name(f"{file.stem} (1).dcm"))
    (tmp_path / "link.dcm").symlink_to(files[9])
    again = pydicom.dcmread(files[11])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()  # sent once more
    again.save_as(tmp_path / "sent.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, chest())
    assert left_out(tmp_path) == {}
    other = pydicom.dcmread(files[12])
    other.PixelData = bytes(reversed(other.PixelData))
    other.save_as(tmp_path / "other.dcm")
    with refused("slices-overlap", value=1):
        read_volume(tmp_path)


# --- what is no slice takes nothing along -----------------------------------------------------------------------------


def sheet(header: Dataset, size: tuple[int, int] = (60, 50)) -> None:
    """A picture without geometry."""
    header.SOPClassUID, header.ImageType = SecondaryCaptureImageStorage, ["DERIVED", "SECONDARY", "OTHER"]
    picture(header, size)


def picture(header: Dataset, size: tuple[int, int] = (60, 50)) -> None:
    header.Rows, header.Columns = size
    header.PixelData = bytes(2 * size[0] * size[1])
    for name in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(header, name)


def colour(header: Dataset) -> None:
    sheet(header)
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.PixelData = bytes(60 * 50 * 3)


def of(**tags: Any) -> Callable[[Dataset], None]:
    def change(header: Dataset) -> None:
        for name, value in tags.items():
            setattr(header, name, value)

    return change


def screen(header: Dataset) -> None:
    header.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    picture(header)


STRANGERS: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "dose sheet": (sheet, "secondary-capture"),
    "colour": (colour, "secondary-capture"),
    "screen saved as CT": (screen, "secondary-capture"),
    "localizer": (of(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    "other modality": (of(Modality="SR"), "not-ct"),
    "MIP": (of(ImageType=["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"]), "projection"),
    "GE's MIP": (of(ImageType=["DERIVED", "SECONDARY", "REFORMATTED", "MAX_IP"]), "projection"),
    "MinIP": (of(ImageType=["DERIVED", "SECONDARY", "MINIP"]), "projection"),
    "MIP by its description": (of(ImageType=["DERIVED", "SECONDARY"], SeriesDescription="Lung MIP 8 mm"), "projection"),
    "MPR": (of(ImageType=["DERIVED", "SECONDARY", "MPR"], SliceThickness="3"), "reformatted"),
    "Z effective": (of(RescaleType="Z_EFF"), "not-hu"),
    "modified HU": (of(RescaleType="HU_MOD"), "not-hu"),
    "iodine": (of(RescaleType="MGML"), "not-hu"),
    "iodine by its type": (of(ImageType=["DERIVED", "PRIMARY", "AXIAL", "IODINE_NO_WATER"]), "not-hu"),
    "material": (of(ImageType=["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]), "not-hu"),
    "no series": (of(SeriesInstanceUID=""), "tag-missing"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_picture_that_is_no_slice_is_left_out_alone(case: str, tmp_path: Path) -> None:
    change, code = STRANGERS[case]
    save_dicom(tmp_path, chest())
    (file,) = save_dicom(tmp_path / "one", chest()[:, :, :1], change=lambda k, header: change(header))
    file.rename(tmp_path / "sheet.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.flags == RECORDED
    assert left_out(tmp_path) == {code: 1}


def test_a_whole_map_beside_the_ct_is_left_out(tmp_path: Path) -> None:
    two(tmp_path, {"RescaleType": "HU"}, {"RescaleType": "Z_EFF"}, by=0.0)
    np.testing.assert_array_equal(read_volume(tmp_path).array, chest())
    assert left_out(tmp_path) == {"not-hu": 20}


@pytest.mark.parametrize("keep", [0.05, 0.25, 0.5, 0.9, 0.999])
def test_a_slice_that_is_cut_short_anywhere_is_never_passed_over(keep: float, tmp_path: Path) -> None:
    files = save_dicom(tmp_path, chest(), AcquisitionNumber=1, ConvolutionKernel="B30f")
    header = len(files[-1].read_bytes()) - 40 * 36 * 2  # where the pixels begin
    for length in (int(keep * header), int(keep * len(files[-1].read_bytes()))):
        whole = files[-1].read_bytes()
        files[-1].write_bytes(whole[:length])
        for series in list_series(tmp_path):
            assert series.refused or "files:unreadable" in {doubt.flag for doubt in series.doubts}
        files[-1].write_bytes(whole)


def test_what_is_left_out_and_why_names_nobody(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (series,) = list_series(tmp_path)
    assert "secret" not in repr(series)
    assert "1.2.3" not in repr(series)


# --- headers of all sorts ---------------------------------------------------------------------------------------------


def with_text(file: Path, tag: str, text: str) -> None:
    """Write a text into a tag of numbers, in place; as long as the text that is there."""
    header = pydicom.dcmread(file, stop_before_pixels=True)
    old = "\\".join(str(value) for value in header[tag].value).encode()
    raw = file.read_bytes()
    assert raw.count(old) >= 1
    new = text.encode().ljust(len(old))
    assert len(new) == len(old)
    file.write_bytes(raw.replace(old, new, 1))


def test_a_decimal_comma_is_read_and_flagged(tmp_path: Path) -> None:
    for file in save_dicom(tmp_path, chest(), PixelSpacing=["5.000", "5.000"]):
        with_text(file, "PixelSpacing", "5,0\\5,0")
    save_dicom(tmp_path, chest(seed=1), series="1.2.4")
    volume = read_volume(tmp_path, series="1.2.3")
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.spacing == SPACING
    assert volume.flags == (*RECORDED, "header:decimal-comma")
    assert read_volume(tmp_path, series="1.2.4").flags == RECORDED


def test_a_tag_that_is_no_number_is_named_and_the_next_series_is_read(tmp_path: Path) -> None:
    files = save_dicom(tmp_path, chest(), PixelSpacing=["5.000", "5.000"])
    with_text(files[3], "PixelSpacing", "5 mm")
    save_dicom(tmp_path, chest(seed=1), series="1.2.4")
    with refused("tag-unreadable", field="PixelSpacing", value="5 mm"):
        read_volume(tmp_path, series="1.2.3")
    np.testing.assert_array_equal(read_volume(tmp_path).array, chest(seed=1))


@pytest.mark.parametrize("name", ["DICOMDIR", "DIRFILE", "I0", "dir.dcm"])
def test_media_directories_are_passed_over(name: str, tmp_path: Path) -> None:
    save_dicom(tmp_path, chest())
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.FileSetID, directory.FileSetConsistencyFlag, directory.DirectoryRecordSequence = "DISC", 0, []
    directory.save_as(tmp_path / name, enforce_file_format=True)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, chest())
    assert volume.flags == RECORDED
    assert left_out(tmp_path) == {}


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble_and_suffix_are_dicom(implicit: bool, tmp_path: Path) -> None:
    for number, file in enumerate(save_dicom(tmp_path, chest())):
        dataset = pydicom.dcmread(file)
        file.unlink()
        del dataset.file_meta
        pydicom.dcmwrite(tmp_path / f"I{number}", dataset, implicit_vr=implicit, little_endian=True)
    (tmp_path / "notes").write_text("\x08\x00 is how a bell begins")
    np.testing.assert_array_equal(read_volume(tmp_path).array, chest())


# --- geometry ---------------------------------------------------------------------------------------------------------


def rotation(degrees: float) -> npt.NDArray[np.float64]:
    a = np.radians(degrees)
    return np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])


def test_a_frame_of_another_file_is_not_taken_for_the_same(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), change=lambda k, h: setattr(h, "FrameOfReferenceUID", "1.7" if k < 10 else "1.8"))
    with refused("size-implausible"):  # halves of 60 mm each, and no whole
        read_volume(tmp_path, series=usable(tmp_path)[0].name)


def test_a_study_s_folder_lists_what_can_be_chosen(tmp_path: Path) -> None:
    save_dicom(tmp_path / "a" / "lung", chest(), SeriesDescription="Lung", ConvolutionKernel="B70f")
    save_dicom(tmp_path / "a" / "b" / "soft", chest(seed=1), series="1.2.4", SeriesDescription="Soft")
    with refused("several-series", value=(20, 20)) as refusal:
        read_volume(tmp_path)
    assert isinstance(refusal.value, SeveralSeries)
    assert refusal.value.choices == ("1.2.3: 20 slices, Lung, kernel B70f", "1.2.4: 20 slices, Soft")
    for word in ("1.2.3", "1.2.4", "Lung", "B70f", "--series", "secret"):  # the message goes into stores
        assert word not in str(refusal.value).removeprefix(str(tmp_path))
    np.testing.assert_array_equal(read_volume(tmp_path, series="1.2.4").array, chest(seed=1))
    np.testing.assert_array_equal(read_volume(tmp_path / "a" / "b").array, chest(seed=1))


def test_every_doubt_has_a_sentence(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), change=lambda k, h: setattr(h, "RescaleIntercept", -1024 - k % 2))
    flags = read_volume(tmp_path).flags
    assert "rescale:varies 2 rescales" in flags
    assert len(quality_warnings(flags)) == 1


# --- values and times that fit no reader ------------------------------------------------------------------------------


def test_values_in_the_upper_bits_are_refused(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), BitsStored=12, HighBit=15, PixelRepresentation=0)
    with refused("bits-shifted", field="HighBit", value="15 of 12 bits"):
        read_volume(tmp_path)


@pytest.mark.parametrize("description", ["Thorax MIP 10/2", "MinIP lung", "LUNG_MINIP", "mip"])
def test_a_projection_that_calls_itself_original_is_flagged(description: str, tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), SeriesDescription=description)
    (sentence,) = quality_warnings(read_volume(tmp_path).flags)
    assert "projection" in sentence
    save_dicom(tmp_path / "whole", chest(), SeriesDescription="Thorax, simple, 1.0 Lung", SliceThickness="12")
    assert quality_warnings(read_volume(tmp_path / "whole").flags) == []


@pytest.mark.parametrize(("thickness", "doubts"), [("18", []), ("18.5", ["slices:thick 18.5 mm every 6 mm"])])
def test_slices_that_are_rather_slabs_are_flagged(thickness: str, doubts: list[str], tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), SliceThickness=thickness)
    assert list(read_volume(tmp_path).flags) == [*RECORDED, *doubts]


def test_a_map_of_electron_density_is_left_out(tmp_path: Path) -> None:
    save_dicom(tmp_path, chest(), ImageType=["DERIVED", "PRIMARY", "AXIAL", "DE_RHO"])
    assert left_out(tmp_path) == {"not-hu": 20}


def test_a_scan_over_midnight_without_a_day_is_one(tmp_path: Path) -> None:
    """It is no pause of a day between two scans."""

    def time(k: int, header: Dataset) -> None:
        header.AcquisitionTime = f"2359{50 + k}" if k < 10 else f"0000{k - 10:02d}"

    save_dicom(tmp_path, chest(), change=time)
    np.testing.assert_array_equal(read_volume(tmp_path).array, chest())
