"""Headers whose voxels lie in other files: which files they lead to."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO


def data_files(path: Path) -> list[Path]:
    """The files of voxels that a header of NRRD or MetaImage points to, as absolute paths; none where the voxels are in it
    or the file is something else or cannot be read.

    A pattern of files (`slice%03d.raw`) gives one path with the pattern in it.
    """
    try:
        with path.open("rb") as file:
            if path.suffix.lower() in (".mha", ".mhd"):
                named, rest = _field(file, rb"\s*ElementDataFile\s*[=:]\s*(\S.*?)\s*$", end=None)
            elif file.read(4) == b"NRRD":
                named, rest = _field(file, rb"(?i)data ?file\s*:\s*(\S.*?)\s*$", end=b"")
            else:
                return []
    except OSError:
        return []
    folder = os.path.dirname(os.path.abspath(path))
    return [Path(os.path.normpath(os.path.join(folder, os.fsdecode(name)))) for name in _names(named, rest)]


def _field(file: BinaryIO, pattern: bytes, end: bytes | None) -> tuple[bytes, list[bytes]]:
    """The value of a text header's field, and the lines behind it where it is a list; empty where the header has none.

    Args:
        pattern: of the field's line.
        end: the line at which the header ends; None where it ends with the field.
    """
    for line in file:
        if end is not None and line.strip() == end:
            break
        if found := re.match(pattern, line):
            return found[1], file.read().splitlines() if found[1].split()[0].upper() == b"LIST" else []
    return b"", []


def _names(named: bytes, rest: Sequence[bytes]) -> list[bytes]:
    """The files that a field names: itself, those of the list behind it, or a pattern with its first and last number."""
    if rest:
        return [line.strip() for line in rest if line.strip()]
    if not named or named.upper() in (b"LOCAL", b"LOCAL_FILE"):
        return []
    pattern = re.match(rb"(.*%.*?)\s+-?\d+\s+-?\d+", named)
    return [pattern[1] if pattern else named]
