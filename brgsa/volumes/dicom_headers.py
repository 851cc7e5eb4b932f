"""The header of one DICOM file, as far as it matters for a CT volume.

pydicom reads the headers rather than ITK: it takes 0.9 ms a slice instead of 1.5 ms, gives the identifiers as text, and tells
a damaged header from a picture that cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TAGS = [
    "SOPClassUID",
    "ImageType",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AccessionNumber",
    "SamplesPerPixel",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
SUFFIXES = (".dcm", ".dicom", ".ima")
DEFLATED = "1.2.840.10008.1.2.1.99"


class Unreadable(Exception):
    """A file is DICOM by its name or its first bytes, but its header cannot be read."""


@dataclass(frozen=True)
class Frame:
    """One slice: an image file, or a frame of a multi-frame one. A field is None where the header lacks its tag.

    Attributes:
        number: the frame's number in its file, from 0; None in a file of one image.
        series, patient, study, accession: SeriesInstanceUID, PatientID, StudyInstanceUID, AccessionNumber.
        kinds: the values of ImageType.
        samples: values per pixel; 1 unless the picture is in colour.
        matrix: rows and columns.
        spacing: mm between rows and between columns, in DICOM's order.
        orientation: direction cosines of rows and of columns in LPS.
        position: mm in LPS, the centre of the first voxel.
        rescale: slope and intercept of a multi-frame file's frame.
        whole: whether the file is long enough for its pixels.
    """

    file: Path
    number: int | None
    series: str
    patient: str = field(repr=False)
    study: str = field(repr=False)
    accession: str = field(repr=False)
    sop_class: str
    modality: str
    kinds: tuple[str, ...]
    samples: int
    matrix: tuple[int, int]
    spacing: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    rescale: tuple[float, ...] | None
    whole: bool


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name or its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_frames(path: Path) -> list[Frame]:
    """The frames of a file; none where it is not DICOM, or only an index of other files (DICOMDIR).

    Raises:
        Unreadable: the file should be DICOM, but its header is damaged.
    """
    if path.name.upper() == "DICOMDIR":
        return []
    try:
        if not is_dicom(path):
            return []
        return _frames(path)
    except Exception as error:  # pydicom has no one exception for a damaged header
        raise Unreadable(path) from error


def _frames(path: Path) -> list[Frame]:
    from pydicom import dcmread

    with path.open("rb") as stream:
        # Files of old archives lack the preamble that dcmread asks for; only their names tell that they are DICOM.
        header = dcmread(stream, stop_before_pixels=True, specific_tags=TAGS, force=path.suffix.lower() in SUFFIXES)
        left = path.stat().st_size - stream.tell()
    count = int(header.get("NumberOfFrames") or 1)
    shared = _first(header, "SharedFunctionalGroupsSequence")
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    several = count > 1 or bool(groups)
    return [
        Frame(
            file=path,
            number=number if several else None,
            series=str(header.SeriesInstanceUID),
            patient=str(header.get("PatientID") or ""),
            study=str(header.get("StudyInstanceUID") or ""),
            accession=str(header.get("AccessionNumber") or ""),
            sop_class=str(header.get("SOPClassUID") or ""),
            modality=str(header.get("Modality") or ""),
            kinds=_kinds(header),
            samples=int(header.get("SamplesPerPixel") or 1),
            matrix=(int(header.get("Rows") or 0), int(header.get("Columns") or 0)),
            whole=left >= _pixel_bytes(header) * count,
            **_geometry(header, groups[number] if number < len(groups) else None, shared),
        )
        for number in range(count)
    ]


def _geometry(header: Any, group: Any, shared: Any) -> dict[str, tuple[float, ...] | None]:
    """Spacing, orientation, position and rescale, from the frame's functional groups, or else from the header itself."""

    def numbers(macro: str, attributes: tuple[str, ...], count: int) -> tuple[float, ...] | None:
        """The first source's numbers under these attributes; None where no source has `count` of them."""
        for source in (_first(group, macro), _first(shared, macro), header):
            values = [_list(source.get(name)) for name in attributes] if source is not None else []
            flat = tuple(float(value) for part in values for value in part)
            if len(flat) == count:
                return flat
        return None

    return {
        "spacing": numbers("PixelMeasuresSequence", ("PixelSpacing",), 2),
        "orientation": numbers("PlaneOrientationSequence", ("ImageOrientationPatient",), 6),
        "position": numbers("PlanePositionSequence", ("ImagePositionPatient",), 3),
        "rescale": numbers("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept"), 2),
    }


def _pixel_bytes(header: Any) -> int:
    """The least length in bytes of a frame's pixels; 1 where they are compressed, as any length may be right then."""
    meta = getattr(header, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    if syntax is not None and (syntax == DEFLATED or syntax.is_compressed):
        return 1
    size = int(header.get("Rows") or 0) * int(header.get("Columns") or 0) * int(header.get("SamplesPerPixel") or 1)
    return size * (int(header.get("BitsAllocated") or 0) // 8)


def _kinds(header: Any) -> tuple[str, ...]:
    return tuple(str(kind).upper() for kind in _list(header.get("ImageType")))


def _list(value: Any) -> list[Any]:
    if value is None or isinstance(value, str):
        return [value] if value else []
    return list(value) if hasattr(value, "__iter__") else [value]


def _first(dataset: Any, name: str) -> Any:
    """The first item of a sequence; None where there is none."""
    items = dataset.get(name) if dataset is not None else None
    return items[0] if items else None
