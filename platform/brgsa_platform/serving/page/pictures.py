"""Slices as PNG: the patient's right at the picture's left, anterior above."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

OPAQUE = 0.65  # of a map's 1


def slice_png(hu: npt.NDArray[np.int16], low: float, high: float) -> bytes:
    """A slice (x, y) in grey, HU from `low` (black) to `high` (white)."""
    grey = np.clip((hu.T.astype(np.float32) - low) / max(high - low, 1.0), 0.0, 1.0)
    return _png((grey * 255).round().astype(np.uint8))


def heat_png(relevance: npt.NDArray[np.float32]) -> bytes:
    """A map's slice (x, y) from 0 (transparent) to 1 (red)."""
    values = np.clip(relevance.T, 0.0, 1.0)
    picture = np.zeros((*values.shape, 4), np.uint8)
    picture[..., 0], picture[..., 1] = 255, (64 * values).astype(np.uint8)
    picture[..., 3] = (255 * OPAQUE * values).astype(np.uint8)
    return _png(picture)


def _png(pixels: npt.NDArray[Any]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
