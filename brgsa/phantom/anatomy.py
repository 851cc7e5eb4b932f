"""A normal chest in HU: body wall, skeleton, lungs with their vessels, heart, great vessels, airways, upper abdomen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brgsa.phantom.canvas import EVERYWHERE, Array, Canvas, Point, weight

FAT, MUSCLE, BLOOD, BONE, AIR = -100.0, 48.0, 42.0, 330.0, -1000.0
RIGHT, LEFT = -1, 1


@dataclass(frozen=True)
class Build:
    """One patient's build, which tells the chest from other patients'.

    Attributes:
        width, depth: half the chest's inner width and depth, mm.
        height: factor on all distances along z.
        fat: thickness of the fat under the skin, mm.
        heart: factor on the heart's size.
        heart_turn: angle of the heart's axis in the axial plane, radians.
        lung_hu, gradient: density of the lung in the middle, HU, and its rise towards the back, HU per mm.
        dome_right, dome_left: height of the diaphragm's domes, mm along z.
        shift: offset of the patient in the scan, mm.
        seed: of the random details of the normal chest.
    """

    female: bool
    width: float
    depth: float
    height: float
    fat: float
    heart: float
    heart_turn: float
    lung_hu: float
    gradient: float
    dome_right: float
    dome_left: float
    shift: Point
    seed: int

    @classmethod
    def sample(cls, seed: int, female: bool) -> Build:
        """A random build; normal variation stays below the change that a finding makes."""
        rng = np.random.default_rng(seed)
        size = (0.94 if female else 1.0) * rng.normal(1.0, 0.03)
        return cls(
            female=female,
            width=float(128 * size * rng.normal(1, 0.02)),
            depth=float(87 * size * rng.normal(1, 0.035)),
            height=float(np.clip(rng.normal(1.0, 0.03), 0.93, 1.07)),
            fat=float(rng.uniform(7, 22)),
            heart=float(np.clip(size * rng.normal(0.95, 0.03), 0.86, 1.02)),
            heart_turn=float(rng.normal(-0.62, 0.09)),
            lung_hu=float(rng.uniform(-820, -775)),
            gradient=float(rng.uniform(0.15, 0.5)),
            dome_right=float(rng.normal(-44, 4)),
            dome_left=float(rng.normal(-52, 4)),
            shift=(float(rng.normal(0, 4)), float(rng.normal(0, 4)), float(rng.normal(0, 3))),
            seed=int(rng.integers(2**31)),
        )


@dataclass
class Chest:
    """A painted normal chest and the landmarks that findings need (mm, patient frame).

    Attributes:
        depth: float32 (x, y, z), signed depth below the surface of the lung, mm; positive inside.
        wall: float32 (x, y, z), signed depth below the chest wall alone, mm.
        heart_centre, heart_radii: the heart's ellipsoid.
        arch, descending, ascending: points (n, 3) along the parts of the aorta.
    """

    canvas: Canvas
    build: Build
    depth: Array
    wall: Array
    heart_centre: Point
    heart_radii: Point
    arch: Array
    descending: Array
    ascending: Array

    def at(self, x: float, y: float, z: float) -> Point:
        """This patient's point (mm) that corresponds to a point of the average build."""
        b = self.build
        return (
            x * b.width / 128 + b.shift[0],
            y * b.depth / 87 + b.shift[1],
            z * b.height + b.shift[2],
        )


def normal_chest(canvas: Canvas, build: Build, heart_scale: float = 1.0, raised: tuple[float, float] = (0, 0)) -> Chest:
    """Paint a normal chest on an empty canvas.

    Args:
        heart_scale: factor on the heart's size.
        raised: mm by which the (right, left) dome of the diaphragm is raised.
    """
    rng = np.random.default_rng(build.seed)
    chest = Chest(
        canvas,
        build,
        np.empty(0, np.float32),
        np.empty(0, np.float32),
        (0, 0, 0),
        (0, 0, 0),
        *(np.empty((0, 3), np.float32) for _ in range(3)),
    )
    _cavity(chest, raised)
    smooth = canvas.texture("smooth", rng)
    _body(chest, smooth)
    _abdomen(chest, rng)
    _lungs(chest, smooth, rng)
    _skeleton(chest, rng)
    _heart(chest, heart_scale)
    _great_vessels(chest)
    _airways(chest)
    return chest


