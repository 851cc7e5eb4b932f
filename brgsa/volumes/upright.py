"""A sheared scan, as a tilted gantry gives it, brought to axes at right angles."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from brgsa.volumes.checks.geometry import upright_frame
from brgsa.volumes.geometry import AIR


def upright(
    array: npt.NDArray[Any], spacing: tuple[float, float, float], directions: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], tuple[float, float, float], npt.NDArray[np.float64]]:
    """Resample a sheared scan (i, j, k) in HU, linearly, to a grid of right angles around all of it; the rest is air.

    Args:
        spacing: mm along its axes.
        directions: float64 (3, 3), unit columns in LPS that are not at right angles.

    Returns:
        The array, float32 HU, its spacing and its directions. The middle of the scan stays in the middle.
    """
    import SimpleITK as sitk

    frame, steps = upright_frame(spacing, directions)
    askew = np.linalg.inv(frame) @ (directions * spacing)  # voxels of the scan to mm along the new axes
    reach = np.abs(askew) @ (np.array(array.shape) - 1)
    shape = [int(n) for n in np.ceil(np.round(reach / steps, 6)) + 1]
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T, dtype=np.float32))
    image.SetOrigin((-(np.array(array.shape) - 1) / 2).tolist())
    origin = -(np.array(shape) - 1) / 2 * steps
    way = sitk.AffineTransform(np.linalg.inv(askew).ravel().tolist(), (0.0, 0.0, 0.0))
    identity = np.eye(3).ravel().tolist()
    made = sitk.Resample(image, shape, way, sitk.sitkLinear, origin.tolist(), steps, identity, AIR)
    return sitk.GetArrayFromImage(made).T, steps, frame
