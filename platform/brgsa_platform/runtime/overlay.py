"""How a heat map is laid over a CT: the same red in every picture and on the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

OPAQUE = 0.65  # of a map's 1


def overlay(relevance: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Colours (…, 4), red, green, blue and opacity from 0 to 1, of a map (…) from 0 (not drawn) to 1 (red)."""
    values = np.clip(np.asarray(relevance, dtype=np.float64), 0.0, 1.0)
    return np.stack([np.ones_like(values), 0.25 * values, np.zeros_like(values), OPAQUE * values], axis=-1)