def _rise(z: Array, build: Build) -> Array:
    """Height in the chest at z (mm): 0 at the deepest recess, 1 at the apex of the lung."""
    return ((z - np.float32(build.shift[2])) / np.float32(build.height) + 108) / np.float32(214)


def _cavity(chest: Chest, raised: tuple[float, float]) -> None:
    """Set the chest's signed depths: below the chest wall (`wall`) and below any surface of the lung (`depth`)."""
    b, (x, y, z) = chest.build, chest.canvas.axes
    x, y = x - np.float32(b.shift[0]), y - np.float32(b.shift[1])
    t = _rise(z, b)
    narrowing = np.sqrt(np.clip(1 - np.clip((t - 0.30) / 0.72, 0, 1) ** 2.6, 0.02, 1))
    half_x = np.float32(b.width) * (0.97 + 0.03 * t) * (0.20 + 0.80 * narrowing)
    half_y = np.float32(b.depth) * (0.30 + 0.70 * narrowing)
    middle_y = 4 + 16 * np.clip(t - 0.5, 0, 1)
    p = np.float32(2.35)
    q = (np.abs(x) / half_x) ** p + (np.abs(y - middle_y) / half_y) ** p
    chest.wall = (1 - q ** (1 / p)) * half_y * np.float32(1.1)

    front = np.clip((y + 78) / 40, 0, 1)
    behind = np.clip(y - 22, 0, 80)
    half_mediastinum = (9 + 22 * front) * (1 - 0.25 * np.clip(t - 0.75, 0, 1) / 0.25) - 0.30 * np.clip(behind, 0, 25)
    half_mediastinum = half_mediastinum + 0.40 * np.clip(behind - 32, 0, 60)
    beside = np.abs(x - 2) - half_mediastinum
    tops = np.where(x < 0, np.float32(b.dome_right + raised[0]), np.float32(b.dome_left + raised[1]))
    fall = 34 * ((np.abs(x) - 62) / 68) ** 2 + 42 * np.clip((y - 2) / 82, -1, 1) ** 2 + 10 * np.clip(y / 82, -1, 1)
    above = (z - np.float32(b.shift[2])) - (tops - fall * np.float32(b.height))
    chest.depth = np.minimum(np.minimum(chest.wall, beside), 0.8 * above)


def _body(chest: Chest, smooth: Array) -> None:
    """Skin, fat, muscle, breasts and the table under the patient."""
    canvas, b = chest.canvas, chest.build
    x, y, z = canvas.axes
    t = _rise(z, b)
    half_x = b.width + 20 + b.fat + 10 * np.clip(t - 0.6, 0, 1)
    half_y = b.depth + 20 + 0.8 * b.fat - 14 * np.clip(t - 0.55, 0, 1)
    p = np.float32(2.5)
    q = (np.abs(x - np.float32(b.shift[0])) / half_x) ** p + (np.abs(y - np.float32(b.shift[1]) - 6) / half_y) ** p
    skin = (1 - q ** (1 / p)) * np.float32(b.depth + 20)
    if b.female:
        for side in (RIGHT, LEFT):
            centre = (side * 72 + b.shift[0], -b.depth - 20 + b.shift[1], 0.0)
            box, breast = canvas.ellipsoid(centre, (50, 26 + b.fat, 52), margin=canvas.edge)
            np.maximum(skin[box], breast, out=skin[box])
            canvas.hu[box] += weight(breast, canvas.edge) * (FAT - canvas.hu[box])
    tissue = np.where(skin < b.fat, np.float32(FAT), MUSCLE - 70 * np.clip(smooth - 0.9, 0, 1))
    np.copyto(tissue, np.float32(FAT), where=chest.wall > 2)
    np.copyto(tissue, np.float32(20), where=(skin > 0) & (skin < 2.5))
    body = weight(skin, canvas.edge)
    canvas.hu += body * (tissue - canvas.hu)
    table = weight(4 - np.abs(y - (b.depth + 36 + b.shift[1] + b.fat * 0.8) + (x / 60) ** 2 * 2.0), canvas.edge)
    canvas.hu += table * (1 - body) * np.float32(480)


