"""From int16 HU to the network's float in [-1, 1] on the training device, in one fused step.

The step includes the augmentations of intensity: scale, shift and Gaussian noise. For the same parameters the result is that
of MONAI's ScaleIntensity, ShiftIntensity, RandGaussianNoise and ScaleIntensityRange one after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from brgsa.compilation import has_compiler

FULL_SCALE = 1000.0  # HU that become 1.0
CACHED_VOXELS = 100_000  # float32 voxels that fit a core's own cache


@dataclass(frozen=True)
class Intensity:
    """The changes of intensity of B volumes: a value v (HU) becomes v·(1 + scale) + shift + noise·N(0, 1).

    Attributes:
        scale: float32 (B,), relative change.
        shift: float32 (B,), HU.
        noise: float32 (B,), standard deviation in HU; None for no noise.
    """

    scale: Tensor
    shift: Tensor
    noise: Tensor | None = None

    @classmethod
    def draw(cls, volumes: int, device: torch.device, *, scale: float, shift: float, noise: float) -> Intensity | None:
        """Draw changes for `volumes` volumes from the device's default generator; None where nothing would change.

        Args:
            scale, shift: the values are uniform in [-scale, scale] and in [-shift, shift] (HU).
            noise: standard deviation of every volume's noise, HU.
        """
        if not (scale or shift or noise):
            return None
        drawn = 2 * torch.rand(2, volumes, device=device) - 1
        deviations = torch.full((volumes,), noise, device=device) if noise else None
        return cls(drawn[0] * scale, drawn[1] * shift, deviations)


def unit_intensities(
    blocks: Iterable[Tensor], intensity: Intensity | None = None, *, normal: Tensor | None = None, out: Tensor
) -> Tensor:
    """int16 HU to float32 in [-1, 1]; ±1000 HU become ±1, values beyond them are clipped.

    Args:
        blocks: int16 HU (n, X, Y, Z) each, together B volumes, on the device of `out`.
        normal: standard normal numbers, float32 (B, X, Y, Z), for the noise; by default they are drawn.
        out: float32 (B, X, Y, Z) to write to: on a CPU, fresh memory costs more than all the arithmetic.

    Returns:
        `out` as (B, 1, X, Y, Z).
    """
    factor: Tensor | float = 1 / FULL_SCALE
    offset = deviation = None
    if intensity is not None:
        factor, offset = _per_volume(1 + intensity.scale), _per_volume(intensity.shift)
        deviation = None if intensity.noise is None else _per_volume(intensity.noise)
    if out.is_cuda:
        parts = list(blocks)
        ct = parts[0] if len(parts) == 1 else torch.cat(parts)
        _compiled()(ct, factor, offset, deviation, normal, out)
    else:
        _in_place(blocks, factor, offset, deviation, normal, out)
    return out.unsqueeze(1)


def _per_volume(hu: Tensor) -> Tensor:
    return (hu / FULL_SCALE).view(-1, 1, 1, 1)


def _in_place(
    blocks: Iterable[Tensor],
    factor: Tensor | float,
    offset: Tensor | None,
    deviation: Tensor | None,
    normal: Tensor | None,
    out: Tensor,
) -> None:
    # A CPU has no kernel to fuse into: simple passes, over so few planes that they stay in the cache from pass to pass.
    planes = max(1, CACHED_VOXELS // out[0, 0].numel())
    for i, ct in enumerate(chain.from_iterable(blocks)):
        given = None if normal is None else normal[i].split(planes)
        scale = factor if isinstance(factor, float) else float(factor[i])
        shift = torch.zeros(()) if offset is None else offset[i].view(())
        for k, (values, hu) in enumerate(zip(out[i].split(planes), ct.split(planes), strict=True)):
            torch.add(shift, values.copy_(hu), alpha=scale, out=values)
            if deviation is not None:
                values.addcmul_(torch.randn_like(values) if given is None else given[k], deviation[i])
            values.clamp_(-1.0, 1.0)


def _fused(
    ct: Tensor,
    factor: Tensor | float,
    offset: Tensor | None,
    deviation: Tensor | None,
    normal: Tensor | None,
    out: Tensor,
) -> None:
    values = ct.float() * factor
    if offset is not None:
        values = values + offset
    if deviation is not None:
        values = values + (torch.randn_like(values) if normal is None else normal) * deviation
    out.copy_(values.clamp(-1.0, 1.0))


@functools.cache
def _compiled() -> Callable[..., None]:
    """`_fused` as one kernel: each voxel is read once and written once, and its noise is drawn in registers."""
    if not has_compiler():
        return _fused  # without a compiler, as in a slim container, each operation is a kernel of its own
    compiled: Callable[..., None] = torch.compile(_fused)
    return compiled
