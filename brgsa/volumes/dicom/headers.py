"""The header of one DICOM slice, as far as it matters for a CT volume.

pydicom reads the headers rather than ITK: it takes a millisecond a slice, gives the identifiers as text, and tells a damaged
header from a picture that cannot be read. A value that cannot be read is kept as a fault of its slice; the rest of the header
still says which series it touches.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

SUFFIXES = (".dcm", ".dicom", ".ima")
DEFLATED = "1.2.840.10008.1.2.1.99"
MOST_INFLATED = 1032  # bytes out of one byte of deflate
MOST_FRAMES = 2**16  # of a file: a perfusion of four dimensions has some ten thousand
DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory, whatever the file's name
# CT, enhanced CT and legacy converted CT; of others, the header's own tags tell that they hold a picture.
IMAGES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
PIXELS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # the tag of PixelData, in either order of bytes
# How a file without DICOM's preamble begins: its first element is of group 0002 or 0008, in either order of bytes.
_BARE = re.compile(rb"(?:[\x02\x08]\x00.\x00(?:[A-Z]{2}|..\x00\x00)|\x00\x08\x00.[A-Z]{2})", re.DOTALL)

# What slices of one volume have in common, and where a multi-frame file keeps it.
TRAITS: dict[str, tuple[str, str]] = {
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "IrradiationEventUID": ("CTAcquisitionDetailsSequence", "IrradiationEventUID"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "NominalPercentageOfCardiacPhase": ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    "StackID": ("FrameContentSequence", "StackID"),
    "SeriesNumber": ("", ""),
    "SeriesDescription": ("", ""),
    "FrameOfReferenceUID": ("", ""),
    "PatientPosition": ("", ""),
    "ImageType": ("CTImageFrameTypeSequence", "FrameType"),
    "ConvolutionKernel": ("CTReconstructionSequence", "ConvolutionKernel"),
    "FilterType": ("CTXRayDetailsSequence", "FilterType"),
    "KVP": ("CTXRayDetailsSequence", "KVP"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "ContrastBolusAgent": ("", ""),
    "RescaleType": ("PixelValueTransformationSequence", "RescaleType"),
}
ASCII = ("DS", "IS", "CS", "UI", "TM", "DA", "DT")  # which no character set changes
ROUNDED = ("KVP", "SliceThickness")  # numbers that scanners write with more digits than they mean
ACQUISITION = (
    "AcquisitionNumber",
    "IrradiationEventUID",
)  # which some scanners count anew for each position of the table
TAGS = [
    *TRAITS,
    *(
        "SOPClassUID",
        "SOPInstanceUID",
        "Modality",
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "AccessionNumber",
    ),
    *("InstanceNumber", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "NumberOfFrames"),
    *("SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
    *("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "RealWorldValueMappingSequence"),
    *("FileSetID", "FileSetConsistencyFlag"),
]


class Unreadable(Exception):
    """A file is DICOM by its name or its first bytes, but its header does not even tell the series."""


@dataclass(frozen=True)
class SliceHeader:
    """One slice: an image file, or a frame of a multi-frame one. A field is None or empty where the header lacks its tag.

    Attributes:
        file: where it lies.
        frame: its number in the file, from 0; None in a file of one image.
        patient, study, accession, series, instance: PatientID, StudyInstanceUID, AccessionNumber, SeriesInstanceUID,
            SOPInstanceUID.
        number: InstanceNumber.
        sop_class, modality: SOPClassUID, Modality.
        units: what stored values mean where that is not HU by their RescaleType: units of a RealWorldValueMapping.
        samples: values per pixel; 1 unless the picture is in colour.
        matrix: rows and columns.
        spacing: mm between rows and between columns, in DICOM's order.
        orientation: direction cosines of rows and of columns in LPS.
        position: mm in LPS, the centre of the first voxel.
        rescale: slope and intercept.
        padding: lowest and highest stored value of the filling outside the picture.
        time: of the acquisition, in seconds.
        traits: for each of `TRAITS`, its text.
        whole: whether the file is long enough for its pixels.
        commas: whether numbers are written with a decimal comma.
        faults: tags whose value cannot be read, and that value.
    """

    file: Path = field(compare=False)
    frame: int | None
    patient: str = field(repr=False)
    study: str = field(repr=False)
    accession: str = field(repr=False)
    series: str = field(repr=False)
    instance: str = field(repr=False)
    number: int | None
    sop_class: str
    modality: str
    units: str
    samples: int
    matrix: tuple[int, int]
    spacing: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    rescale: tuple[float, ...] | None
    padding: tuple[int, int] | None
    time: float | None
    traits: dict[str, str] = field(repr=False)
    whole: bool
    commas: bool
    faults: tuple[tuple[str, str], ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The values of ImageType."""
        return tuple(self.traits["ImageType"].upper().split("\\"))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name or its first bytes, with or without the preamble."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(132)
    return head[128:] == b"DICM" or _BARE.match(head) is not None


