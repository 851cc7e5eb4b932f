"""A CT volume in Hounsfield units and canonical orientation."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Volume:
    """A CT volume in Hounsfield units.

    Attributes:
        array: HU (x, y, z), float32 or, where they are whole numbers, int16, in any memory order: x to the patient's left,
            y to posterior, z to superior.
        spacing: mm between voxel centres along x, y, z.
        source: the file that it was read from.
        flags: what was found on reading, each "topic:finding": where rescale and geometry came from, what looks odd.
    """

    array: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    spacing: tuple[float, float, float]
    source: str = ""
    flags: tuple[str, ...] = ()


def axis_order(directions: npt.NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], float]:
    """How array axes lie in the patient: the closest permutation and flips.

    Args:
        directions: (3, 3); column a is the unit direction of array axis a in LPS (x to left, y to posterior, z to
            superior).

    Returns:
        the array axis that becomes x, y, z; whether each is to be turned round; and the largest angle in degrees between
        an array axis and the patient axis that it becomes (0 for a straight scan).
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
    """Array (a view) and spacing in canonical order (x to left, y to posterior, z to superior), and the tilt left over.

    Arguments as for `axis_order`; `spacing` goes along the array's own axes.
    """
    order, flips, tilt = axis_order(directions)
    turned = array.transpose(order)[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return turned, (spacing[order[0]], spacing[order[1]], spacing[order[2]]), tilt
