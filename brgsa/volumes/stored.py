"""An image as its file holds it, and what a reader doubts in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Doubt:
    """Something in a file that casts doubt on the volume, or is worth to be kept with it.

    Attributes:
        flag: the volume's flag, "topic:note"; `quality_flags` says what it means.
        numbers: what was found, as "64×56×24 mm"; it stands behind the flag.
        refused: whether the volume is refused for it unless the user trusts the file's geometry.
        final: whether it is refused even then.
    """

    flag: str
    numbers: str = ""
    refused: bool = False
    final: bool = False

    def __str__(self) -> str:
        return f"{self.flag} {self.numbers}".rstrip()


@dataclass(frozen=True)
class Stored:
    """An image as its file holds it.

    Attributes:
        array: voxels (i, j, k) of any number type, i the fastest in the file, with the header's own rescale applied.
        spacing: mm along i, j, k, whatever the file's unit.
        directions: float64 (3, 3); column a is the unit direction of axis a in LPS. They need not be at right angles.
        spaced, oriented: whether the header gives the distances of the voxels, and the directions of the axes in the patient.
        identity: whether the file's axes are those of its own format, unturned: what a program writes that knows none.
        stated: whether the file itself gives any geometry; if not, it is the one that the archive publishes.
        doubts: what the header says twice and differently, or in another unit.
        origin: mm in LPS of the middle of the first voxel.
    """

    array: npt.NDArray[Any]
    spacing: tuple[float, float, float]
    directions: npt.NDArray[np.float64]
    spaced: bool = True
    oriented: bool = True
    identity: bool = False
    stated: bool = True
    doubts: tuple[Doubt, ...] = ()
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """float64 (4, 4): a voxel's indices (i, j, k) to mm in LPS, as the file says."""
        return to_affine(self.spacing, self.directions, self.origin)


def to_affine(
    spacing: tuple[float, float, float], directions: npt.NDArray[np.float64], origin: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Spacing, directions and origin, all as in `Stored`, as one matrix (4, 4)."""
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = origin
    return affine


def millimetres(numbers: Any) -> str:
    """Lengths as a flag gives them: "64×56×24 mm"."""
    return "×".join(f"{float(n):.4g}" for n in numbers) + " mm"


def contradiction(what: str) -> Doubt:
    """Two forms of one header say different things."""
    return Doubt("geometry:contradictory", what, refused=True)
