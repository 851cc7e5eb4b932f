"""The abnormalities: one function each, which paints a finding on a normal chest in its typical place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from brgsa.phantom.anatomy import AIR, FAT, LEFT, RIGHT, Chest
from brgsa.phantom.canvas import EVERYWHERE, Array, Box, Point, weight
from brgsa.phantom.cases import Finding

Painter = Callable[[Chest, Finding, np.random.Generator], None]
FLUID, METAL, CALCIUM = 10.0, 2900.0, 900.0

# The middle of each lobe in the average chest: its side, then low and high ends along x (mirrored on the right), y and z in
# mm.
_LOBES: dict[str, tuple[int, tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "right upper lobe": (RIGHT, (30, 105), (-48, 48), (32, 84)),
    "right middle lobe": (RIGHT, (35, 110), (-66, -8), (-24, 18)),
    "right lower lobe": (RIGHT, (35, 112), (14, 72), (-52, 18)),
    "left upper lobe": (LEFT, (30, 105), (-48, 48), (32, 84)),
    "left lingula": (LEFT, (70, 116), (-50, 0), (-26, 18)),
    "left lower lobe": (LEFT, (42, 112), (16, 72), (-54, 18)),
}


def _spot(chest: Chest, lobe: str, rng: np.random.Generator, depth: tuple[float, float]) -> Point:
    """A point of the lobe `depth` (low, high) mm below the lung's surface; the best of 80 random points."""
    side, *ranges = _LOBES[lobe]
    best_fit, best = -np.inf, chest.at(side * 70, 10, 0)
    c = chest.canvas
    for u in rng.uniform(size=(80, 3)):
        x, y, z = (low + (high - low) * v for (low, high), v in zip(ranges, u, strict=True))
        point = chest.at(side * x, y, z)
        index = tuple(
            min(max(round(p / s + (n - 1) / 2), 0), n - 1) for p, s, n in zip(point, c.spacing, c.shape, strict=True)
        )
        below = float(chest.depth[index])
        fit = min(below - depth[0], depth[1] - below, 0.0) - 30 * float(c.lung[index] < 0.7)
        if fit > best_fit:
            best_fit, best = fit, point
        if fit == 0:
            break
    return best


def _blob(
    chest: Chest, centre: Point, radii: Point, bumps: float, smooth: Array, turn: float = 0.0
) -> tuple[Box, Array]:
    """The box and signed depth (mm) of an ellipsoid whose surface waves by about `bumps` mm."""
    box, depth = chest.canvas.ellipsoid(centre, radii, turn, margin=2.5 * bumps + chest.canvas.edge)
    return box, depth + np.float32(bumps) * smooth[box]


