"""Scans in every documented freedom of their formats equal the truth; broken ones are refused or flagged, never wrong."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import random
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from formats import FORMATS, RAS_FROM_LPS, save_as, save_metaimage, save_nrrd
from hostile import sample
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from transcode import SYNTAXES, transcode

from brgsa.errors import UserError
from brgsa.volumes import Volume, list_series, quality_warnings, read_volume
from scans import chest, save_dicom

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scan:
    """A chest as its patient has it, and the axes along which a file keeps it.

    Attributes:
        hu: (x, y, z), whole numbers.
        spacing: mm along x, y, z.
        order, flips: for each axis of the file, the patient's axis along which it runs, and whether backwards.
    """

    hu: npt.NDArray[np.int16]
    spacing: tuple[float, float, float]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def stored(self) -> npt.NDArray[np.int16]:
        """The voxels in the file's axes."""
        flips = tuple(slice(None, None, -1 if flip else None) for flip in self.flips)
        return np.ascontiguousarray(self.hu.transpose(self.order)[flips])

    @property
    def along(self) -> tuple[float, float, float]:
        """Spacing along the file's axes, mm."""
        a, b, c = (self.spacing[axis] for axis in self.order)
        return a, b, c

    @property
    def directions(self) -> npt.NDArray[np.float64]:
        """The file's axes in LPS."""
        made = np.zeros((3, 3))
        made[list(self.order), range(3)] = [-1.0 if flip else 1.0 for flip in self.flips]
        return made

    def check(self, volume: Volume, flags: set[str] = frozenset(), error: float = 0.0) -> None:  # type: ignore[assignment]
        """The volume is the truth, and nothing is said of it but these flags."""
        np.testing.assert_allclose(volume.array, self.hu, rtol=0, atol=error)
        np.testing.assert_allclose(volume.spacing, self.spacing, rtol=2e-5)
        assert volume.flags[0] == "rescale:header"
        assert {flag.split(" ")[0] for flag in volume.flags} - {
            "rescale:header",
            "geometry:header",
            "geometry:csv",
        } == flags


@st.composite
def scans(draw: st.DrawFn, straight: bool = False) -> Scan:
    shape = draw(st.tuples(st.integers(10, 16), st.integers(10, 16), st.integers(9, 14)))
    size = draw(st.tuples(st.floats(151, 690), st.floats(151, 690), st.floats(101, 900)))
    spacing = [round(length / n, 3) + 1e-3 for length, n in zip(size, shape, strict=True)]
    orders = [(0, 1, 2)] if straight else list(itertools.permutations(range(3)))
    flips = (False,) * 3 if straight else draw(st.tuples(*[st.booleans()] * 3))
    hu = chest(shape, seed=draw(st.integers(0, 50)))
    return Scan(hu, (spacing[0], spacing[1], spacing[2]), draw(st.sampled_from(orders)), flips)


@contextlib.contextmanager
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# --- valid ------------------------------------------------------------------------------------------------------------


@sample(0.5)
@given(scans(), st.data())
def test_nifti(scan: Scan, data: st.DataObject) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from(["i2", "i4", "f4", "f8", "i8"]))
    slope, intercept = draw(st.sampled_from([(1.0, 0.0), (1.0, -1024.0), (0.5, 100.0), (2.0, 0.0)]))
    endian, unit = draw(st.sampled_from("<>")), draw(st.sampled_from(["mm", "unknown", "meter", "micron"]))
    times = {"meter": 0.001, "micron": 1000.0}.get(unit, 1.0)
    affine = np.eye(4)
    affine[:3, :3] = RAS_FROM_LPS @ scan.directions * np.multiply(scan.along, times)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    stored = np.rint((scan.stored - intercept) / slope).astype(np.dtype(dtype).newbyteorder(endian))
    stored = stored.reshape(stored.shape + (1,) * draw(st.integers(0, 2)))
    kind, names = draw(
        st.sampled_from(
            [
                ("Nifti1", ["a.nii", "a.nii.gz"]),
                ("Nifti2", ["a.nii", "a.nii.gz"]),
                ("Nifti1Pair", ["a.hdr", "a.img", "a.img.gz"]),
            ]
        )
    )
    maker = getattr(nibabel, kind if kind.endswith("Pair") else f"{kind}Image")
    header = maker.header_class(endianness=endian)
    header.set_data_dtype(stored.dtype)
    image = maker(stored, affine, header=header)
    image.header.set_xyzt_units(unit, "sec")
    forms = draw(st.sampled_from(["sform", "qform", "both"]))
    image.set_sform(affine, 0 if forms == "qform" else draw(st.integers(1, 4)))
    image.set_qform(affine, 0 if forms == "sform" else draw(st.integers(1, 4)))
    if kind != "Nifti1Pair" and draw(st.booleans()):
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"scanned on a Monday"))
    if dtype in ("f4", "f8") or (slope, intercept) == (1.0, 0.0):
        image.header.set_slope_inter(float("nan"), float("nan"))
        expected_by_header = False
    else:
        expected_by_header = True
    with place() as folder:
        path = folder / draw(st.sampled_from(names))
        nibabel.save(image, path)
        _scaled(path, stored, (slope, intercept), expected_by_header, endian, kind)
        scan.check(read_volume(path), {"units:converted"} if times != 1 else set(), error=1.01 if slope > 1 else 0.01)


