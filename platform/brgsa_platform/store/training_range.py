"""What a model has seen: the geometry and density of a training's scans, and how another scan lies outside of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from brgsa.volumes import Volume
from brgsa_platform.store.store import HU_BIN, HU_BINS, HU_FIRST, Store, hu_histogram

SAME = 0.01  # relative difference of two lengths
SAME_HU = 10.0

Range = dict[str, list[list[float]]]


def training_range(store: Store) -> Range:
    """The lowest and highest values of a store's training scans.

    Returns:
        "spacing" and "extent", mm along x, y and z, of the scans as they were taken; "mean", HU, of the volumes on the
        store's grid.
    """
    index = store.index(["split", "source_spacing", "source_shape", "hu"])
    rows = index.filter(pc.equal(index["split"], "train"))
    spacing, shape, counts = (
        np.array(rows[name].to_pylist(), dtype=np.float64) for name in ("source_spacing", "source_shape", "hu")
    )
    values = {"spacing": spacing, "extent": spacing * (shape - 1), "mean": _mean(counts)[:, None]}
    return {
        name: [[float(low), float(high)] for low, high in zip(found.min(axis=0), found.max(axis=0), strict=True)]
        for name, found in values.items()
    }


def outside_of(scan: Volume, hu: npt.NDArray[np.int16], seen: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """In what a scan lies outside all of a training's, in words with numbers.

    Args:
        hu: the scan on the store's grid.
        seen: see `training_range`; empty where it is not known.
    """
    extent = [(n - 1) * mm for n, mm in zip(scan.array.shape, scan.spacing, strict=True)]
    found = []
    for name, values in (("spacing", scan.spacing), ("extent", extent)):
        for axis, value, (low, high) in zip("xyz", values, seen.get(name, ()), strict=False):
            if not low * (1 - SAME) <= value <= high * (1 + SAME):
                found.append(f"{name} {axis} {value:.4g} mm, the training's {low:.4g} to {high:.4g}")
    for low, high in seen.get("mean", ()):
        mean = float(_mean(hu_histogram(hu)[None])[0])
        if not low - SAME_HU <= mean <= high + SAME_HU:
            found.append(f"mean {mean:.0f} HU, the training's {low:.0f} to {high:.0f}")
    return found


def _mean(counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The mean HU of histograms (N, bins)."""
    centres = HU_FIRST + HU_BIN * (np.arange(HU_BINS) + 0.5)
    means: npt.NDArray[np.float64] = counts @ centres / np.maximum(counts.sum(axis=1), 1)
    return means
