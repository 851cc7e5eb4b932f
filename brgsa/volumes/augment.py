"""Geometric augmentation on CPU data workers, int16 in and int16 out: random crop, flips, quarter turns in plane.

All of it is a view of the decoded volume, copied once, into the batch's slot. Where MONAI has the same transform (SpatialCrop,
Flip, Rotate90) the voxels are MONAI's. Intensities change on the training device (see `intensity`), so that data workers need
no torch. The method's own augmentation is the random crop alone (arXiv 2501.03565); everything else is off by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes import transforms

Shape = tuple[int, int, int]
Volume16 = npt.NDArray[np.int16]

IN_PLANE = (0, 1)


def centre_crop(volume: Volume16, crop: Shape) -> Volume16:
    """The middle `crop` voxels (x, y, z) of a volume at least that large, as a view."""
    starts = [(have - want) // 2 for have, want in zip(volume.shape, crop, strict=True)]
    return volume[tuple(slice(s, s + want) for s, want in zip(starts, crop, strict=True))]


@dataclass(frozen=True)
class Placement:
    """Where a crop of `crop` voxels (x, y, z) starts, which axes are flipped, and by how many quarter turns it is turned."""

    starts: Shape
    crop: Shape
    flips: tuple[bool, bool, bool] = (False, False, False)
    turns: int = 0

    def view(self, volume: Volume16) -> Volume16:
        """The placed crop as a view of the volume: crop, then flips, then quarter turns from x to y."""
        window = zip(self.starts, self.crop, strict=True)
        placed = volume[tuple(slice(start, start + size) for start, size in window)]
        placed = placed[tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flips)]
        return np.rot90(placed, self.turns, axes=IN_PLANE) if self.turns else placed


@dataclass(frozen=True)
class Augmentation:
    """What a data worker does to a training volume; a function of seed, epoch and row alone.

    Attributes:
        flip: chance of a flip along x (left-right), y and z.
        rotate: chance of 1, 2 or 3 quarter turns in plane; crops must be square there.
        transforms: MONAI transforms by name, after the others (see brgsa.volumes.transforms).
    """

    seed: int
    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotate: float = 0.0
    transforms: tuple[Mapping[str, Any], ...] = ()

    def place(self, volume: Volume16, out: Volume16, epoch: int, row: int) -> None:
        """Write an augmented crop of `out`'s shape (x, y, z) into `out`, from a volume at least that large."""
        rng = np.random.default_rng([self.seed, epoch, row])
        placed = self.draw(rng, volume.shape, out.shape).view(volume)
        if self.transforms:
            placed = transforms.apply(self.transforms, placed, seed=int(rng.integers(2**32)))
        out[...] = placed

    def draw(self, rng: np.random.Generator, have: tuple[int, ...], crop: tuple[int, ...]) -> Placement:
        """A random placement of a crop in a volume of shape `have`."""
        x, y, z = (int(rng.integers(0, h - c + 1)) for h, c in zip(have, crop, strict=True))
        flips = rng.random(3) < self.flip
        turns = int(rng.integers(1, 4)) if rng.random() < self.rotate else 0
        return Placement(
            (x, y, z), (crop[0], crop[1], crop[2]), (bool(flips[0]), bool(flips[1]), bool(flips[2])), turns
        )