def medical_material(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """A pacemaker with leads, a port with its catheter, or wires in the sternum with clips: all far denser than bone."""
    c, b = chest.canvas, chest.build
    heart = np.asarray(chest.heart_centre)
    front = -b.depth - 17 + b.shift[1]

    def cable(*points: Point, radius: float) -> None:
        """A metal tube along the points."""
        knots = np.asarray(points)
        at = np.linspace(0, len(knots) - 1, 90)
        path = np.stack([np.interp(at, np.arange(len(knots)), knots[:, i]) for i in range(3)], 1)
        c.tube(path, radius, METAL * 0.75)

    if finding.kind == "pacemaker":
        pocket = chest.at(82, 0, 72)
        c.ball((pocket[0], front + 16, pocket[2]), (27, 9, 25), METAL)
        vein, inlet = chest.at(40, -44, 92), chest.at(-30, -12, 50)
        tip = heart + np.asarray([16, -12, -18])
        cable((pocket[0], front + 12, pocket[2] + 12), vein, inlet, chest.at(-26, -14, 5), tuple(tip), radius=3.0)
    elif finding.kind == "port":
        pocket = chest.at(-76, 0, 58)
        c.ball((pocket[0], front + 12, pocket[2]), (18, 9, 16), METAL)
        cable(
            (pocket[0], front + 12, pocket[2] + 8),
            chest.at(-44, -44, 98),
            chest.at(-31, -12, 66),
            chest.at(-28, -12, 4),
            radius=3.2,
        )
    else:
        for z in np.arange(-26, 74, 16):
            x, _, zz = chest.at(0, 0, float(z))
            lean = 20 * max(float(z) - 20, 0) / 60
            c.ball((x, -b.depth - 4 + b.shift[1] + lean, zz), (9, 5.5, 4.6), METAL)
        for x, y, z in rng.uniform((-26, -52, -10), (30, -38, 40), (5, 3)):
            c.ball(chest.at(x, y, z), (3.4, 3.4, 4), METAL)


def arterial_calcification(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Thick bright arcs in the wall of the aorta."""
    for place in finding.places:
        path, radius = {
            "aortic arch": (chest.arch, 14.0),
            "descending aorta": (chest.descending[: len(chest.descending) * 3 // 4], 12.0),
            "ascending aorta": (chest.ascending[4:], 15.5),
        }[place]
        for _ in range({"aortic arch": 7, "descending aorta": 9, "ascending aorta": 4}[place]):
            i = int(rng.integers(1, len(path) - 1))
            along = path[i + 1] - path[i - 1]
            along = along / np.linalg.norm(along)
            u = np.cross(along, rng.standard_normal(3))
            u /= np.linalg.norm(u)
            v = np.cross(along, u)
            a = np.linspace(0, rng.uniform(1.1, 2.6), 9)[:, None]
            chest.canvas.tube(path[i] + radius * (np.cos(a) * u + np.sin(a) * v), rng.uniform(3.2, 4.2), CALCIUM)


def coronary_calcification(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Bright beads along the coronary arteries on the heart's surface."""
    ways = {  # start and end as (azimuth in the axial plane from the apex, elevation), in units of the heart's radii
        "LAD": ((-1.5, 0.75), (-0.25, 0.05)),
        "circumflex artery": ((1.35, 0.7), (0.75, -0.25)),
        "RCA": ((-2.3, 0.6), (-2.1, -0.65)),
    }
    turn = chest.build.heart_turn
    rx, ry, rz = (r + 3 for r in chest.heart_radii)
    for place in finding.places:
        (a0, e0), (a1, e1) = ways[place]
        for f in np.linspace(0.0, 0.9, 6) + rng.uniform(0, 0.1):
            a, e = a0 + (a1 - a0) * f, e0 + (e1 - e0) * f
            u, v, w = rx * np.cos(a) * np.cos(e), ry * np.sin(a) * np.cos(e), rz * np.sin(e)
            x, y, z = chest.heart_centre
            at = (x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn), z + w)
            r = rng.uniform(4.4, 6.0)
            chest.canvas.ball(at, (r, r, r + 1), CALCIUM)


def pericardial_effusion(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Fluid all round the heart's rim of fat, thicker below and behind."""
    c, turn = chest.canvas, chest.build.heart_turn
    x, y, z = chest.heart_centre
    t = finding.size
    rim = tuple(r + 7 for r in chest.heart_radii)
    outer = (rim[0] + 0.8 * t, rim[1] + 0.9 * t, rim[2] + 0.6 * t)
    box, out = c.ellipsoid((x, y + 0.15 * t, z - 0.1 * t), outer, turn, c.edge)
    inside, depth = c.ellipsoid((x, y, z), (rim[0], rim[1], rim[2]), turn, c.edge)
    shell = weight(out, c.edge)
    part = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inside, box, strict=True))
    shell[part] *= 1 - weight(depth, c.edge)
    above = weight(c.coordinates(box)[2] - np.float32(chest.at(0, 0, -72)[2]), 6)
    # Fluid fills the sac alone, never the wall, the spine, the aorta or the organs under the diaphragm.
    soft = np.clip((400 - np.abs(c.hu[box] + 450)) / 30, 0, 1)
    c.paint(box, shell * above * np.maximum(soft, c.lung[box]), FLUID - 5)