def _scaled(path: Path, stored: Array, rescale: tuple[float, float], by_header: bool, endian: str, kind: str) -> None:
    """Put stored values and slope into a file as they are: nibabel chooses both by itself."""
    image = nibabel.load(path)
    file = Path(image.file_map["image"].filename)
    header = Path(image.file_map["header"].filename) if "header" in image.file_map else file
    opened = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    offset = image.dataobj.offset
    values = stored
    if not by_header and rescale != (1.0, 0.0):
        values = (stored * rescale[0] + rescale[1]).astype(stored.dtype)
    raw = opened[:offset] + values.tobytes(order="F")
    file.write_bytes(gzip.compress(raw, 1) if file.suffix == ".gz" else raw)
    head = gzip.decompress(header.read_bytes()) if header.suffix == ".gz" else header.read_bytes()
    at, number = (176, "f8") if kind == "Nifti2" else (112, "f4")
    written = np.array(rescale if by_header else (0.0, 0.0), dtype=f"{endian}{number}").tobytes()
    head = head[:at] + written + head[at + len(written) :]
    header.write_bytes(gzip.compress(head, 1) if header.suffix == ".gz" else head)


@sample(0.3)
@given(scans(), st.data())
def test_nrrd(scan: Scan, data: st.DataObject) -> None:
    draw = data.draw
    space, signs = draw(
        st.sampled_from(
            [
                ("left-posterior-superior", (1, 1, 1)),
                ("LPS", (1, 1, 1)),
                ("right-anterior-superior", (-1, -1, 1)),
                ("RAS", (-1, -1, 1)),
                ("left-anterior-superior", (1, -1, 1)),
            ]
        )
    )
    unit, times = draw(st.sampled_from([("", 1.0), ("mm", 1.0), ("um", 1000.0), ("m", 0.001), ("cm", 0.1)]))
    directions = np.diag(signs) @ scan.directions
    header = {
        "space": space,
        "encoding": draw(st.sampled_from(["gzip", "raw"])),
        "endian": draw(st.sampled_from(["little", "big"])),
        "kinds": draw(st.sampled_from(["", "domain domain domain", "space space space"])),
        "space origin": draw(st.sampled_from(["(0,0,0)", "(-120.5,33,1e2)", ""])),
        "space units": f'"{unit}" "{unit}" "{unit}"' if unit else "",
        "# a comment": draw(st.sampled_from(["", "units of nothing"])),
    }
    stored = scan.stored.astype(draw(st.sampled_from(["int16", "int32", "float32", "float64"])))
    along = tuple(np.multiply(scan.along, times))
    with place() as folder:
        path = save_nrrd(folder / "a.nrrd", stored, along, directions, header)
        if draw(st.booleans()):
            head, _, voxels = path.read_bytes().partition(b"\n\n")
            (folder / "voxels").write_bytes(voxels)
            path = folder / "a.nhdr"
            path.write_bytes(head + b"\ndata file: voxels\n")
        scan.check(read_volume(path), {"units:converted"} if times != 1 else set())


@sample(0.3)
@given(scans(), st.data())
def test_metaimage(scan: Scan, data: st.DataObject) -> None:
    draw = data.draw
    unit, times = draw(st.sampled_from([("", 1.0), ("mm", 1.0), ("um", 1000.0), ("cm", 0.1)]))
    matrix = " ".join(f"{c:g}" for c in scan.directions.T.ravel())
    name = draw(st.sampled_from(["TransformMatrix", "Orientation", "Rotation"]))
    letters = "".join(("LPS" if flip else "RAI")[axis] for axis, flip in zip(scan.order, scan.flips, strict=True))
    header = {
        "TransformMatrix": "",
        name: matrix,
        "BinaryDataByteOrderMSB": draw(st.sampled_from(["True", "False"])),
        "AnatomicalOrientation": draw(st.sampled_from(["", letters, "???"])),
        "DistanceUnits": unit,
        "Comment": draw(st.sampled_from(["", "DistanceUnits = parsec"])),
    }
    stored = scan.stored.astype(draw(st.sampled_from(["int16", "int32", "float32"])))
    along = tuple(np.multiply(scan.along, times))
    packed = draw(st.booleans())
    with place() as folder:
        path = folder / draw(st.sampled_from(["a.mha", "a.mhd"]))
        save_metaimage(
            path, stored, along, scan.directions, {**header, **({"CompressedData": "True"} if packed else {})}
        )
        if packed:
            _compress(path)
        scan.check(read_volume(path), {"units:converted"} if times != 1 else set())