def read_headers(path: Path) -> list[SliceHeader]:
    """The slices of a file; none where it is not DICOM, or only an index of other files (DICOMDIR, DIRFILE).

    Raises:
        Unreadable: the file should be DICOM, but its header is damaged.
    """
    if path.name.upper() == "DICOMDIR":
        return []
    try:
        return list(_headers(path)) if is_dicom(path) else []
    except Exception as error:  # pydicom has no one exception for a damaged header
        raise Unreadable(path) from error


def _headers(path: Path) -> Iterator[SliceHeader]:
    from pydicom import dcmread

    with path.open("rb") as stream:
        # Files of old archives lack the preamble that dcmread asks for.
        header = dcmread(stream, stop_before_pixels=True, specific_tags=TAGS, force=True)
        start, left = stream.read(12), path.stat().st_size - stream.tell()
    meta = getattr(header, "file_meta", None) or {}
    if str(meta.get("MediaStorageSOPClassUID") or "") == DIRECTORY or "FileSetConsistencyFlag" in header:
        return
    syntax = meta.get("TransferSyntaxUID")
    shared = _first(header, "SharedFunctionalGroupsSequence")
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    image, deflated = _is_image(header), syntax == DEFLATED
    count = max(1, int(header.get("NumberOfFrames") or 1)) if image else 1
    if (image and not deflated and start[:4] not in PIXELS) or not (image or header.get("SeriesInstanceUID")):
        raise Unreadable(path)  # it ends within the header: its last tag, be it the series, may be half of it
    length = _pixel_bytes(header, syntax) * count
    held = _may_inflate(path, length) if deflated else _holds(start, left, length)
    whole = not image or (held and count <= MOST_FRAMES and len(groups) in (0, count))
    several = count > 1 or bool(groups)
    for number in range(count if whole else 1):  # a damaged file may claim any number of frames
        group = groups[number] if number < len(groups) else None
        yield _header(path, number if several else None, _Tags(header, group, shared), whole)


def _header(path: Path, frame: int | None, tags: _Tags, whole: bool) -> SliceHeader:
    values = "PixelValueTransformationSequence"
    slope, intercept = tags.numbers("RescaleSlope", 1, values), tags.numbers("RescaleIntercept", 1, values)
    number = tags.numbers("InstanceNumber", 1)
    tags.check_bits()
    return SliceHeader(
        file=path,
        frame=frame,
        patient=tags.text("PatientID"),
        study=tags.text("StudyInstanceUID"),
        accession=tags.text("AccessionNumber"),
        series=tags.text("SeriesInstanceUID"),
        instance=tags.text("SOPInstanceUID"),
        number=int(number[0]) if number else None,
        sop_class=tags.text("SOPClassUID"),
        modality=tags.text("Modality"),
        units=tags.units(),
        samples=int((tags.numbers("SamplesPerPixel", 1) or (1,))[0]),
        matrix=(int((tags.numbers("Rows", 1) or (0,))[0]), int((tags.numbers("Columns", 1) or (0,))[0])),
        spacing=tags.numbers("PixelSpacing", 2, "PixelMeasuresSequence"),
        orientation=tags.numbers("ImageOrientationPatient", 6, "PlaneOrientationSequence"),
        position=tags.numbers("ImagePositionPatient", 3, "PlanePositionSequence"),
        rescale=(*slope, *intercept) if slope and intercept else None,
        padding=tags.padding(),
        time=tags.time(),
        traits={name: tags.trait(name, *place) for name, place in TRAITS.items()},
        whole=whole,
        commas=tags.commas,
        faults=tuple(tags.faults.items()),
    )


