"""Whether a volume's slices make one chest: what no header tells, judged from the voxels.

At most 32 by 32 voxels of each slice are looked at. `docs/decisions.md` has the figures of real scans behind each limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes.stored import Doubt

SAMPLE = 32  # voxels along x and y
OUTLIERS = 0.01  # share of the values at either end that tell nothing of the shape: metal, padding
NEIGHBOURS = 20.0  # mm: voxels so far apart are still alike in a chest, and not in noise, however smooth
LEAST_ALIKE = 0.4  # correlation of such voxels along the axis where it is highest: 0.75 or more in real scans
ENLARGED = 0.4  # share of the columns that equal the one before: half of them at twice the size
NEAR = 4  # pairs of slices on either side with which a pair is compared
JUMP = 2.0  # times as different as any pair near it: at most 1.14 in real scans
MOST_JUMP = 2.5  # times as different as the pairs usually are: at most 1.77 in phantoms, 1.41 in real scans
ANATOMY = 1.25  # how much more slices differ at twice the distance: less where noise is all that differs


def check_picture(volume: npt.NDArray[Any], spacing: Sequence[float]) -> list[Doubt]:
    """What is odd in the picture of a volume (x, y, z) in HU, whose voxels are `spacing` mm apart.

    Blank slices hold one value. Repeated slices have the voxels of one before them, to the last bit. At a jump, two slices
    differ far more than any pair near them. Noise has no neighbours alike, however far its values are those of a chest.
    """
    steps = [-(-n // SAMPLE) for n in volume.shape[:2]]
    slices = np.ascontiguousarray(volume[:: steps[0], :: steps[1]].transpose(2, 0, 1))
    found = []
    blank = slices.max(axis=(1, 2)) == slices.min(axis=(1, 2))
    if blank.any():
        found.append(Doubt("slices:blank", f"{int(blank.sum())} of {len(slices)}"))
    slices = slices[~blank]
    if len(slices) < 2:
        return found
    repeated = len(slices) - len({picture.tobytes() for picture in slices})
    if repeated and not _enlarged(volume[:, :, volume.shape[2] // 2]):
        found.append(Doubt("slices:repeated", f"{repeated} of {len(blank)}"))
    ends = np.quantile(slices[:: -(-len(slices) // SAMPLE)], (OUTLIERS, 1 - OUTLIERS))
    slices = slices.astype(np.float32).clip(*ends)
    alike = _likeness(slices, (spacing[2], spacing[0] * steps[0], spacing[1] * steps[1]))
    if alike < LEAST_ALIKE:
        found.append(Doubt("voxels:noise", f"correlation {alike:.2f}"))
    elif not repeated and (jump := _jump(slices)):
        # Blank slices were left out, so numbers count from the first that is not.
        number = int(np.flatnonzero(~blank)[jump[0]]) + 1
        found.append(Doubt("slices:jump", f"{jump[1]:.1f} times, after slice {number} of {len(blank)}"))
    return found


def _enlarged(picture: npt.NDArray[Any]) -> bool:
    """Whether a slice (x, y) repeats its columns, too, as a volume does that was enlarged by repeating voxels: not odd."""
    told = picture.max(axis=1) > picture.min(axis=1)
    equal = (picture[1:] == picture[:-1]).all(axis=1) & told[1:]
    return bool(equal.sum() >= ENLARGED * told.sum() > 0)


def _likeness(slices: npt.NDArray[np.float32], spacing: Sequence[float]) -> float:
    """The correlation of voxels some `NEIGHBOURS` mm apart, along the axis where it is highest."""
    best = 0.0
    for axis, step in enumerate(spacing):
        n = slices.shape[axis]
        apart = min(max(1, round(NEIGHBOURS / step)), max(1, n // 4))
        if n > apart:
            before, behind = (np.take(slices, range(at, n - apart + at), axis).ravel() for at in (0, apart))
            before, behind = before - before.mean(), behind - behind.mean()
            scale = float(np.sqrt((before @ before) * (behind @ behind)))
            best = max(best, float(before @ behind) / scale if scale else 1.0)
    return best


def _jump(slices: npt.NDArray[np.float32]) -> tuple[int, float] | None:
    """Behind which of the slices (n, x, y) the picture jumps, and how many times any change near it; None where it does not.

    Nothing is said of slices that differ by noise alone, where the border of anything drawn is a jump.
    """
    if len(slices) < 2 * NEAR:
        return None
    change = np.abs(np.diff(slices, axis=0)).mean(axis=(1, 2))
    usual = float(np.median(change))
    twice = float(np.median(np.abs(slices[2:] - slices[:-2]).mean(axis=(1, 2))))
    at = int(change.argmax())
    near = float(np.concatenate([change[max(0, at - NEAR) : at], change[at + 1 : at + 1 + NEAR]]).max())
    if twice < ANATOMY * usual or change[at] < MOST_JUMP * usual or change[at] < JUMP * near:
        return None
    return at, float(change[at]) / near
