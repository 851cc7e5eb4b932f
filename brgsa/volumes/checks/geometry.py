"""One check of a scan's geometry, whatever format it comes from: is this where and how large a chest can be?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brgsa.volumes.stored import Doubt, millimetres
from brgsa.volumes.volume import axis_order

ACROSS = (150.0, 700.0)  # mm that the field of view of a chest CT is wide and deep
ALONG = (100.0, 2500.0)  # mm from the first to the last slice, both included: no chest is shorter, no table longer
LARGEST_SHEAR = 0.5  # degrees between two axes, off a right angle
MOST_SHEAR = 45.0  # degrees; no gantry tilts by more than 30
LARGEST_TILT = 10.0  # degrees off the patient's axes


@dataclass(frozen=True)
class GeometryReport:
    """What a scan's geometry is, and what is odd in it.

    Attributes:
        extent: mm along the patient's x, y, z.
        tilt: largest angle in degrees between an axis of the scan and the patient axis that it becomes.
        shear: largest angle in degrees by which two of its axes miss a right angle.
        doubts: all that is odd.
    """

    extent: tuple[float, float, float]
    tilt: float
    shear: float
    doubts: tuple[Doubt, ...]

    @property
    def refused(self) -> Doubt | None:
        """The first doubt for which the scan is refused, unless its geometry is trusted."""
        return next((doubt for doubt in self.doubts if doubt.refused), None)


def check_geometry(
    shape: Sequence[int],
    spacing: Sequence[float],
    directions: npt.NDArray[np.float64],
    *,
    bare: bool = False,
    doubts: Sequence[Doubt] = (),
) -> GeometryReport:
    """Judge a scan's geometry.

    Args:
        shape: voxels along its three axes.
        spacing: mm along them.
        directions: float64 (3, 3); column a is the unit direction of axis a in LPS.
        bare: the file's axes are its format's own, as a program writes them that knows no better.
        doubts: what its reader found.
    """
    shear = shear_of(directions)
    order, _, tilt = axis_order(directions)
    found = list(doubts)
    if shear > MOST_SHEAR:
        found.insert(0, Doubt("shear:implausible", f"{shear:.1f}°", refused=True, final=True))
    elif shear > LARGEST_SHEAR:
        upright, heights = upright_frame(spacing, directions)
        order, _, tilt = axis_order(upright)
        spacing = heights
    extent = (
        shape[order[0]] * spacing[order[0]],
        shape[order[1]] * spacing[order[1]],
        shape[order[2]] * spacing[order[2]],
    )
    ranges = (ACROSS, ACROSS, ALONG)
    if not all(low <= round(size, 3) <= high for size, (low, high) in zip(extent, ranges, strict=True)):
        found.append(Doubt("size:implausible", millimetres(extent), refused=True))
    if bare and np.allclose(spacing, 1.0, atol=1e-4):
        found.append(Doubt("spacing:unit", millimetres(spacing)))
    if LARGEST_SHEAR < shear <= MOST_SHEAR:
        found.append(Doubt("shear:corrected", f"{shear:.1f}°"))
    if tilt > LARGEST_TILT:
        found.append(Doubt("orientation:tilted", f"{tilt:.1f}°"))
    return GeometryReport(extent, tilt, shear, tuple(found))


def shear_of(directions: npt.NDArray[np.float64]) -> float:
    """The largest angle in degrees by which two axes (columns of (3, 3)) miss a right angle."""
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(np.clip(cosines, 0, 1))).max())


def upright_frame(
    spacing: Sequence[float], directions: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], tuple[float, float, float]]:
    """Axes at right angles for a sheared scan, and the distances of its voxels along them.

    One axis is kept, and one of the planes through it. Of the choices, which describe the same picture, the one that stands
    most upright in the patient is taken.

    Returns:
        float64 (3, 3), a column for each axis of the scan, and mm along each.
    """
    frames = []
    for first, second, third in ((0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0)):
        a = directions[:, first]
        b = directions[:, second] - (directions[:, second] @ a) * a
        b /= np.linalg.norm(b)
        c = np.cross(a, b)
        c *= np.sign(c @ directions[:, third])
        frame = np.empty((3, 3))
        frame[:, first], frame[:, second], frame[:, third] = a, b, c
        frames.append(frame)
    frame = min(frames, key=lambda f: round(axis_order(f)[2], 3))
    heights = np.abs(np.sum(frame * directions, axis=0)) * np.asarray(spacing)
    return frame, (float(heights[0]), float(heights[1]), float(heights[2]))
