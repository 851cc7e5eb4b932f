"""From int16 HU to the network's float in [-1, 1] on the training device, in one fused step.

Intensity scale, shift and Gaussian noise happen on the way. For the same parameters the result is that of MONAI's
ScaleIntensity, ShiftIntensity, RandGaussianNoise and ScaleIntensityRange one after the other.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

FULL_SCALE = 1000.0  # HU that become 1.0
CACHED_VOXELS = 100_000  # of float32 in a core's own cache


@dataclass(frozen=True)
class Intensity:
    """What becomes of the HU v of each of B volumes: v·(1 + scale) + shift + noise·N(0, 1).

    Attributes:
        scale: (B,) relative change.
        shift: (B,) HU.
        noise: (B,) standard deviation in HU, or None for no noise at all.
    """

    scale: Tensor
    shift: Tensor
    noise: Tensor | None = None

    @classmethod
    def draw(cls, volumes: int, device: torch.device, *, scale: float, shift: float, noise: float) -> Intensity | None:
        """Scale and shift uniform in ±, from the device's default generator; None where nothing would change."""
        if not (scale or shift or noise):
            return None
        drawn = 2 * torch.rand(2, volumes, device=device) - 1
        deviations = torch.full((volumes,), noise, device=device) if noise else None
        return cls(drawn[0] * scale, drawn[1] * shift, deviations)


def unit_intensities(
    blocks: Iterable[Tensor], intensity: Intensity | None = None, *, normal: Tensor | None = None, out: Tensor
) -> Tensor:
    """int16 HU to float32 in [-1, 1], ±1000 HU being the ends.

    Args:
        blocks: int16 (n, X, Y, Z) each, together B volumes; on `out`'s device.
        normal: standard normal numbers (B, X, Y, Z) for the noise; default drawn from the default generator.
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
    # A CPU has no kernel to fuse into: simple passes over so few planes that each finds them still in the cache.
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
    """`_fused` as one kernel: each voxel is read once and written once, its noise drawn in registers."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return _fused  # a slim container's; a kernel an operation then
    compiled: Callable[..., None] = torch.compile(_fused)
    return compiled
