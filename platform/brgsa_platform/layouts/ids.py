"""Identifiers by kind: whose id a table's column holds, one text form of an id, and the form that shows near misses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".npz", ".dcm")

_WHOLE = re.compile(r"([+-]?(?:0|[1-9][0-9]*))\.0+")
_BLANK = "".join(chr(c) for c in range(0x3001) if chr(c).isspace()) + "\u200b\ufeff"
_DECIMALS = re.compile(r"(?<=[0-9])(?:\.0+)+$")
_LEADING_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")
_NOT_IN_KEY = re.compile(r"[\s_\-./]+")
# What programs and people write where there is nothing.
_NOTHING = frozenset({"na", "n/a", "n.a.", "#n/a", "<na>", "nan", "null", "none", "unknown", "-", "--", "?"})


class IdKind(StrEnum):
    """What an identifier names. An id is only ever compared with ids of its own kind.

    The order is that in which a table's columns are tried as its key: from one reconstruction to the whole patient.
    """

    VOLUME = "volume"
    FILE = "file"
    SERIES = "SeriesInstanceUID"
    SCAN = "scan"
    ACCESSION = "accession number"
    STUDY = "StudyInstanceUID"
    FOLDER = "folder"
    PATIENT = "patient"


# Column (in the form of `column_key`) → kind of id; None where the name does not say it.
ID_COLUMNS: Mapping[str, IdKind | None] = {
    "volumename": IdKind.VOLUME,
    "volumeid": IdKind.VOLUME,
    "volumeaccdeid": IdKind.VOLUME,
    "volume": IdKind.VOLUME,
    "filename": IdKind.FILE,
    "file": IdKind.FILE,
    "seriesinstanceuid": IdKind.SERIES,
    "series": IdKind.SERIES,
    "scanid": IdKind.SCAN,
    "noteaccdeid": IdKind.SCAN,
    "accessionno": IdKind.ACCESSION,
    "accessionnumber": IdKind.ACCESSION,
    "accession": IdKind.ACCESSION,
    "studyinstanceuid": IdKind.STUDY,
    "studyid": IdKind.STUDY,
    "folder": IdKind.FOLDER,
    "patientid": IdKind.PATIENT,
    "mrndeid": IdKind.PATIENT,
    "id": None,
}
# How a person writes a column of a kind, for messages.
COLUMN_OF: Mapping[IdKind, str] = {
    IdKind.VOLUME: "VolumeName",
    IdKind.FILE: "file",
    IdKind.SERIES: "SeriesInstanceUID",
    IdKind.SCAN: "scan_id",
    IdKind.ACCESSION: "AccessionNumber",
    IdKind.STUDY: "StudyInstanceUID",
    IdKind.FOLDER: "folder",
    IdKind.PATIENT: "patient_id",
}


@lru_cache(maxsize=2**14)
def column_key(name: str) -> str:
    """A column's name without case, blanks, underscores, hyphens, dots and slashes."""
    return _NOT_IN_KEY.sub("", name.casefold())


def canonical_id(text: str) -> str:
    """The one form in which an id is compared and stored: without blanks around it, and a whole number without decimals.

    `7`, ` 7` and `7.0` (as programs write a column of numbers with gaps) are 7; `007` stays as it is written. Letters with
    accents have one form too, for a Mac's file names have another than tables.
    """
    text = unicodedata.normalize("NFC", text).strip(_BLANK)
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def is_nothing(text: str) -> bool:
    """Whether a cell is empty, or holds one of the words that stand for nothing: NA, nan, null."""
    word = text.strip(_BLANK).casefold()
    return not word or word in _NOTHING


def owner_id(text: str) -> str:
    """A scan's or a patient's id in its one form; empty for `NA` and the like, which would make one scan of many."""
    return "" if is_nothing(text) else canonical_id(text)


def loose_id(text: str) -> str:
    """An id without case, leading zeros and decimals of a number: two ids that agree in it may be one id written twice."""
    return _LEADING_ZEROS.sub("", _DECIMALS.sub("", canonical_id(text).casefold())).strip()


def file_name(text: str) -> str:
    """The id in the path of a volume's file: without folders and the suffix of an image, such as .nii.gz."""
    return canonical_id(without_suffix(re.split(r"[/\\]", text.strip().rstrip("/\\"))[-1]))


def folders_in(text: str) -> tuple[str, ...]:
    """The folders in the path of a volume's file, the nearest first, up to one that is not named (`..`)."""
    folders = []
    for part in reversed(re.split(r"[/\\]", text.strip().rstrip("/\\"))[:-1]):
        if part == "..":
            break
        if part not in ("", "."):
            folders.append(unicodedata.normalize("NFC", part).strip(_BLANK))
    return tuple(folders)


def without_suffix(name: str) -> str:
    """A volume's file name without the suffix of an image, such as .nii.gz."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def id_in(kind: IdKind, text: str) -> str:
    """A cell as an id of a kind; empty where it holds none."""
    if is_nothing(text):
        return ""  # before the path in `n/a` is looked at
    if kind is IdKind.VOLUME:
        return canonical_id(without_suffix(text.strip()))
    if kind is IdKind.FILE:
        return file_name(text)
    if kind in (IdKind.SERIES, IdKind.STUDY):
        return text.strip()  # a UID's components are numbers, and 1.0 is not 1
    return canonical_id(text.strip().strip("/\\")) if kind is IdKind.FOLDER else canonical_id(text)


def key_in(kind: IdKind, text: str) -> str:
    """A cell as the key of its row: as `id_in`, and of a file with the folders that its path names."""
    name = id_in(kind, text)
    return "/".join((*reversed(folders_in(text)), name)) if name and kind is IdKind.FILE else name
