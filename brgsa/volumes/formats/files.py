"""One image file, whatever its format."""

from __future__ import annotations

from pathlib import Path

from brgsa.volumes.errors import empty, missing, unreadable
from brgsa.volumes.formats.itk import read_itk
from brgsa.volumes.formats.nifti import is_nifti, read_nifti
from brgsa.volumes.formats.npz import read_npz
from brgsa.volumes.stored import Stored


def read_stored(path: Path) -> Stored:
    """Read an image file.

    Raises:
        VolumeError: the file is missing, empty, cut short, not an image, not 3-D, or of an impossible spacing.
    """
    if not path.is_file():
        raise missing(path)
    try:
        if path.stat().st_size == 0:
            raise empty(path)
        if path.suffix.lower() == ".npz":
            return read_npz(path)
        return read_nifti(path) if is_nifti(path) else read_itk(path)
    except OSError as error:
        raise unreadable(path, error) from error