def _compress(path: Path) -> None:
    if path.suffix == ".mhd":
        raw = path.with_suffix(".raw")
        raw.write_bytes(zlib.compress(raw.read_bytes()))
        return
    head, _, voxels = path.read_bytes().partition(b"LOCAL\n")
    path.write_bytes(head + b"LOCAL\n" + zlib.compress(voxels))


@sample(0.2)
@given(scans(straight=True), st.data())
def test_npz(scan: Scan, data: st.DataObject) -> None:
    draw = data.draw
    cube = (scan.hu.clip(-1000, 1000), 18.125)
    prone = draw(st.booleans())
    array = cube[0][::-1, ::-1] if prone else cube[0]
    array = array.transpose(2, 1, 0)[::-1].astype(draw(st.sampled_from(["i2", ">i2", "i4", "f4", "f8"])))
    array = np.asfortranarray(array) if draw(st.booleans()) else np.ascontiguousarray(array)
    orientation = "-1,0,0,0,-1,0" if prone else draw(st.sampled_from(["1,0,0,0,1,0", "[1, 0, 0, 0, 1, 0]", ""]))
    row = {"final_spacing": draw(st.sampled_from([18.125, "18.125", "[18.125]"])), "orig_orientation": orientation}
    with place() as folder:
        save = np.savez_compressed if draw(st.booleans()) else np.savez
        save(folder / "a.npz", ct=array)
        volume = read_volume(folder / "a.npz", row)
        Scan(cube[0], (cube[1],) * 3, scan.order, scan.flips).check(volume)


@sample(0.3)
@given(scans(), st.data())
def test_dicom(scan: Scan, data: st.DataObject) -> None:
    draw = data.draw
    shuffled = random.Random(draw(st.integers(0, 99)))
    syntax, display = draw(st.sampled_from(SYNTAXES)), draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"]))
    slope, intercept = draw(st.sampled_from([(1, -1024), (0.5, -1024), (1, 0), (1, -8192), (2, -1024)]))
    least = int((scan.hu.min() - intercept) / slope)
    signed = least < 0 or draw(st.booleans())
    stored = np.rint((scan.stored.astype(float) - intercept) / slope).astype(np.int64)
    exact = bool((stored * slope + intercept == scan.stored).all())
    bits = draw(st.sampled_from([16, 16, 13, 12]))
    if stored.max() >= 2 ** (bits - signed) or stored.min() < -(2 ** (bits - 1)) * signed:
        bits = 16
    origin, number = np.array(draw(st.tuples(*[st.integers(-300, 300)] * 3))), scan.stored.shape[2]
    numbers = shuffled.sample(range(1, 500), number)

    def write(k: int, header: Dataset) -> None:
        header.PixelData = (stored[:, :, k].T % 2**16).astype("<u2").tobytes()
        header.PixelRepresentation, header.PhotometricInterpretation = int(signed), display
        header.BitsStored, header.HighBit = bits, bits - 1
        header.RescaleSlope, header.RescaleIntercept, header.InstanceNumber = slope, intercept, numbers[k]
        header.ImagePositionPatient = [f"{c:.5f}" for c in origin + scan.directions[:, 2] * scan.along[2] * k]

    tags = {"AcquisitionNumber": 3, "RescaleType": "HU", "AcquisitionTime": "101500"}
    with place() as folder:
        files = save_dicom(folder, scan.stored, scan.along, scan.directions, change=write, **tags)
        names = shuffled.sample(range(10_000), number)
        parts = draw(st.integers(1, 3))
        for file, name in zip(files, names, strict=True):
            if syntax.startswith("jpeg") and bits != 16:
                continue  # the encoder's own precision would have to be told
            transcode(file, syntax)
            below = folder / f"part{name % parts}"
            below.mkdir(exist_ok=True)
            file.rename(below / (f"I{name}" if name % 2 else f"{name}.dcm"))
        _strangers(draw(st.sets(st.sampled_from(["copy", "sheet", "localizer", "text"]))), folder)
        scan.check(read_volume(folder), error=0.0 if exact else slope)


