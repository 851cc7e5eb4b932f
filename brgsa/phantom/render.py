"""A case's volume in HU: the normal chest of its patient, its findings, then the scanner's noise."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform

from brgsa.phantom.anatomy import Build, normal_chest
from brgsa.phantom.canvas import Array, Canvas, texture
from brgsa.phantom.cases import COMMON, RARE, Case, Reconstruction
from brgsa.phantom.lesions import PAINTERS

_KEYS = {name: k for k, name in enumerate((*COMMON, *RARE))}


def render(case: Case, reconstruction: int = 0) -> Array:
    """The scan's volume on the grid of one of its reconstructions: float32 HU (x, y, z) in [-1024, 3071].

    Each finding has a stream of random numbers of its own, so that a case without one finding differs in that finding alone.

    Args:
        reconstruction: the number of the reconstruction, from 0.
    """
    first, grid = case.reconstructions[0], case.reconstructions[reconstruction]
    canvas = Canvas(first.shape, first.spacing)
    findings = {f.name: f for f in case.findings}
    scale = findings["Cardiomegaly"].size if "Cardiomegaly" in findings else 1.0
    sides = findings["Atelectasis"].sides if "Atelectasis" in findings else ()
    raised = (12.0 if "right" in sides else 0.0, 12.0 if "left" in sides else 0.0)
    chest = normal_chest(canvas, Build.sample(case.build_seed, case.female), scale, raised)
    for name, painter in PAINTERS.items():
        if name in findings:
            painter(chest, findings[name], np.random.default_rng([case.seed, _KEYS[name]]))
    volume = _regrid(canvas.hu, first, grid)
    volume += np.float32(grid.noise) * texture(
        grid.kernel, grid.shape, np.random.default_rng([case.seed, 99, grid.number])
    )
    return np.clip(volume, -1024, 3071)


def _regrid(volume: Array, old: Reconstruction, new: Reconstruction) -> Array:
    """The volume interpolated linearly on a new grid of the same centre: every reconstruction shows the same patient."""
    if new == old:
        return volume
    steps = [n / o for n, o in zip(new.spacing, old.spacing, strict=True)]
    starts = [(o - 1) / 2 - (n - 1) / 2 * step for o, n, step in zip(old.shape, new.shape, steps, strict=True)]
    moved: Array = affine_transform(volume, steps, starts, output_shape=new.shape, order=1, mode="nearest")
    return moved
