"""Slices as PNG: the patient's right at the picture's left, anterior above."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa_platform.runtime.overlay import overlay


def slice_png(hu: npt.NDArray[np.int16], low: float, high: float) -> bytes:
    """A slice (x, y) in grey, HU from `low` (black) to `high` (white)."""
    grey = np.clip((hu.T.astype(np.float32) - low) / max(high - low, 1.0), 0.0, 1.0)
    return _png((grey * 255).round().astype(np.uint8))


def heat_png(relevance: npt.NDArray[np.float32]) -> bytes:
    """A map's slice (x, y) from 0 (transparent) to 1 (red)."""
    return _png((overlay(relevance.T) * 255).astype(np.uint8))


def _png(pixels: npt.NDArray[Any]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