def _strangers(kinds: set[str], folder: Path) -> None:
    """What lies beside the slices of a series: files of other kinds."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    if "copy" in kinds:
        (folder / "again.dcm").write_bytes(files[3].read_bytes())
    if "text" in kinds:
        (folder / "README").write_text("See DICOMDIR.")
    for kind, image_type in (
        ("sheet", ["DERIVED", "SECONDARY", "SCREEN SAVE"]),
        ("localizer", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    ):
        if kind in kinds:
            other = pydicom.dcmread(files[0])
            other.ImageType, other.SOPInstanceUID = image_type, f"1.9.{len(kind)}"
            other.save_as(folder / f"{kind}.dcm")


# --- broken -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@sample(0.07)
@given(scans(straight=True), st.data())
def test_files_that_are_cut_short_are_refused_or_flagged(kind: str, scan: Scan, data: st.DataObject) -> None:
    with place() as folder:
        path = save_as(kind, folder, scan.hu, scan.spacing)
        files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".hdr")
        file = files[data.draw(st.integers(0, len(files) - 1))]
        raw = file.read_bytes()
        file.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 3))])
        with contextlib.suppress(UserError):
            assert quality_warnings(read_volume(path).flags)


@pytest.mark.parametrize("kind", FORMATS)
@sample(0.07)
@given(scans(straight=True), st.data())
def test_a_size_that_is_no_chest_s_is_refused(kind: str, scan: Scan, data: st.DataObject) -> None:
    times = data.draw(st.sampled_from([1e-3, 0.1, 10.0, 1e3]))
    axis = data.draw(st.sampled_from([0, 1]))
    spacing = list(scan.spacing)
    spacing[axis] = round(spacing[axis] * times, 6)
    size = spacing[axis] * scan.hu.shape[axis]
    with place() as folder:
        path = save_as(kind, folder, scan.hu, (spacing[0], spacing[1], spacing[2]))
        if 150 <= size <= 700:
            return
        with pytest.raises(UserError) as refusal:
            read_volume(path)
        assert refusal.value.code == "size-implausible"
        assert quality_warnings(read_volume(path, trust_geometry=True).flags)


@pytest.mark.parametrize("kind", FORMATS)
@sample(0.07)
@given(scans(straight=True), st.data())
def test_pictures_that_are_no_chest_are_flagged(kind: str, scan: Scan, data: st.DataObject) -> None:
    fault = data.draw(st.sampled_from(["voxels:noise", "hu:clipped", "slices:repeated"]))
    if fault == "voxels:noise":
        seed = data.draw(st.integers(0, 999))
        hu = np.random.default_rng(seed).permutation(scan.hu.ravel()).reshape(scan.hu.shape)
    elif fault == "hu:clipped":
        hu = scan.hu.clip(-1000, data.draw(st.integers(20, 45)))
    else:
        hu = scan.hu.copy()
        first, second = data.draw(st.lists(st.integers(0, hu.shape[2] - 1), min_size=2, max_size=2, unique=True))
        hu[:, :, second] = hu[:, :, first]
    with place() as folder:
        volume = read_volume(save_as(kind, folder, hu, scan.spacing))
        assert fault in {flag.split(" ")[0] for flag in volume.flags}


@pytest.mark.parametrize("kind", FORMATS)
@sample(0.07)
@given(scans(), st.data())
def test_bytes_that_are_changed_break_nothing(kind: str, scan: Scan, data: st.DataObject) -> None:
    """Some changes cannot be seen, so the volume may be another; but whatever they are, one sentence or a volume comes."""
    with place() as folder:
        path = save_as(kind, folder, scan.stored, scan.along, scan.directions)
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        file = files[data.draw(st.integers(0, len(files) - 1))]
        raw = bytearray(file.read_bytes())
        packed = file.suffix == ".gz"
        raw = bytearray(gzip.decompress(bytes(raw))) if packed else raw
        for at, value in data.draw(
            st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6)
        ):
            raw[at % len(raw)] = value
        file.write_bytes(gzip.compress(bytes(raw), 1) if packed else bytes(raw))
        with contextlib.suppress(UserError):
            volume = read_volume(path)
            assert np.isfinite(volume.array).all()
            assert min(volume.spacing) > 0
        if kind == "dicom":
            for series in list_series(folder):
                assert series.refused == "" or series.refused.endswith(".")