def hiatal_hernia(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Stomach behind the heart: a thick wall, fluid below, gas above (in front, as the patient lies on the back)."""
    c, r = chest.canvas, finding.size / 2
    centre = chest.at(float(rng.uniform(2, 14)), 26, float(rng.uniform(-52, -36)))
    centre = (centre[0], max(centre[1], chest.heart_centre[1] + 0.62 * chest.heart_radii[0]), centre[2])
    c.ball(centre, (r, 0.82 * r, r), 44)
    box, depth = c.ellipsoid(centre, (r - 5, 0.82 * r - 5, r - 5), margin=c.edge)
    level = centre[1] + float(rng.uniform(-0.05, 0.3)) * r
    gas = weight(np.float32(level) - c.coordinates(box)[1], c.edge)
    c.paint(box, weight(depth, c.edge), AIR * gas + 14 * (1 - gas))


def lymphadenopathy(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Clusters of large nodes in the mediastinal fat and at the hila."""
    stations = {
        "prevascular": ((-14, -54, 42), (10, -54, 36), (28, -48, 34)),
        "right paratracheal": ((-32, 4, 64), (-36, 8, 44), (-34, -18, 52)),
        "aortopulmonary": ((42, -4, 42), (46, -20, 30)),
        "subcarinal": ((-10, 20, 4), (14, 24, -4)),
        "right hilar": ((-60, 4, 22), (-62, 14, -2), (-58, 22, 12)),
        "left hilar": ((62, 4, 24), (64, 16, 0), (60, 24, 14)),
    }
    largest = finding.size / 2
    for place in finding.places:
        for x, y, z in stations[place]:
            r = largest * rng.uniform(0.78, 1.0)
            at = chest.at(*(np.asarray((x, y, z)) + rng.normal(0, 2, 3)).tolist())
            chest.canvas.ball(at, (r, r * rng.uniform(0.75, 0.95), r), 46, turn=rng.uniform(0, 3))


def emphysema(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Clusters of large holes without walls, mostly in the upper lobes."""
    c = chest.canvas
    reach = (4, 14) if finding.kind == "paraseptal" else (10, 60)
    for k in range(finding.count):
        lobe = finding.places[k % 2] if rng.random() < 0.85 else ("right lower lobe", "left lower lobe")[k % 2]
        r = rng.uniform(8, 12) if finding.kind != "bullous" else rng.uniform(8, 16)
        box, depth = c.ellipsoid(_spot(chest, lobe, rng, reach), (r, r, r * 1.2), margin=c.edge)
        c.paint_lung(box, weight(depth, c.edge), -995)


def atelectasis(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Thick plates of airless lung, steep enough to show as bands on axial slices."""
    c = chest.canvas
    for lobe in finding.places:
        side = _LOBES[lobe][0]
        x, y, z = _spot(chest, lobe, rng, (14, 36))
        for step in (-11, 11):
            box = c.box((x, y, z), (52, 52, 46))
            u, v, w = (a - np.float32(m) for a, m in zip(c.coordinates(box), (x, y + step, z), strict=True))
            heading, slope = rng.uniform(0.6, 2.2) * side, rng.uniform(0.3, 0.8)
            across = (np.cos(heading) * u + np.sin(heading) * v) - np.float32(slope) * w
            taper = 1 - ((u**2 + v**2 + w**2) / np.float32(48**2)) ** 2
            plate = np.float32(rng.uniform(6, 8.5)) * taper - np.abs(across) / np.float32(np.hypot(1, slope))
            c.paint_lung(box, weight(plate, c.edge), 35)


def lung_nodule(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Round, sharp, solid nodules."""
    c = chest.canvas
    for k in range(finding.count):
        r = finding.size / 2 if k == 0 else rng.uniform(21, finding.size) / 2
        at = _spot(chest, finding.places[k % len(finding.places)], rng, (r, 60))
        box, depth = c.ellipsoid(at, (r, r, r), margin=c.edge)
        c.paint(box, weight(depth, c.edge) * np.minimum(1, 3 * c.lung[box]), 45)


def lung_opacity(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Ground glass: dense patches with soft edges, in which the vessels are still visible."""
    c, smooth = chest.canvas, chest.canvas.texture("smooth", rng)
    for lobe in finding.places:
        r = finding.size / 2 * rng.uniform(0.7, 1.0)
        box, depth = _blob(chest, _spot(chest, lobe, rng, (5, 30)), (r, r, r), 5, smooth)
        view = c.hu[box]
        view += weight(depth, 10) * c.lung[box] * np.clip(-view / 600, 0, 1) * np.float32(rng.uniform(350, 420))


def consolidation(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Airless patches based on the pleura, hazy at the edge, with open bronchi inside."""
    c, smooth = chest.canvas, chest.canvas.texture("smooth", rng)
    for lobe in finding.places:
        r = finding.size / 2 * rng.uniform(0.8, 1.0)
        x, y, z = _spot(chest, lobe, rng, (4, 22))
        side = _LOBES[lobe][0]
        box, depth = _blob(chest, (x, y, z), (r, r * 0.85, r), 7, smooth, rng.uniform(0, 3))
        c.paint_lung(box, weight(depth + 3, 9), -420)
        c.paint_lung(box, weight(depth, 7), 38)
        hilum = np.asarray(chest.at(side * 42, 12, 10))
        for _ in range(3):
            aim = np.asarray((x, y, z)) + rng.normal(0, 0.35 * r, 3)
            f = np.linspace(0.45, 1.15, 24)[:, None]
            path = hilum + (aim - hilum) * f
            kept = [p for p in path if np.linalg.norm(p - (x, y, z)) < 0.9 * r]
            if kept:
                c.tube(np.asarray(kept), 2.6, -850)


def pleural_effusion(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Fluid in the dependent pleural space, with a meniscus along the lateral wall."""
    c, b = chest.canvas, chest.build
    x, y, z = c.axes
    for i, name in enumerate(finding.places):
        side = RIGHT if name == "right" else LEFT
        thick = finding.size * (1.0 if i == 0 else 0.75)
        top = -92 + 2.3 * thick + rng.uniform(0, 20)
        fall = np.clip((chest.at(0, 0, float(top))[2] - z) / 45, -0.5, 1)
        level = b.shift[1] + 0.86 * b.depth - thick * fall - 10 * (np.abs(x - b.shift[0]) / b.width) ** 2
        share = weight(y - level, 1.5 * c.edge) * weight(fall * 45, 6) * ((x - b.shift[0]) * side > 0)
        c.paint(EVERYWHERE, share * c.lung, FLUID)


def mosaic_attenuation(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Large geographic patches, dark beside bright, through both lungs."""
    c = chest.canvas
    field = np.clip(c.texture("smooth", rng) * 3, -1, 1)
    c.hu += c.lung * np.clip(-c.hu / 600, 0, 1) * (np.float32(45) + np.float32(rng.uniform(95, 125)) * field)


def pneumothorax(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Air without vessels between the wall and a lung that has fallen back towards its hilum."""
    c, b = chest.canvas, chest.build
    x, y, z = c.axes
    side = RIGHT if finding.places[0] == "right" else LEFT
    mine = (x - b.shift[0]) * side > 0
    # The gap is widest in front and at the apex, as air rises in a patient who lies on the back.
    gap = finding.size * (0.75 - 0.45 * (y - b.shift[1]) / b.depth + 0.25 * np.clip((z - b.shift[2]) / 90, -1, 1))
    lung = c.lung * mine
    free = weight(gap - chest.wall, c.edge) * lung
    c.hu += (lung - free) * np.clip(-c.hu / 600, 0, 1) * np.float32(110)
    c.paint(EVERYWHERE, free, AIR)


def lung_cyst(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Large round air spaces with a thin wall, apart from each other."""
    c = chest.canvas
    taken: list[Point] = []
    for k in range(finding.count):
        r = finding.size / 2 * (1.0 if k == 0 else 0.75)
        for _ in range(12):
            at = _spot(chest, finding.places[k % len(finding.places)], rng, (0.6 * r, 1.3 * r))
            if all(np.linalg.norm(np.subtract(at, other)) > finding.size + 8 for other in taken):
                taken.append(at)
                break
        else:
            continue
        box, depth = c.ellipsoid(at, (r + 5, r + 5, r + 5), margin=c.edge)
        c.paint_lung(box, weight(depth, c.edge), 10)
        c.paint_lung(box, weight(depth - 5, c.edge), -998)


def lung_mass(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """One large lobulated solid lesion with short spicules, often with a necrotic middle."""
    c, smooth = chest.canvas, chest.canvas.texture("smooth", rng)
    r = finding.size / 2
    at = _spot(chest, finding.places[0], rng, (0.75 * r, 1.3 * r))
    box, depth = _blob(chest, at, (r, r * 0.92, r), 3, smooth)
    c.paint(box, weight(depth, c.edge) * np.minimum(1, 2 * c.lung[box]), 52)
    ways = rng.standard_normal((26, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    f = np.linspace(0.9, 1.45, 12)[None, :, None]
    points = (np.asarray(at) + r * ways[:, None] * f).reshape(-1, 3).astype(np.float32)
    c.paint_lung(EVERYWHERE, c.splat(points, np.full(len(points), 16, np.float32)), 30)
    if rng.random() < 0.5:
        c.ball(at, (0.45 * r, 0.4 * r, 0.45 * r), 12)


def pneumomediastinum(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Gas in streaks through the mediastinal fat, round the heart and the great vessels."""
    c = chest.canvas
    x, _, z = c.axes
    field = c.texture("smooth", rng)
    fat = np.clip((60 - np.abs(c.hu - FAT)) / 25, 0, 1)
    middle = weight(38 - np.abs(x - np.float32(chest.build.shift[0] + 6)), 8) * weight(
        z - np.float32(chest.at(0, 0, -60)[2]), 8
    )
    c.paint(EVERYWHERE, fat * middle * weight(chest.wall - 2, c.edge) * weight(field + 0.5, 0.5), -940)


PAINTERS: dict[str, Painter] = {
    "Pericardial effusion": pericardial_effusion,
    "Pneumomediastinum": pneumomediastinum,
    "Mosaic attenuation pattern": mosaic_attenuation,
    "Emphysema": emphysema,
    "Lung cyst": lung_cyst,
    "Lung opacity": lung_opacity,
    "Atelectasis": atelectasis,
    "Consolidation": consolidation,
    "Lung mass": lung_mass,
    "Lung nodule": lung_nodule,
    "Pleural effusion": pleural_effusion,
    "Pneumothorax": pneumothorax,
    "Lymphadenopathy": lymphadenopathy,
    "Hiatal hernia": hiatal_hernia,
    "Coronary artery wall calcification": coronary_calcification,
    "Arterial wall calcification": arterial_calcification,
    "Medical material": medical_material,
}
"""The painters in the order of painting. The anatomy itself paints cardiomegaly, as a larger heart."""
