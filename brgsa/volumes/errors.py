"""The refusal of one volume, and the refusals that several readers share."""

from __future__ import annotations

import os
from pathlib import Path

from brgsa.errors import UserError


class VolumeError(UserError):
    """A file that cannot be used as a CT volume.

    Attributes:
        path: the file as the caller gave it.
        reason: what is wrong with it and how to fix it, without the file's name; the message is "path: reason".
        code, field, value: as in `UserError`; the field is one of the file's header or of its metadata row.
    """

    def __init__(self, path: Path | str, reason: str, *, code: str = "", field: str = "", value: object = None) -> None:
        super().__init__(f"{path}: {reason}", code=code, field=field, value=value)
        self.path = str(path)
        self.reason = reason
        self.args = (self.path, reason)  # pickle calls the class with these

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def missing(path: Path) -> VolumeError:
    """There is no file of that name."""
    return VolumeError(path, "there is no such file.", code="file-missing")


def empty(path: Path) -> VolumeError:
    """The file has no byte."""
    return VolumeError(path, "the file is empty (0 bytes); copy it again from its source.", code="file-empty")


def cut_short(path: Path) -> VolumeError:
    """The file ends before its contents do, or they are damaged."""
    return VolumeError(path, "the file is cut short or damaged; copy it again from its source.", code="file-damaged")


def left_over(path: Path, number: int, field: str = "shape") -> VolumeError:
    """More voxels are stored than the header speaks of, so it gives a wrong size."""
    return VolumeError(
        path,
        f"it holds {number:,} bytes more than the size in its header needs, at least a whole row or column of voxels: correct "
        "the size, or export the scan again.",
        code="size-contradictory",
        field=field,
        value=number,
    )


def unreadable(path: Path, error: OSError) -> VolumeError:
    """The system does not let the file, or the folder, be read."""
    what = "folder" if os.path.isdir(path) else "file"  # Path.is_dir raises where the folder above is closed
    return VolumeError(path, f"the {what} cannot be read ({error.strerror or error}).", code="file-unreadable")
