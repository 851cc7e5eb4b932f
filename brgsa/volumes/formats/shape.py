"""What all formats' readers refuse alike: shapes that are no volume, spacings that cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brgsa.volumes.errors import VolumeError, left_over


def three_dimensional(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape without trailing axes of length one.

    Raises:
        VolumeError: the number of axes that remain is not three.
    """
    wanted = shape[:3] if all(n == 1 for n in shape[3:]) else shape
    if len(wanted) != 3:
        sizes = "×".join(map(str, shape))
        raise VolumeError(
            path,
            f"the image has {len(shape)} dimensions ({sizes}); give one 3-D volume a file.",
            code="not-3d",
            field="shape",
            value=shape,
        )
    return wanted[0], wanted[1], wanted[2]


def check_stored_size(path: Path, stored: int, shape: Sequence[int], itemsize: int) -> None:
    """Refuse voxels that were stored uncompressed with at least one plane more than the header gives them.

    Less than that is padding, as programs write it to fill a block.

    Args:
        stored: bytes from the first voxel on.
        itemsize: bytes of a voxel.
    """
    count = math.prod(shape)
    more = stored - count * itemsize
    if more >= count * itemsize // max(shape):
        raise left_over(path, more)


def check_spacing(path: Path, spacing: Sequence[float]) -> None:
    """Refuse distances that are not above zero, or no numbers."""
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise impossible_spacing(path, [f"{s:g}" for s in spacing])


def impossible_spacing(path: Path, spacing: Sequence[str]) -> VolumeError:
    """The refusal of a spacing that cannot be, as it is written."""
    numbers = "×".join(spacing)
    return VolumeError(
        path,
        f"its header gives a spacing of {numbers} mm, which cannot be: correct the header or export the scan again.",
        code="spacing-impossible",
        field="spacing",
        value=numbers,
    )


def not_an_image(path: Path) -> VolumeError:
    """The file is of no format that is read here."""
    return VolumeError(
        path,
        "this is not an image that can be read: give NIfTI (.nii, .nii.gz), NRRD (.nrrd), MetaImage (.mha, .mhd), DICOM "
        "or RAD-ChestCT's .npz.",
        code="not-an-image",
    )


def not_numbers(path: Path) -> VolumeError:
    """The file's voxels are colours, vectors or complex numbers."""
    return VolumeError(
        path,
        "its voxels are no plain numbers (colour, vectors or complex); give the CT's own intensities.",
        code="voxels-not-numbers",
    )
