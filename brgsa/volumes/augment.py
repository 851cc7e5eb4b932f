"""Geometric augmentation on CPU data workers, int16 in and int16 out: random crop, flips, quarter turns in plane.

The crop is a view of the decoded volume and is copied once, into its place in the batch. The voxels are those of MONAI's
SpatialCrop, Flip and Rotate90. Intensities change on the training device (see `intensity`), so that data workers need no
torch. The paper's augmentation is the random crop alone (arXiv 2501.03565); everything else is off by default.
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
    """The middle `crop` voxels of a volume (x, y, z) at least that large, as a view."""
    starts = [(have - want) // 2 for have, want in zip(volume.shape, crop, strict=True)]
    return volume[tuple(slice(s, s + want) for s, want in zip(starts, crop, strict=True))]


@dataclass(frozen=True)
class Placement:
    """One crop of a volume.

    Attributes:
        starts: its first voxel along x, y, z.
        crop: its voxels along x, y, z.
        flips: whether x, y, z are flipped.
        turns: quarter turns in plane, from x to y.
    """

    starts: Shape
    crop: Shape
    flips: tuple[bool, bool, bool] = (False, False, False)
    turns: int = 0

    def view(self, volume: Volume16) -> Volume16:
        """The crop as a view of the volume (x, y, z): first cropped, then flipped, then turned."""
        window = zip(self.starts, self.crop, strict=True)
        placed = volume[tuple(slice(start, start + size) for start, size in window)]
        placed = placed[tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flips)]
        return np.rot90(placed, self.turns, axes=IN_PLANE) if self.turns else placed


@dataclass(frozen=True)
class Augmentation:
    """What a data worker does to a training volume: a function of seed, epoch and row alone.

    Attributes:
        flip: probability of a flip along x (left-right), y and z.
        rotate: probability of 1, 2 or 3 quarter turns in plane, for which crops must be square there.
        transforms: MONAI transforms by name, applied last (see brgsa.volumes.transforms).
    """

    seed: int
    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotate: float = 0.0
    transforms: tuple[Mapping[str, Any], ...] = ()

    def place(self, volume: Volume16, out: Volume16, epoch: int, row: int) -> None:
        """Write an augmented crop of a volume into `out`.

        Args:
            volume: int16 HU (x, y, z), at least as large as `out`.
            out: int16 (x, y, z); its shape is the crop's.
            epoch, row: decide the draw, with the seed.
        """
        rng = np.random.default_rng([self.seed, epoch, row])
        placed = self.draw(rng, volume.shape, out.shape).view(volume)
        if self.transforms:
            placed = transforms.apply(self.transforms, placed, seed=int(rng.integers(2**32)))
        out[...] = placed

    def draw(self, rng: np.random.Generator, have: tuple[int, ...], crop: tuple[int, ...]) -> Placement:
        """A random placement of a crop of shape `crop` in a volume of shape `have`."""
        x, y, z = (int(rng.integers(0, h - c + 1)) for h, c in zip(have, crop, strict=True))
        flips = rng.random(3) < self.flip
        turns = int(rng.integers(1, 4)) if rng.random() < self.rotate else 0
        return Placement(
            (x, y, z), (crop[0], crop[1], crop[2]), (bool(flips[0]), bool(flips[1]), bool(flips[2])), turns
        )