class _Tags:
    """A slice's values: from its frame's functional groups, then those that all frames share, then the header itself.

    Attributes:
        faults: tag → text of the values that could not be read as numbers.
        commas: whether a number was written with a decimal comma.
    """

    def __init__(self, header: Any, group: Any, shared: Any) -> None:
        self._header, self._groups = header, [source for source in (group, shared) if source is not None]
        self.faults: dict[str, str] = {}
        self.commas = False

    def text(self, name: str) -> str:
        return "\\".join(str(value) for value in _listed(_value(self._header, name))).strip()

    def trait(self, name: str, macro: str, attribute: str) -> str:
        """A value as text in which equal values are equal."""
        for source, place in self._sources(name, macro, attribute):
            if values := _listed(_value(source, place)):
                return "\\".join(_rounded(v) if name in ROUNDED else str(v).strip() for v in values)
        return ""

    def numbers(self, name: str, count: int, macro: str = "") -> tuple[float, ...] | None:
        """The numbers of the first source that has this tag; None where none has it, or where they are no `count` numbers."""
        for source, attribute in self._sources(name, macro, name):
            texts = [str(v) for v in _listed(_value(source, attribute))]
            if not texts:
                continue
            try:
                found = tuple(float(text.replace(",", ".")) for text in texts)
            except ValueError:
                found = ()
            if len(found) != count or not all(map(math.isfinite, found)):
                self.faults[name] = "\\".join(texts)
                return None
            self.commas |= any("," in text for text in texts)
            return found
        return None

    def padding(self) -> tuple[int, int] | None:
        """PixelPaddingValue up to PixelPaddingRangeLimit, as stored values are, whatever sign the tag was written with."""
        value, limit = self.numbers("PixelPaddingValue", 1), self.numbers("PixelPaddingRangeLimit", 1)
        if value is None:
            return None
        bits = int((self.numbers("BitsAllocated", 1) or (16,))[0])
        signed = bool((self.numbers("PixelRepresentation", 1) or (0,))[0])
        ends = []
        for number in (value, limit or value):
            wrapped = int(number[0]) % 2**bits
            ends.append(wrapped - 2**bits if signed and wrapped >= 2 ** (bits - 1) else wrapped)
        return min(ends), max(ends)

    def check_bits(self) -> None:
        """A fault where stored values do not fill the lowest bits, as DICOM asks: no reader here shifts them."""
        high, stored = self.numbers("HighBit", 1), self.numbers("BitsStored", 1)
        if high and stored and high[0] != stored[0] - 1:
            self.faults["HighBit"] = f"{high[0]:.0f} of {stored[0]:.0f} bits"

    def units(self) -> str:
        """Units of the header's RealWorldValueMapping, as "[hnsf'U]" or "mg/cm3"."""
        mappings = (_first(source, "RealWorldValueMappingSequence") for source in (*self._groups, self._header))
        mapping = next((mapping for mapping in mappings if mapping is not None), None)
        return "".join(map(str, _listed(_value(_first(mapping, "MeasurementUnitsCodeSequence"), "CodeValue"))))

    def time(self) -> float | None:
        """The time of acquisition in seconds; None where it is not given, or only its day."""
        for source, attribute in self._sources(
            "AcquisitionDateTime", "FrameContentSequence", "FrameAcquisitionDateTime"
        ):
            if text := "".join(map(str, _listed(_value(source, attribute)))):
                return _seconds(text[:8], text[8:])
        return _seconds(self.text("AcquisitionDate"), self.text("AcquisitionTime"))

    def _sources(self, name: str, macro: str, attribute: str) -> Iterator[tuple[Any, str]]:
        for group in self._groups if macro else ():
            if (item := _first(group, macro)) is not None:
                yield item, attribute
        yield self._header, name


def _value(dataset: Any, name: str) -> Any:
    """A tag's value, as text where DICOM writes it so; the text in the file where pydicom cannot convert it."""
    element = None if dataset is None else dataset.get_item(_tag(name))
    if element is None:
        return None
    raw = element.value if element.VR in ASCII else None
    if not isinstance(raw, bytes):
        try:
            return dataset.get(name)
        except Exception:  # of any kind, by the value
            raw = element.value if isinstance(element.value, bytes) else str(element.value).encode()
    # Converting takes pydicom as long as reading the header.
    return [part for text in raw.decode("latin-1").split("\\") if (part := text.strip(" \0"))]


@functools.cache
def _tag(name: str) -> Any:
    from pydicom.tag import Tag

    return Tag(name)


def _rounded(value: Any) -> str:
    text = str(value).strip()
    try:
        return f"{float(text.replace(',', '.')):.4g}"
    except ValueError:
        return text


def _seconds(day: str, time: str) -> float | None:
    digits = time.replace(":", "")
    match = re.match(r"(\d\d)(\d\d)(\d\d(?:\.\d+)?)", digits)
    if match is None:
        return None
    try:
        days = datetime.strptime(day.replace(".", "")[:8], "%Y%m%d").toordinal() if day else 0
    except ValueError:
        days = 0
    return days * 86400 + int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _is_image(header: Any) -> bool:
    return "Rows" in header or header.get("Modality") == "CT" or header.get("SOPClassUID") in IMAGES


def _holds(start: bytes, left: int, length: int) -> bool:
    """Whether a file goes on with so many bytes of pixels.

    Args:
        start: the 12 bytes behind the header, the element of the pixels.
        left: bytes behind those.
        length: bytes of all pixels.
    """
    explicit = start[4:6] in (b"OW", b"OB", b"OF", b"OD", b"UN")
    return left + (0 if explicit else 4) >= length


def _may_inflate(path: Path, length: int) -> bool:
    """Whether a deflated file may hold so many bytes of pixels."""
    return path.stat().st_size * MOST_INFLATED >= length


def _pixel_bytes(header: Any, syntax: Any) -> int:
    """The least length in bytes of a frame's pixels; 1 where they are compressed, as any length may be right then."""
    if syntax is not None and syntax.is_compressed:
        return 1
    size = int(header.get("Rows") or 0) * int(header.get("Columns") or 0) * int(header.get("SamplesPerPixel") or 1)
    return max(1, size * (int(header.get("BitsAllocated") or 0) // 8))


def _listed(value: Any) -> list[Any]:
    if value is None or isinstance(value, str):
        return [value] if value else []
    return list(value) if hasattr(value, "__iter__") else [value]


def _first(dataset: Any, name: str) -> Any:
    """The first item of a sequence; None where there is none."""
    items = _value(dataset, name)
    return items[0] if items else None
