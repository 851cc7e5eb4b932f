"""RAD-ChestCT's `.npz` files.

The axes of their arrays go from superior to inferior, anterior to posterior, right to left: Draelos'
ct-volume-preprocessing sorts slices by falling position and transposes to (slices, rows, columns), and the archive's
Extrema CSV names the limits of the lungs in the same way (`sup_axis0min`, `ant_axis1min`, `rig_axis2min`). Values are HU as
int16, clipped to ±1000; voxels are 0.8 mm wide in every direction.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from brgsa.volumes.errors import VolumeError, cut_short
from brgsa.volumes.formats.shape import three_dimensional
from brgsa.volumes.stored import Stored

KEY = "ct"
SPACING = (0.8, 0.8, 0.8)  # mm
DIRECTIONS = np.diag([1.0, 1.0, -1.0])  # of columns, rows and slices, in LPS


def read_npz(path: Path) -> Stored:
    """Read a RAD-ChestCT file, which is there and not empty; nothing in it is unpickled.

    Raises:
        VolumeError: the file is cut short or no `.npz`, or has no 3-D array `ct` of plain numbers.
    """
    if not zipfile.is_zipfile(path):
        raise cut_short(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if KEY not in arrays:
                held = ", ".join(arrays.files) or "none"
                raise VolumeError(
                    path,
                    f"it has no array {KEY!r} (it holds: {held}); give RAD-ChestCT's own files.",
                    code="array-missing",
                    field=KEY,
                    value=held,
                )
            array = arrays[KEY]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise cut_short(path) from error
    except ValueError as error:  # an array of Python objects, which only unpickling would read
        raise _not_numbers(path) from error
    if array.dtype.kind not in "iuf":
        raise _not_numbers(path)
    shape = three_dimensional(path, array.shape)
    return Stored(array.reshape(shape).transpose(2, 1, 0), SPACING, DIRECTIONS, stated=False)


def _not_numbers(path: Path) -> VolumeError:
    return VolumeError(
        path,
        f"its array {KEY!r} holds no plain numbers; give RAD-ChestCT's own files.",
        code="voxels-not-numbers",
        field=KEY,
    )
