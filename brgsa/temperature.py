"""The temperature and the bias of the contrast where they are learned with the towers."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from brgsa.config import LossConfig


class LearnedScale(nn.Module):
    """What the configuration says is learned: the logarithm of the temperature, the bias of the sigmoid loss, or both.

    They start at the configuration's values. A step may carry them beyond their bounds; `clamp` brings them back, as CLIP
    does (Radford et al. 2021).
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.temperature_bounds, self.bias_bounds = config.temperature_bounds, config.bias_bounds
        self.log_temperature = _learned(math.log(config.temperature), config.learn_temperature)
        self.bias = _learned(config.bias, config.learn_bias)

    def values(self, config: LossConfig) -> tuple[float | Tensor, float | Tensor]:
        """Temperature and bias: a scalar with gradient where it is learned, else the configuration's."""
        return (
            config.temperature if self.log_temperature is None else self.log_temperature.exp(),
            config.bias if self.bias is None else self.bias,
        )

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the values back within their bounds; to be called after each step."""
        if self.log_temperature is not None:
            self.log_temperature.clamp_(*map(math.log, self.temperature_bounds))
        if self.bias is not None:
            self.bias.clamp_(*self.bias_bounds)

    @torch.no_grad()
    def learned(self) -> dict[str, float]:
        """ "temperature" and "bias", those that are learned, as they now are; waits for the device."""
        found = {} if self.log_temperature is None else {"temperature": float(self.log_temperature.exp())}
        return found if self.bias is None else {**found, "bias": float(self.bias)}

    @torch.no_grad()
    def fixed(self, config: LossConfig) -> LossConfig:
        """The configuration of the same loss with the values as they now are, none of them learned; waits for the device."""
        temperature, bias = map(float, self.values(config))
        return replace(config, temperature=temperature, bias=bias, learn_temperature=False, learn_bias=False)


def learned_scale(config: LossConfig) -> LearnedScale | None:
    """A new one; None where nothing is learned."""
    return LearnedScale(config) if config.learn_temperature or config.learn_bias else None


def _learned(value: float, is_learned: bool) -> nn.Parameter | None:
    return nn.Parameter(torch.tensor(value, dtype=torch.float32)) if is_learned else None
