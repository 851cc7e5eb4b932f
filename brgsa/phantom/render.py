"""A case's volume in HU: the normal chest of its patient, its findings, then the scanner's noise."""

from __future__ import annotations

import numpy as np

from brgsa.phantom.anatomy import Build, normal_chest
from brgsa.phantom.canvas import Array, Canvas
from brgsa.phantom.cases import COMMON, RARE, Case
from brgsa.phantom.lesions import PAINTERS

_KEYS = {name: k for k, name in enumerate((*COMMON, *RARE))}


def render(case: Case, reconstruction: int = 0) -> Array:
    """The scan's volume, (x, y, z) float32 HU in [-1024, 3071], on the grid of one of its reconstructions.

    Each finding draws from its own stream of random numbers, so a case without one differs in that finding alone.
    """
    grid = case.reconstructions[reconstruction]
    canvas = Canvas(grid.shape, grid.spacing, np.random.default_rng([case.build_seed, 0]))
    found = {f.name: f for f in case.findings}
    scale = found["Cardiomegaly"].size if "Cardiomegaly" in found else 1.0
    sides = found["Atelectasis"].sides if "Atelectasis" in found else ()
    raised = (12.0 if "right" in sides else 0.0, 12.0 if "left" in sides else 0.0)
    chest = normal_chest(canvas, Build.sample(case.build_seed, case.female), scale, raised)
    for name, painter in PAINTERS.items():
        if name in found:
            painter(chest, found[name], np.random.default_rng([case.seed, _KEYS[name]]))
    rng = np.random.default_rng([case.seed, 99, grid.number])
    canvas.hu += np.float32(grid.noise) * canvas.texture(grid.kernel, rng)
    return np.clip(canvas.hu, -1024, 3071)
