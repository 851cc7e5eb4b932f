"""The grid on which a phantom is painted: signed distances become partial-volume weights, and weights mix HU.

Lengths are mm in the patient frame: x to the left, y to posterior, z to superior, with the origin in the middle of the scan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Array = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]

EVERYWHERE: Box = (slice(None), slice(None), slice(None))
_BANK_SHAPE = (136, 136, 72)
_TEXTURES: dict[str, tuple[Point, float]] = {
    # Gaussian widths in voxels (x, y, z); share of the noise of doubled width that is subtracted (a band-pass, like CT's ramp
    # filter).
    "soft": ((0.9, 0.9, 0.35), 0.5),
    "sharp": ((0.5, 0.5, 0.2), 0.9),
    "smooth": ((3.2, 3.2, 2.3), 0.0),
}


@cache
def _bank(texture: str) -> Array:
    """A block of noise with mean 0 and deviation 1, the same in every process; scans use flipped parts of it."""
    sigma, subtracted = _TEXTURES[texture]
    white = np.random.default_rng(sorted(_TEXTURES).index(texture)).standard_normal(_BANK_SHAPE, dtype=np.float32)
    noise = gaussian_filter(white, sigma, mode="wrap")
    if subtracted:
        noise = noise - subtracted * gaussian_filter(white, [2 * s for s in sigma], mode="wrap")
    scaled: Array = ((noise - noise.mean()) / noise.std()).astype(np.float32)
    return scaled


def texture(name: str, shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    """A random part of the noise block `name` ("soft", "sharp" or "smooth"), flipped at random: float32 of `shape`."""
    bank = _bank(name)
    cut = [slice(o := int(rng.integers(0, b - n + 1)), o + n) for n, b in zip(shape, bank.shape, strict=True)]
    turned = bank[tuple(cut)]
    return turned[tuple(slice(None, None, -1 if rng.random() < 0.5 else 1) for _ in range(3))]


def weight(depth: npt.NDArray[np.floating], edge: float) -> Array:
    """Partial-volume weight, float32 in [0, 1], of a signed depth in mm (positive inside), for an edge `edge` mm wide."""
    share: Array = np.clip(depth * np.float32(1 / edge) + np.float32(0.5), 0, 1).astype(np.float32, copy=False)
    return share


@dataclass
class Canvas:
    """A scan while it is painted.

    Attributes:
        shape, spacing: voxels and mm along x, y, z.
        hu: float32 (x, y, z), starting as air.
        lung: float32 (x, y, z), the share of each voxel that is lung.
        axes: the coordinates of the voxels along x, y, z in mm, shaped to broadcast.
    """

    shape: tuple[int, int, int]
    spacing: Point
    hu: Array = field(init=False)
    lung: Array = field(init=False)
    axes: tuple[Array, Array, Array] = field(init=False)

    def __post_init__(self) -> None:
        self.hu = np.full(self.shape, -1000, np.float32)
        self.lung = np.zeros(self.shape, np.float32)
        x, y, z = (
            (np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(self.shape, self.spacing, strict=True)
        )
        self.axes = (x[:, None, None], y[None, :, None], z[None, None, :])

    @property
    def edge(self) -> float:
        """Width of a sharp edge in mm: one voxel in plane."""
        return self.spacing[0]

    def texture(self, name: str, rng: np.random.Generator) -> Array:
        """A random part of the noise block `name`, float32 (x, y, z) as the canvas."""
        return texture(name, self.shape, rng)

    def box(self, centre: Point, reach: Point) -> Box:
        """The part of the grid within `reach` of `centre` (mm); it may be empty."""
        cuts = []
        for axis, n, s in zip(range(3), self.shape, self.spacing, strict=True):
            middle = centre[axis] / s + (n - 1) / 2
            low, high = int(middle - reach[axis] / s) - 1, int(middle + reach[axis] / s) + 3
            cuts.append(slice(min(max(low, 0), n), min(max(high, 0), n)))
        return cuts[0], cuts[1], cuts[2]

    def coordinates(self, box: Box) -> tuple[Array, Array, Array]:
        """The axes within a box, in mm, shaped to broadcast."""
        return self.axes[0][box[0]], self.axes[1][:, box[1]], self.axes[2][:, :, box[2]]

    def ellipsoid(self, centre: Point, radii: Point, turn: float = 0.0, margin: float = 0.0) -> tuple[Box, Array]:
        """The box around an ellipsoid, and the signed depth in it (mm, positive inside).

        Args:
            centre, radii: mm.
            turn: radians in the axial plane.
            margin: mm by which the box is wider than the ellipsoid, for soft or bumpy edges.
        """
        c, s = float(np.cos(turn)), float(np.sin(turn))
        reach = (
            float(np.hypot(radii[0] * c, radii[1] * s)) + margin,
            float(np.hypot(radii[0] * s, radii[1] * c)) + margin,
            radii[2] + margin,
        )
        box = self.box(centre, reach)
        x, y, z = (a - np.float32(m) for a, m in zip(self.coordinates(box), centre, strict=True))
        q = ((c * x + s * y) / np.float32(radii[0])) ** 2 + ((c * y - s * x) / np.float32(radii[1])) ** 2
        q = q + (z / np.float32(radii[2])) ** 2
        return box, (1 - np.sqrt(q)) * np.float32(min(radii))

    def paint(self, box: Box, share: Array, hu: float | Array) -> None:
        """Mix `hu` into the box by `share`, (x, y, z) in [0, 1], and take that share from the lung."""
        view = self.hu[box]
        view += share * (hu - view)
        self.lung[box] *= 1 - share

    def paint_lung(self, box: Box, share: Array, hu: float | Array) -> None:
        """Mix `hu` into the lung alone by `share`, (x, y, z) in [0, 1]; the voxels stay lung."""
        view = self.hu[box]
        view += share * self.lung[box] * (hu - view)

    def ball(self, centre: Point, radii: Point, hu: float, turn: float = 0.0) -> None:
        """Paint an ellipsoid with a sharp edge; lengths in mm, `turn` in radians in the axial plane."""
        box, depth = self.ellipsoid(centre, radii, turn, self.edge)
        self.paint(box, weight(depth, self.edge), hu)

    def tube(self, points: npt.ArrayLike, radius: npt.ArrayLike, hu: float) -> None:
        """Paint a tube along `points`, mm (n, 3), which must be closer to each other than the radius.

        Args:
            radius: mm, one for all points or one each.
        """
        path = np.asarray(points, np.float32)
        r = np.broadcast_to(np.asarray(radius, np.float32), len(path))
        low, high = path.min(0) - r.max() - self.edge, path.max(0) + r.max() + self.edge
        middle, reach = (low + high) / 2, (high - low) / 2
        box = self.box(tuple(middle.tolist()), tuple(reach.tolist()))
        x, y, z = self.coordinates(box)
        depth = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), -1e3, np.float32)
        for (px, py, pz), pr in zip(path.tolist(), r.tolist(), strict=True):
            part = self.box((px, py, pz), (pr + self.edge,) * 3)
            inner = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
            u, v, w = self.coordinates(part)
            near = np.float32(pr) - np.sqrt(
                (u - np.float32(px)) ** 2 + (v - np.float32(py)) ** 2 + (w - np.float32(pz)) ** 2
            )
            np.maximum(depth[inner], near, out=depth[inner])
        self.paint(box, weight(depth, self.edge), hu)

    def splat(self, points: Array, volumes: Array) -> Array:
        """The share of every voxel, float32 (x, y, z) in [0, 1], that small bodies take.

        Args:
            points: where they are, mm (n, 3).
            volumes: their volumes, mm³ (n,).
        """
        at = points / np.asarray(self.spacing, np.float32) + (np.asarray(self.shape, np.float32) - 1) / 2
        low = np.floor(at).astype(np.int64)
        kept = ((low >= 0) & (low < np.asarray(self.shape) - 1)).all(1)
        low, part = low[kept], (at[kept] - low[kept]).astype(np.float32)
        share = volumes[kept] / np.float32(np.prod(self.spacing))
        steps = np.asarray([self.shape[1] * self.shape[2], self.shape[2], 1])
        first = low @ steps
        places, shares = [], []
        for corner in np.ndindex(2, 2, 2):
            side = np.where(np.asarray(corner, bool), part, 1 - part)
            places.append(first + int(np.dot(corner, steps)))
            shares.append(share * side.prod(1))
        total = np.bincount(np.concatenate(places), np.concatenate(shares), minlength=int(np.prod(self.shape)))
        return np.minimum(total, 1).astype(np.float32).reshape(self.shape)