def _abdomen(chest: Chest, rng: np.random.Generator) -> None:
    """Liver under the right dome and across the middle, spleen and stomach under the left dome, fat elsewhere."""
    canvas = chest.canvas
    x, _, _ = canvas.axes
    inside = weight(chest.wall - 3, canvas.edge)
    liver = inside * (x < 22) * weight(-chest.depth - 2, canvas.edge)
    below = canvas.axes[2] < chest.build.shift[2] + max(chest.build.dome_right, chest.build.dome_left) + 14
    cx, cy, cz = chest.at(-62, -2, -108)
    box, dome = canvas.ellipsoid((cx, cy, cz), (112, 84, 92), margin=canvas.edge)
    canvas.hu[box] += (
        (liver * below)[box] * weight(dome, canvas.edge) * (np.float32(rng.uniform(45, 64)) - canvas.hu[box])
    )
    for centre, radii, hu in (
        (chest.at(88, 42, -98), (30.0, 34.0, 36.0), 52.0),
        (chest.at(48, -8, -96), (40.0, 38.0, 32.0), 30.0),
        (chest.at(50, -20, -88), (26.0, 18.0, 17.0), -960.0),
    ):
        box, depth = canvas.ellipsoid(centre, radii, margin=canvas.edge)
        share = weight(depth, canvas.edge) * inside[box]
        canvas.hu[box] += share * (np.float32(hu) - canvas.hu[box])


def _lungs(chest: Chest, smooth: Array, rng: np.random.Generator) -> None:
    """Parenchyma, denser behind than in front, with a branching tree of vessels from each hilum."""
    canvas, b = chest.canvas, chest.build
    y = canvas.axes[1]
    canvas.lung[...] = weight(chest.depth, canvas.edge)
    parenchyma = np.float32(b.lung_hu) + np.float32(b.gradient) * y + np.float32(7) * smooth
    canvas.paint_lung(EVERYWHERE, np.float32(1), parenchyma)  # type: ignore[arg-type]
    points, volumes = [], []
    for side in (RIGHT, LEFT):
        hilum = np.asarray(chest.at(side * 40, 10, 14), np.float32)
        for p, v in _tree(hilum, side, chest, rng):
            points.append(p)
            volumes.append(v)
    share = canvas.splat(np.concatenate(points), np.concatenate(volumes))
    canvas.paint_lung(EVERYWHERE, share, BLOOD)


