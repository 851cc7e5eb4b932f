"""NRRD and MetaImage: their voxels by SimpleITK, their text headers by ourselves.

ITK takes what a header leaves out for 1 mm and straight axes, and ignores units. What is stated has to be read from the text.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes.errors import VolumeError, cut_short
from brgsa.volumes.formats.detached import data_files
from brgsa.volumes.formats.shape import (
    check_spacing,
    check_stored_size,
    impossible_spacing,
    not_an_image,
    not_numbers,
    three_dimensional,
)
from brgsa.volumes.stored import Doubt, Stored, contradiction
from brgsa.volumes.volume import axis_order

UNITS = {
    **dict.fromkeys(("mm", "millimeter", "millimetre", "millimeters", "millimetres", ""), 1.0),
    **dict.fromkeys(("m", "meter", "metre", "meters", "metres"), 1000.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre", "centimeters", "centimetres"), 10.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometre", "micrometers"), 0.001),
}
# NRRD's spaces in which ITK knows the patient's axes.
_SPACES = ("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps")
_META_NUMBERS = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NRRD_NUMBERS = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    "float": "f4",
    "double": "f8",
}
_NRRD_ENCODINGS = ("raw", "txt", "text", "ascii", "hex", "gz", "gzip")
_META_END = re.compile(rb"^[ \t]*ElementDataFile\s*=[^\n]*\n", re.MULTILINE | re.IGNORECASE)
_HEADER = 65536  # bytes within which a text header ends


def read_itk(path: Path) -> Stored:
    """Read an image file with SimpleITK.

    Raises:
        VolumeError: see `formats.read_stored`.
        OSError: the file cannot be read.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    text = _Header(path)
    if not text.known:
        raise not_an_image(path)
    text.check()
    _check_data_files(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise text.damaged(error) from error
    size = reader.GetSize()
    shape = three_dimensional(path, size)
    if reader.GetNumberOfComponents() != 1:
        raise not_numbers(path)
    spacing = np.array(reader.GetSpacing()[:3]) * text.factor
    check_spacing(path, spacing.tolist())
    origin = np.array(reader.GetOrigin()[:3]) * text.factor
    directions = np.array(reader.GetDirection()).reshape(len(size), len(size))[:3, :3]
    if (plain := text.plain_voxels()) is not None:
        check_stored_size(path, plain[0], shape, plain[1])
    try:
        packed = text.packed_voxels(shape)
        array = sitk.GetArrayFromImage(reader.Execute()) if packed is None else packed
    except (RuntimeError, zlib.error, gzip.BadGzipFile, EOFError, ValueError) as error:
        raise cut_short(path) from error
    spaced, oriented = text.stated()
    return Stored(
        array.reshape(shape[::-1]).T,
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        directions,
        spaced=spaced,
        oriented=oriented,
        identity=bool(np.allclose(directions, np.eye(3), atol=1e-4)),
        doubts=tuple(text.doubts(directions)),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
    )


def _check_data_files(path: Path) -> None:
    """Refuse a header whose voxels lie in a file that is not there."""
    for file in data_files(path):
        if "%" not in file.name and not file.is_file():
            raise VolumeError(
                path,
                f"its voxels should lie in {file.name!r}, which is not there; copy that file too.",
                code="file-missing",
                field="data file",
                value=file.name,
            )


class _Header:
    """The text in front of a NRRD or MetaImage.

    Attributes:
        known: whether there is such a text.
        factor: mm in its unit of length.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(_HEADER)
        self._path = path
        self._nrrd = head.startswith(b"NRRD")
        mark = re.search(rb"\r?\n\r?\n" if self._nrrd else _META_END, head)
        self._end = mark.end() if mark else 0  # bytes of the text
        self._fields = _nrrd_fields(head) if self._nrrd else _meta_fields(head)
        self.known = self._nrrd or "objecttype" in self._fields or "ndims" in self._fields
        self.unit = self._unit()
        self.factor = UNITS.get(self.unit.lower(), 0.0)

    def check(self) -> None:
        """Refuse a name of another format, by which ITK chooses its reader; a unit that is no length; an unknown encoding;
        a spacing of which ITK would take the absolute value, or 1; a HeaderSize by which it would read the text as voxels.
        """
        kind, suffixes = ("NRRD", (".nrrd", ".nhdr")) if self._nrrd else ("MetaImage", (".mha", ".mhd"))
        if self._path.suffix.lower() not in suffixes:
            raise VolumeError(
                self._path,
                f"it is a {kind}, though its name does not say so; name it {suffixes[0]} or {suffixes[1]}.",
                code="name-misleads",
                field="suffix",
                value=self._path.suffix,
            )
        if not self.factor:
            raise VolumeError(
                self._path,
                f"its lengths are in {self.unit!r}, which is no known unit: give them in mm.",
                code="unit-unknown",
                field="units",
                value=self.unit,
            )
        encoding = self._fields.get("encoding", "raw").lower() if self._nrrd else "raw"
        if encoding not in _NRRD_ENCODINGS:
            raise VolumeError(
                self._path,
                f"its voxels are encoded as {encoding!r}, which is not read here: save it with gzip, or uncompressed.",
                code="encoding-unknown",
                field="encoding",
                value=encoding,
            )
        spacing = self._fields.get("spacings" if self._nrrd else "elementspacing", "").split()
        if any(re.fullmatch(r"-.*|[+]?(?:nan|inf).*|0*[.]?0*", number, re.IGNORECASE) for number in spacing):
            raise impossible_spacing(self._path, spacing)
        local = self._fields.get("elementdatafile", "").upper() in ("LOCAL", "LOCAL_FILE")
        if local and self._fields.get("headersize", "0") not in ("0", "-1"):
            raise self.damaged(RuntimeError("HeaderSize beside voxels in the same file"))

    def damaged(self, error: RuntimeError) -> VolumeError:
        """The refusal of a header that ITK cannot make sense of, as where a NRRD gives its spacing twice."""
        said = str(error).strip().splitlines()[-1].removeprefix("[nrrd] ").strip()
        said = re.sub(r"ITK ERROR: \w+\(0x[0-9a-f]+\): (?:\w+: )?", "", said)
        return VolumeError(
            self._path,
            f"its header cannot be understood ({said}); correct it, or export the scan again.",
            code="header-damaged",
            field="header",
        )

    def stated(self) -> tuple[bool, bool]:
        """Whether the header gives distances, and directions in the patient."""
        fields = self._fields
        if self._nrrd:
            oriented = "space directions" in fields and fields.get("space", "").lower() in _SPACES
            return "space directions" in fields or "spacings" in fields, oriented
        matrix = any(name in fields for name in ("transformmatrix", "orientation", "rotation"))
        return "elementspacing" in fields or "elementsize" in fields, matrix

    def packed_voxels(self, shape: tuple[int, int, int]) -> npt.NDArray[Any] | None:
        """The voxels (k, j, i) of a compressed file; None where they are not compressed, or in a way that is left to ITK.

        ITK takes a NRRD whose last bytes are lost, and of a damaged MetaImage gives whatever is in memory.

        Raises:
            zlib.error, EOFError, ValueError: they are damaged, or not as many as the header says.
            OSError: their file cannot be read.
        """
        return self._packed_nrrd(shape) if self._nrrd else self._packed_metaimage(shape)

    def plain_voxels(self) -> tuple[int, int] | None:
        """Bytes that are stored uncompressed from the first voxel on, and bytes of a voxel; None where that is not plain.

        ITK reads what the header speaks of and leaves the rest.

        Raises:
            OSError: their file cannot be read.
        """
        fields = self._fields
        if self._nrrd:
            number = _NRRD_NUMBERS.get(fields.get("type", "").lower())
            plain = fields.get("encoding", "").lower() == "raw" and self._skips() == {"0"}
        else:
            number = _META_NUMBERS.get(fields.get("elementtype", "").upper())
            packed = fields.get("compresseddata", "").lower() in ("true", "1")
            text = fields.get("binarydata", "true").lower() in ("false", "0")
            plain = not packed and not text and fields.get("headersize", "0") == "0"
        files = data_files(self._path)
        if not plain or number is None or len(files) > 1 or any("%" in file.name for file in files):
            return None
        size = files[0].stat().st_size if files else self._path.stat().st_size - self._end
        return (size, int(number[1])) if files or self._end else None

    def _skips(self) -> set[str]:
        """How much of a NRRD's data file is passed over, in lines and in bytes, as written."""
        return {self._fields.get(f"{what}{space}skip", "0") for what in ("line", "byte") for space in ("", " ")}

    def _packed_nrrd(self, shape: tuple[int, int, int]) -> npt.NDArray[Any] | None:
        fields = self._fields
        number = _NRRD_NUMBERS.get(fields.get("type", "").lower())
        elsewhere = "data file" in fields or "datafile" in fields
        zipped = fields.get("encoding", "").lower() in ("gzip", "gz")
        if not zipped or number is None or elsewhere or self._skips() != {"0"} or fields.get("dimension") != "3":
            return None
        raw = re.split(rb"\r?\n\r?\n", self._path.read_bytes(), maxsplit=1)[1]
        kind = np.dtype(number).newbyteorder(">" if fields.get("endian", "").lower() == "big" else "<")
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
            voxels = packed.read(
                math.prod(shape) * kind.itemsize + 1
            )  # one byte too many is enough to see that it is wrong
        return np.frombuffer(voxels, kind).reshape(shape[::-1])

    def _packed_metaimage(self, shape: tuple[int, int, int]) -> npt.NDArray[Any] | None:
        fields = self._fields
        number = _META_NUMBERS.get(fields.get("elementtype", "").upper())
        if fields.get("compresseddata", "").lower() not in ("true", "1") or number is None:
            return None
        name = fields.get("elementdatafile", "")
        if name.upper() in ("LOCAL", "LOCAL_FILE"):
            raw = self._path.read_bytes()
            mark = _META_END.search(raw)
            raw = raw[mark.end() :] if mark else b""
        else:
            files = data_files(self._path)
            if len(files) != 1 or "%" in files[0].name:
                return None  # a list or a pattern, left to ITK
            raw = files[0].read_bytes()
        big = any(fields.get(key, "").lower() == "true" for key in ("binarydatabyteordermsb", "elementbyteordermsb"))
        kind = np.dtype(number).newbyteorder(">" if big else "<")
        packed = zlib.decompressobj()
        voxels = packed.decompress(raw, math.prod(shape) * kind.itemsize + 1)
        if not packed.eof:
            raise EOFError("the voxels do not end where the header says")
        return np.frombuffer(voxels, kind).reshape(shape[::-1])

    def doubts(self, directions: npt.NDArray[np.float64]) -> list[Doubt]:
        found = [Doubt("units:converted", self.unit)] if self.factor != 1 else []
        return found + ([] if self._nrrd else self._meta_doubts(directions))

    def _meta_doubts(self, directions: npt.NDArray[np.float64]) -> list[Doubt]:
        """AnatomicalOrientation names the side at which each axis begins: RAI for axes to left, posterior, superior."""
        named = self._fields.get("anatomicalorientation", "").upper()[:3]
        if not self.stated()[1] or not re.fullmatch(r"(?=.*[RL])(?=.*[AP])(?=.*[IS])[RLAPIS]{3}", named):
            return []
        order, flips, _ = axis_order(directions)
        actual = [""] * 3
        for patient, (axis, flipped) in enumerate(zip(order, flips, strict=True)):
            actual[axis] = ("LPS" if flipped else "RAI")[patient]
        if "".join(actual) != named:
            return [contradiction(f"AnatomicalOrientation {named}, TransformMatrix {''.join(actual)}")]
        return []

    def _unit(self) -> str:
        if not self._nrrd:
            return self._fields.get("distanceunits", "").strip().strip("?").lower()
        for name in ("space units", "units"):
            quoted: list[str] = re.findall(r'"([^"]*)"', self._fields.get(name, ""))
            if units := sorted({unit.strip() for unit in quoted if unit.strip()}):
                return " and ".join(units)
        return ""


def _nrrd_fields(head: bytes) -> Mapping[str, str]:
    text = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0].decode("utf-8", "replace")
    pairs = (line.partition(":") for line in text.splitlines()[1:] if ":" in line and not line.startswith("#"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs if not value.startswith("=")}


def _meta_fields(head: bytes) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    for line in head.splitlines():
        key, equals, value = line.partition(b"=")
        if not equals or not re.fullmatch(rb"\s*\w+\s*", key):
            break
        fields[key.strip().decode().lower()] = value.strip().decode("utf-8", "replace")
        if key.strip().lower() == b"elementdatafile":
            break
    return fields
