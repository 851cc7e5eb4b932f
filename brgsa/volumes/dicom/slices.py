"""Which pictures of a DICOM series are slices of a CT in HU, each judged by itself, and which are copies of others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from brgsa.volumes.dicom.headers import SliceHeader

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7."  # the UIDs of its multi-frame kinds begin with this, too
HOUNSFIELD = ("", "US", "HU", "[hnsf'U]")  # US: unspecified; the voxels tell, as where there is no RescaleType


def _words(*words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Z])(?:{'|'.join(words)})(?![A-Z])", re.IGNORECASE)


SCREENS = _words(
    "SCREEN ?(?:SAVE|SHOT|CAPTURE)", "DOSE[ _]?(?:INFO|REPORT|SHEET|SUMMARY)?", "PATIENT PROTOCOL", "REPORT"
)
PROJECTIONS = _words("T?MIP", "MIN_?IP", "MAX_?IP", "MN?IP", "PROJECTION(?: IMAGE)?", "VRT", "VOLREND", "SSD", "CPR")
MAPS = _words(
    *("IODINE(?:[ _-]?(?:MAP|OVERLAY|DENSITY|NO WATER))", "Z[ _-]?EFF(?:ECTIVE)?", "EFF(?:ECTIVE)?[ _-]?(?:Z|ATOMIC)"),
    *(
        "EFF_ATOMIC_NUM(?:BER)?",
        "ELECTRON[ _]?DENSITY",
        "MAT_(?:SPECIFIC|FRACTIONAL|VALUE_BASED|REMOVED|MODIFIED)",
        "PBV",
    ),
    *("IODINE", "PERFUSION", "RHO"),
)
REFORMATTED = _words("MPR", "REFORMATTED", "RESAMPLED")


class Refusal(NamedTuple):
    """Why pictures cannot be used as a CT volume.

    Attributes:
        code: the kind of fault, as in `UserError`.
        reason: what is wrong and how to mend it.
        value: the tag or the number at fault, where there is one.
        field: the tag.
    """

    code: str
    reason: str
    value: object = None
    field: str = ""


def why_no_slice(header: SliceHeader, beside_originals: bool) -> Refusal | None:
    """Why a picture is no slice of a CT in HU, by itself; None where it may be one.

    Args:
        beside_originals: whether its series has slices that the scanner itself made.
    """
    kinds, description = " \\ ".join(header.kinds), header.traits["SeriesDescription"]
    if header.samples != 1 or f"{header.sop_class}.".startswith(SECONDARY_CAPTURE) or SCREENS.search(kinds):
        return Refusal(
            "secondary-capture", "it is a secondary capture or a colour picture, no CT slice; nothing has to be done."
        )
    if header.modality != "CT":
        what = header.modality or "not given"
        return Refusal("not-ct", f"its modality is {what}, not CT; leave it out.", header.modality)
    if "LOCALIZER" in header.kinds:
        return Refusal("localizer", "it is a localizer (scout), no volume; nothing has to be done.")
    if not header.series:
        reason = "it has no SeriesInstanceUID; export the series again, with it."
        return Refusal("tag-missing", reason, "SeriesInstanceUID", "SeriesInstanceUID")
    derived = "DERIVED" in header.kinds
    if PROJECTIONS.search(kinds) or (derived and PROJECTIONS.search(description)):
        return Refusal(
            "projection", "it is a projection (MIP or the like), no slice; give the series that it is made of."
        )
    if derived and beside_originals and REFORMATTED.search(kinds):
        return Refusal("reformatted", "it is reformatted from the slices of its own series; nothing has to be done.")
    unit = header.traits["RescaleType"] or header.units
    if unit.upper() not in map(str.upper, HOUNSFIELD):
        return Refusal("not-hu", f"its values are {unit}, not HU; give the series in HU.", unit, "RescaleType")
    if MAPS.search(kinds) or (derived and MAPS.search(description)):
        return Refusal("not-hu", "it is a map of a material, not a CT in HU; give the series in HU.", "", "ImageType")
    return None


def may_be_projected(header: SliceHeader) -> bool:
    """Whether a slice that calls itself ORIGINAL is described as a projection."""
    return PROJECTIONS.search(header.traits["SeriesDescription"]) is not None


def without_copies(headers: Sequence[SliceHeader]) -> list[SliceHeader]:
    """The slices, with those once that lie there twice: with the same header and the same pixels, in whatever file."""
    kept: dict[tuple[object, ...], list[SliceHeader]] = {}
    digests: dict[Path, bytes] = {}
    for header in headers:
        alike = kept.setdefault((header.position, header.frame), [])
        if not any(
            replace(other, instance="") == replace(header, instance="")
            and other.file != header.file
            and _digest(other.file, digests) == _digest(header.file, digests)
            for other in alike
        ):
            alike.append(header)
    return [header for alike in kept.values() for header in alike]


def _digest(file: Path, known: dict[Path, bytes]) -> bytes:
    """Hash of a file's stored pixels."""
    if file not in known:
        from pydicom import dcmread

        try:
            known[file] = hashlib.sha256(dcmread(file, force=True).get("PixelData", b"")).digest()
        except Exception:  # it cannot be read, and is no copy of any
            known[file] = str(file).encode()
    return known[file]