def _tree(hilum: Array, side: int, chest: Chest, rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """Points (n, 3) and volumes (n) along three generations of vessels."""
    out = []
    starts = np.repeat(hilum[None], 13, 0)
    low, high = np.asarray([30, -78, -100], np.float32), np.asarray([122, 84, 100], np.float32)
    for generation, (thick, thin) in enumerate(((3.3, 2.1), (2.0, 1.3), (1.3, 0.8))):
        aims = rng.uniform(low, high, (len(starts), 3)).astype(np.float32)
        aims[:, 0] *= side
        aims = aims * np.asarray([chest.build.width / 128, chest.build.depth / 87, chest.build.height], np.float32)
        way = (aims + np.asarray(chest.build.shift, np.float32) - starts) * (0.56 if generation == 0 else 0.48)
        f = np.linspace(0, 1, (22, 16, 12)[generation], dtype=np.float32)[None, :, None]
        sag = rng.normal(0, 5, (len(starts), 1, 3)).astype(np.float32) * f * (1 - f)
        path = starts[:, None] + way[:, None] * f + sag
        radius = np.float32(thick) + np.float32(thin - thick) * f[..., 0]
        step = np.linalg.norm(way, axis=1)[:, None] / f.shape[1]
        out.append((path.reshape(-1, 3), (np.pi * radius**2 * step).astype(np.float32).ravel()))
        starts = np.repeat(path[:, -1], 3, 0)
    return out


def _skeleton(chest: Chest, rng: np.random.Generator) -> None:
    """Ribs that slope down to the front, their cartilage, sternum, spine, clavicles and shoulder blades."""
    canvas, b = chest.canvas, chest.build
    _, y, z = canvas.axes
    pitch = np.float32(25 * b.height)
    phase = (z - b.shift[2] - np.float32(0.42) * (y - b.shift[1])) / pitch + np.float32(rng.uniform())
    across = 6.2 - np.abs(phase - np.floor(phase) - 0.5) * pitch
    shell = 4.6 - np.abs(chest.wall + 8.5)
    rib = weight(np.minimum(shell, across), canvas.edge) * (_rise(z, b) < 0.97)
    density = np.where(y < -0.62 * b.depth + b.shift[1], np.float32(105), np.float32(BONE + 70))
    canvas.hu += rib * (density - canvas.hu)
    canvas.lung *= 1 - rib

    front = -b.depth - 1
    for top, (wide, deep) in ((70.0, (26.0, 7.0)), (44.0, (20.0, 7.0)), (14.0, (19.0, 7.0)), (-14.0, (17.0, 6.5))):
        cx, _, cz = chest.at(0, 0, top)
        lean = 20 * max(top - 20, 0) / 60
        canvas.ball((cx, front + b.shift[1] + lean, cz), (wide, deep, 19), 210)
    spine = chest.at(0, 50, 0)
    box = canvas.box(spine, (60, 70, 400))
    x, y, z = canvas.coordinates(box)
    x, y = x - np.float32(spine[0]), y - np.float32(spine[1])
    bend = 5 * np.cos(z / 110)
    y = y - bend
    disc = weight(3.2 - np.abs((z / 23 - np.floor(z / 23)) - 0.5) * 23, canvas.edge)
    radial = np.sqrt((x / 18.5) ** 2 + (y / 15.5) ** 2)
    cortex = np.float32(170) + 190 * np.clip((radial - 0.72) * 5, 0, 1)
    canvas.paint(box, weight((1 - radial) * 16, canvas.edge), cortex * (1 - disc) + 85 * disc)
    arch = np.maximum(
        (1 - np.sqrt((x / 16) ** 2 + ((y - 25) / 13) ** 2)) * 13,
        np.maximum(
            np.minimum(3.6 - np.abs(x), 20 - np.abs(y - 46)),
            np.minimum(5 - np.abs(y - 26 - 0.16 * np.abs(x)), 38 - np.abs(x)) - 5 * disc,
        ),
    )
    canvas.paint(box, weight(arch, canvas.edge), BONE)
    canvas.paint(box, weight((1 - np.sqrt((x / 9) ** 2 + ((y - 24) / 8) ** 2)) * 8, canvas.edge), 25)
    for side in (RIGHT, LEFT):
        blade = chest.at(side * 98, 72, 62)
        canvas.ball((blade[0], blade[1] + 12, blade[2]), (38, 5.5, 52), 300, turn=-side * 0.75)
        f = np.linspace(0, 1, 16)[:, None]
        ends = np.asarray([chest.at(side * 18, -58, 88), chest.at(side * 112, -34, 112)])
        canvas.tube(ends[0] + (ends[1] - ends[0]) * f, 6.0, 320)


def _heart(chest: Chest, scale: float) -> None:
    """The heart: an ellipsoid that points to the left front, in a rim of fat."""
    canvas, b = chest.canvas, chest.build
    size = b.heart * scale
    chest.heart_radii = (58 * size, 41 * size, 46 * size)
    grown = size - b.heart
    chest.heart_centre = chest.at(18 + 22 * grown, -24 + 6 * grown, -24 + 8 * grown)
    rim = (chest.heart_radii[0] + 7, chest.heart_radii[1] + 7, chest.heart_radii[2] + 6)
    canvas.ball(chest.heart_centre, rim, FAT + 5, b.heart_turn)
    canvas.ball(chest.heart_centre, chest.heart_radii, BLOOD + 6, b.heart_turn)


def _great_vessels(chest: Chest) -> None:
    """Aorta with its arch and branches, superior vena cava, pulmonary arteries, oesophagus."""
    canvas = chest.canvas

    def line(*points: Point, n: int = 14) -> Array:
        """n points (n, 3) along the polygon through the given ones."""
        knots = np.asarray([chest.at(*p) for p in points])
        at = np.linspace(0, len(knots) - 1, n)
        return np.stack([np.interp(at, np.arange(len(knots)), knots[:, i]) for i in range(3)], 1).astype(np.float32)

    a = np.linspace(0, np.pi, 15)
    start, end = np.asarray(chest.at(-10, -20, 46)), np.asarray(chest.at(24, 26, 46))
    chest.arch = ((start + end) / 2 - np.cos(a)[:, None] * (end - start) / 2).astype(np.float32)
    chest.arch[:, 2] += (15 * np.sin(a)).astype(np.float32)
    chest.ascending = line((-4, -22, 2), (-12, -24, 22), (-10, -20, 46))
    chest.descending = line((24, 26, 46), (23, 32, 0), (20, 34, -50), (12, 34, -125), n=34)
    canvas.tube(chest.descending, 12.5, BLOOD)
    canvas.tube(chest.ascending, 16.5, BLOOD)
    canvas.tube(chest.arch, np.linspace(15.5, 13, 15), BLOOD)
    canvas.tube(line((-30, -12, 64), (-31, -12, 20), (-24, -12, -6), n=20), 8.5, BLOOD)
    canvas.tube(line((16, -34, 4), (20, -26, 22), n=8), 14, BLOOD)
    canvas.tube(line((20, -24, 22), (30, 4, 24), (44, 12, 20), n=16), np.linspace(12, 9, 16), BLOOD)
    canvas.tube(line((20, -22, 20), (-8, -2, 15), (-42, 6, 12), n=20), np.linspace(12, 9, 20), BLOOD)
    for x, y in ((-16, -14), (4, -10), (18, 2)):
        canvas.tube(line((x * 0.8, y, 62), (x * 1.25, y - 2, 125), n=14), 5.5, BLOOD)
    canvas.tube(line((6, 24, 125), (5, 25, 30), (8, 22, -40), (16, 10, -85), n=36), 7, 38)


def _airways(chest: Chest) -> None:
    """Trachea and main bronchi with a thin wall, each with its lobar branches."""
    canvas = chest.canvas
    f = np.linspace(0, 1, 18, dtype=np.float32)[:, None]

    def line(a: Point, b: Point) -> Array:
        """18 points (18, 3) from a to b."""
        start, end = np.asarray(chest.at(*a), np.float32), np.asarray(chest.at(*b), np.float32)
        return start + (end - start) * f

    tubes = (
        (line((0, 8, 125), (0, 12, 30)), 8.8),
        (line((0, 12, 32), (-36, 14, 10)), 7.2),
        (line((0, 12, 32), (40, 18, 8)), 6.4),
        (line((-34, 14, 12), (-58, 4, 32)), 3.6),
        (line((-36, 14, 10), (-56, 34, -24)), 3.8),
        (line((38, 18, 10), (60, 4, 32)), 3.4),
        (line((40, 18, 8), (58, 36, -24)), 3.6),
    )
    for path, radius in tubes:
        canvas.tube(path, radius + 2, 20)
    for path, radius in tubes:
        canvas.tube(path, radius, AIR)
