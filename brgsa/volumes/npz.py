"""RAD-ChestCT's `.npz` files.

Their arrays run superior to inferior, anterior to posterior, right to left: Draelos' ct-volume-preprocessing sorts slices
by falling position and transposes to (slices, rows, columns), and names the limits of the lungs accordingly in the
archive's Extrema CSV (`sup_axis0min`, `ant_axis1min`, `rig_axis2min`). Values are HU as int16, clipped to ±1000; voxels
are 0.8 mm wide in every direction.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from brgsa.volumes.errors import VolumeError
from brgsa.volumes.files import CUT_SHORT, Stored, three_dimensional

KEY = "ct"
NO_NUMBERS = f"its array {KEY!r} holds no plain numbers; give RAD-ChestCT's own files."
SPACING = (0.8, 0.8, 0.8)  # mm
DIRECTIONS = np.diag([1.0, 1.0, -1.0])  # of columns, rows and slices, in LPS


def read_npz(path: Path) -> Stored:
    """Read a RAD-ChestCT file; what lies in it is never unpickled.

    Raises:
        VolumeError: the file is missing, empty, cut short, no `.npz`, has no array `ct` of plain numbers, or not a 3-D one.
    """
    if not path.is_file():
        raise VolumeError(path, "there is no such file.")
    if path.stat().st_size == 0:
        raise VolumeError(path, "the file is empty (0 bytes); copy it again from its source.")
    if not zipfile.is_zipfile(path):
        raise VolumeError(path, CUT_SHORT)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if KEY not in arrays:
                held = ", ".join(arrays.files) or "none"
                raise VolumeError(path, f"it has no array {KEY!r} (it holds: {held}); give RAD-ChestCT's own files.")
            array = arrays[KEY]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise VolumeError(path, CUT_SHORT) from error
    except ValueError as error:  # an array of Python objects, which only unpickling would read
        raise VolumeError(path, NO_NUMBERS) from error
    if array.dtype.kind not in "iuf":
        raise VolumeError(path, NO_NUMBERS)
    shape = three_dimensional(path, array.shape)
    return Stored(array.reshape(shape).transpose(2, 1, 0), SPACING, DIRECTIONS, stated=False)
