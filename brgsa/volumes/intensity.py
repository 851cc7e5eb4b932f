"""From int16 HU to the network's float in [-1, 1] on the training device, in one fused step.

Intensity scale, shift and Gaussian noise happen on the way. For the same parameters the result is that of MONAI's
ScaleIntensity, ShiftIntensity, RandGaussianNoise and ScaleIntensityRange one after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FULL_SCALE = 1000.0  # HU that become 1.0


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


def unit_intensities(ct: Tensor, intensity: Intensity | None = None, normal: Tensor | None = None) -> Tensor:
    """int16 HU (B, X, Y, Z) to float32 (B, 1, X, Y, Z) in [-1, 1], ±1000 HU being the ends; on `ct`'s device.

    Args:
        normal: standard normal numbers of `ct`'s shape for the noise; default drawn from the default generator.
    """
    factor = offset = deviation = None
    if intensity is not None:
        factor, offset = ((1 + intensity.scale) / FULL_SCALE).view(-1, 1, 1, 1), _per_volume(intensity.shift)
        deviation = None if intensity.noise is None else _per_volume(intensity.noise)
    step = _compiled() if ct.is_cuda else _in_place
    return step(ct, factor, offset, deviation, normal).unsqueeze(1)


def _per_volume(hu: Tensor) -> Tensor:
    return (hu / FULL_SCALE).view(-1, 1, 1, 1)


def _in_place(
    ct: Tensor, factor: Tensor | None, offset: Tensor | None, deviation: Tensor | None, normal: Tensor | None
) -> Tensor:
    # A CPU has no kernel to fuse into; what costs it is fresh memory, of which this takes none beside the result.
    out = ct.float()
    out.mul_(1 / FULL_SCALE if factor is None else factor)
    if offset is not None:
        out.add_(offset)
    if deviation is not None:
        out.addcmul_(torch.randn_like(out) if normal is None else normal, deviation)
    return out.clamp_(-1.0, 1.0)


def _expression(
    ct: Tensor, factor: Tensor | None, offset: Tensor | None, deviation: Tensor | None, normal: Tensor | None
) -> Tensor:
    out = ct.float() * (1 / FULL_SCALE if factor is None else factor)
    if offset is not None:
        out = out + offset
    if deviation is not None:
        out = out + (torch.randn_like(out) if normal is None else normal) * deviation
    return out.clamp(-1.0, 1.0)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """`_expression` as one kernel: each voxel is read once and written once, its noise drawn in registers."""
    compiled: Callable[..., Tensor] = torch.compile(_expression)
    return compiled
