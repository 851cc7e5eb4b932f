"""The grid that all volumes of a store share, and the resampling onto it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brgsa.errors import UserError
from brgsa.volumes.volume import Volume

if TYPE_CHECKING:
    from scipy import sparse

AIR = -1000.0  # HU
Kernel = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _nearest(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where((distance > -0.5) & (distance <= 0.5), 1.0, 0.0)  # of two equally near voxels the higher, as in ITK


def _linear(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weight: npt.NDArray[np.float64] = np.maximum(1 - np.abs(distance), 0)
    return weight


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -1/2."""
    d = np.abs(distance)
    far = np.where(d < 2, ((-0.5 * d + 2.5) * d - 4) * d + 2, 0.0)
    return np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, far)


# Weight of a source voxel by its distance (in voxels) from the target, and how far the weight reaches.
KERNELS: dict[str, tuple[Kernel, float]] = {
    "linear": (_linear, 1.0),
    "nearest": (_nearest, 0.5),
    "cubic": (_cubic, 2.0),
}


@dataclass(frozen=True)
class Geometry:
    """Grid and intensity range of standardised volumes; the defaults are the paper's.

    Attributes:
        spacing: mm between voxel centres along x, y, z.
        shape: voxels along x, y, z.
        clip: lowest and highest HU kept.
        antialias: where the grid is coarser than the scan, average over the target voxel (a triangle filter as wide as the
            step). Plain linear interpolation ignores the voxels between its samples. For grids much coarser than the scans,
            and for linear interpolation only.
        interpolation: "linear" (the same numbers as ITK), "nearest", or "cubic" (convolution with Keys' kernel, a = -1/2,
            which may overshoot by some HU at edges).

    Raises:
        UserError: a value that cannot be; the error names the field.
    """

    spacing: tuple[float, float, float] = (1.5, 1.5, 3.0)
    shape: tuple[int, int, int] = (256, 256, 128)
    clip: tuple[float, float] = (-1000.0, 1000.0)
    antialias: bool = False
    interpolation: str = "linear"

    def __post_init__(self) -> None:
        if len(self.spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in self.spacing):
            raise self._refusal("spacing", f"must be three positive numbers of mm, not {self.spacing}.")
        if len(self.shape) != 3 or not all(isinstance(n, int) and n > 0 for n in self.shape):
            raise self._refusal("shape", f"must be three positive whole numbers of voxels, not {self.shape}.")
        if len(self.clip) != 2 or not -32768 <= self.clip[0] < self.clip[1] <= 32767:
            raise self._refusal("clip", f"must be a lower and a higher HU within 16 bits, not {self.clip}.")
        if self.interpolation not in KERNELS:
            raise self._refusal("interpolation", f"must be one of {', '.join(KERNELS)}, not {self.interpolation!r}.")
        if self.antialias and self.interpolation != "linear":
            raise self._refusal("antialias", "goes with linear interpolation only: leave one of them out.")

    def _refusal(self, name: str, what: str) -> UserError:
        field = f"geometry.{name}"
        return UserError(f"{field} {what}", code="impossible-value", field=field, value=getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain lists, numbers and booleans, as JSON keeps them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Geometry:
        """The inverse of `to_dict`; missing fields take their defaults.

        Raises:
            UserError: an unknown field, or a value that cannot be.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            field = f"geometry.{min(unknown)}"
            raise UserError(f"{field} is unknown: geometry has {known}.", code="unknown-field", field=field)
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def standardize(volume: Volume, geometry: Geometry) -> npt.NDArray[np.int16]:
    """A volume on the grid of `geometry`: resampled about its centre, cropped or padded with air, clipped.

    The middle of the scan becomes the middle of the grid. Each axis is interpolated after the other: every kernel here is a
    product over the axes, so the numbers are the same for a fraction of the work. Up to half a voxel outside the scan the
    value is that of its border, as in ITK; beyond that it is air.

    Returns:
        int16 HU (x, y, z), C-ordered, of `geometry.shape`.
    """
    low, high = geometry.clip
    out = np.full(geometry.shape, max(AIR, low), dtype=np.int16)
    axes = [
        _axis(have, want, there / here, geometry)
        for have, here, want, there in zip(
            volume.array.shape, volume.spacing, geometry.shape, geometry.spacing, strict=True
        )
    ]
    (inside_x, weights_x), (inside_y, weights_y), (inside_z, weights_z) = axes
    # Slice by slice, then across slices: little memory is used at once, and slices that no target needs are not touched.
    needed = np.unique(weights_z.indices)
    planes = np.empty((len(needed), weights_x.shape[0], weights_y.shape[0]), dtype=np.float32)
    for plane, k in zip(planes, needed, strict=True):
        rows = weights_y @ np.ascontiguousarray(volume.array[:, :, k].T, dtype=np.float32)
        plane[...] = weights_x @ rows.T
    resampled = weights_z[:, needed] @ planes.reshape(len(needed), -1)
    np.rint(np.clip(resampled, low, high, out=resampled), out=resampled)
    whole = resampled.astype(np.int16).reshape(-1, *planes.shape[1:])
    out[inside_x, inside_y, inside_z] = whole.transpose(1, 2, 0)
    return out


def _axis(have: int, want: int, step: float, geometry: Geometry) -> tuple[slice, sparse.csr_matrix]:
    """The interpolation along one axis, from `have` source voxels to `want` target voxels, `step` source voxels apart.

    Returns:
        The targets inside the scan, and the matrix of weights (targets inside, have) that gives their values.
    """
    from scipy import sparse

    kernel, reach = KERNELS[geometry.interpolation]
    width = max(1.0, step) if geometry.antialias else 1.0
    centres = (np.arange(want) - (want - 1) / 2) * step + (have - 1) / 2
    inside = np.flatnonzero((centres >= -0.5) & (centres <= have - 0.5))
    if not len(inside):  # the grid's step is wider than the scan, whose middle is between two targets
        inside = np.array([(want - 1) // 2])
    centres = np.clip(centres[inside], 0, have - 1)
    reach *= width
    taps = np.floor(centres - reach).astype(np.int64)[:, None] + np.arange(math.ceil(2 * reach) + 2)
    weights = kernel((taps - centres[:, None]) / width) * ((taps >= 0) & (taps < have))
    weights /= weights.sum(axis=1, keepdims=True)
    row, tap = np.nonzero(weights)
    matrix = sparse.csr_matrix(
        (weights[row, tap].astype(np.float32), (row, taps[row, tap])), shape=(len(centres), have)
    )
    return slice(int(inside[0]), int(inside[-1]) + 1), matrix
