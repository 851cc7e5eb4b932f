"""Whether stored values are Hounsfield units already, judged from the voxels.

CT-RATE's first release holds the scanner's values (HU only after slope and intercept of the metadata table), its later
release holds HU. The table is the same for both, so only the voxels can tell whether to apply it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

AIR, SOFT_TISSUE = (-1100.0, -700.0), (-150.0, 150.0)  # HU of air and lung, and of fat, water and muscle
PLAUSIBLE = 0.005  # share of its voxels that a chest CT has at least in each of the two ranges
BRIGHT, MOST_BRIGHT = 300.0, 0.3  # HU of bone and contrast, and the largest share of a chest's voxels above
FILLED = 0.15  # share of the voxels with one value, from which that is a filling: in real scans under 1 % have one
AIR_AT_MOST, BONE = -950.0, 1000.0  # HU: the lowest value of any scan is lower, and values from here on may be cut off
# Shares of the voxels at the lower and the upper end of a window: of a scan at most 0.00001 have its highest value.
CLIPPED_LOW, CLIPPED_HIGH = 0.05, 0.001
# How often the end is there for each time that the next value is, how many voxels have it at least, and HU between the two.
PILE, FEWEST, STEP = 5, 8, 25.0
SAMPLE = 48  # voxels along an axis


def sample(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """At most 48³ voxels, taken evenly from a volume (x, y, z), as float32 (n,)."""
    steps = tuple(slice(None, None, -(-n // SAMPLE)) for n in array.shape)
    return np.asarray(array[steps], dtype=np.float32).ravel()


def likeness(values: npt.NDArray[np.float32]) -> float:
    """How much values (n,) look like a chest in HU: the smaller of the shares of air-like and of tissue-like voxels.

    Both are needed: after one rescale too many, soft tissue has the values of air, and nothing has those of soft tissue. The
    lowest value is left out, as it is mostly the scanner's filling outside its field of view.
    """
    inside = values[values > values.min()]
    if not len(inside):
        return 0.0
    return min(float(np.mean((inside >= low) & (inside <= high))) for low, high in (AIR, SOFT_TISSUE))


def is_bright(values: npt.NDArray[np.float32]) -> bool:
    """Whether more of the values (n,) are bone's and contrast's than of any chest: an inverted picture's are."""
    return float(np.mean(values > BRIGHT)) > MOST_BRIGHT


def filling(values: npt.NDArray[np.float32]) -> float | None:
    """The one value, not air's or lung's, that many of the values (n,) have, as behind a mask; None where there is none."""
    found, counts = np.unique(values[values > AIR[1]], return_counts=True)
    if not len(found) or counts.max() < FILLED * len(values):
        return None
    return float(found[counts.argmax()])


def clipped(values: npt.NDArray[np.float32]) -> str | None:
    """The window to which the values (n,) were cut off, as "below -160 HU, above 240 HU"; None where they were not.

    At the end of a window values pile up, and those beside it are there, too.
    """
    low, high = float(values.min()), float(values.max())
    found = []
    if low > AIR_AT_MOST and _piles_up(-values, CLIPPED_LOW):
        found.append(f"below {low:g} HU")
    if high < BONE and _piles_up(values, CLIPPED_HIGH):
        found.append(f"above {high:g} HU")
    return ", ".join(found) or None


def _piles_up(values: npt.NDArray[np.float32], share: float) -> bool:
    """Whether the highest of the values (n,) is that of so large a share of them, and of many more than the next one is."""
    top = values.max()
    below = values[values < top]
    piled = len(values) - len(below)
    if piled < max(share * len(values), FEWEST) or not len(below) or top - below.max() > STEP:
        return False
    return piled >= PILE * int((below == below.max()).sum())


def needs_rescale(values: npt.NDArray[np.float32], slope: float, intercept: float) -> tuple[bool, bool]:
    """Whether values (n,) still need the table's slope and intercept, and whether that is sure.

    It is not sure for a volume that looks like a chest both ways, or neither way. Of the latter, those without a value below
    zero are taken for the scanner's own values.
    """
    if (slope, intercept) == (1.0, 0.0):
        return False, True
    as_they_are, rescaled = likeness(values), likeness(values * np.float32(slope) + np.float32(intercept))
    better, worse = max(as_they_are, rescaled), min(as_they_are, rescaled)
    if better < PLAUSIBLE:
        return bool(intercept < 0 <= values.min()), False
    return rescaled > as_they_are, worse < better / 4


def taken_back(values: npt.NDArray[np.float32], slope: float, intercept: float) -> npt.NDArray[np.float32]:
    """The values (n,) with one rescale undone: a chest in HU, where it was applied once too often."""
    return (values - np.float32(intercept)) / np.float32(slope)
