"""A CT volume in Hounsfield units and canonical orientation."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Placement:
    """How a volume's array lies in its file, and the file's voxels in the patient.

    Attributes:
        affine: float64 (4, 4): indices (i, j, k) in the file to mm in LPS, as the file's header says. A sheared scan has
            that of its upright grid.
        order: the file's axis that became x, y, z.
        flips: whether it was turned round.
    """

    affine: npt.NDArray[np.float64]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def to_file(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array (x, y, z) in the file's own axes (i, j, k); a view."""
        turned = array[tuple(slice(None, None, -1 if flip else None) for flip in self.flips)]
        return turned.transpose(tuple(int(i) for i in np.argsort(self.order)))


@dataclass(frozen=True)
class Volume:
    """A CT volume in Hounsfield units.

    Attributes:
        array: HU (x, y, z), int16 where they are whole numbers and float32 otherwise, in any memory order. x goes to the
            patient's left, y to posterior, z to superior.
        spacing: mm between voxel centres along x, y, z.
        source: the file that it was read from.
        flags: notes of the reader, each "topic:note": the origin of rescale and geometry, and what looks odd.
        placement: where it lies in its file and in the patient; None for a volume that no file holds.
    """

    array: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    spacing: tuple[float, float, float]
    source: str = ""
    flags: tuple[str, ...] = ()
    placement: Placement | None = None


def axis_order(directions: npt.NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], float]:
    """The permutation and flips that bring array axes closest to the patient's.

    Args:
        directions: float64 (3, 3); column a is the unit direction of array axis a in LPS (x to left, y to posterior, z to
            superior).

    Returns:
        The array axis that becomes x, y, z; whether each is flipped; and the largest angle in degrees between an array axis
        and the patient axis that it becomes (0 for a straight scan).
    """
    cosines = np.abs(directions)
    order = max(
        itertools.permutations(range(3)), key=lambda axes: float(sum(cosines[p, a] for p, a in enumerate(axes)))
    )
    flips = tuple(bool(directions[p, a] < 0) for p, a in enumerate(order))
    smallest = min(float(cosines[p, a]) for p, a in enumerate(order))
    tilt = float(np.degrees(np.arccos(np.clip(smallest, 0.0, 1.0))))
    return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2]), tilt


def reorient(
    array: npt.NDArray[Any], spacing: tuple[float, ...], directions: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[Any], tuple[float, float, float], float]:
    """An array in canonical orientation: x to the patient's left, y to posterior, z to superior.

    Args:
        array: three axes, in any orientation.
        spacing: mm along the array's own axes.
        directions: as for `axis_order`.

    Returns:
        The array (a view) and the spacing in canonical order, and the tilt that remains, in degrees.
    """
    order, flips, tilt = axis_order(directions)
    turned = array.transpose(order)[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return turned, (spacing[order[0]], spacing[order[1]], spacing[order[2]]), tilt
