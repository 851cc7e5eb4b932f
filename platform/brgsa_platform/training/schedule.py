"""The learning rate over steps and epochs; its state is JSON, so that a resumed run goes on with it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from brgsa_platform.config import OptimSection


def optimizer_of(config: OptimSection, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The configured optimiser over all of a model's weights."""
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


@dataclass
class Plateau:
    """Halve the rate after `patience` epochs without a better validation loss."""

    factor: float = 1.0
    best: float = math.inf
    bad_epochs: int = 0

    def after_epoch(self, loss: float, patience: int) -> None:
        if loss < self.best * (1 - 1e-4):
            self.best, self.bad_epochs = loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > patience:
            self.factor, self.bad_epochs = self.factor * 0.5, 0


class Schedule:
    """Sets the optimiser's learning rate before each step.

    Args:
        total_steps: of the whole run; the cosine ends there.
    """

    def __init__(self, config: OptimSection, total_steps: int) -> None:
        self.config, self.total_steps = config, total_steps
        self.plateau = Plateau()

    def rate(self, step: int) -> float:
        """The learning rate of a step counted from 0."""
        rate = self.config.lr
        if step < self.config.warmup_steps:
            rate *= (step + 1) / self.config.warmup_steps
        if self.config.schedule == "cosine":
            done = max(0, step - self.config.warmup_steps) / max(1, self.total_steps - self.config.warmup_steps)
            rate *= 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        elif self.config.schedule == "plateau":
            rate *= self.plateau.factor
        return rate

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def after_epoch(self, validation_loss: float) -> None:
        if self.config.schedule == "plateau" and math.isfinite(validation_loss):
            self.plateau.after_epoch(validation_loss, self.config.patience)

    def state(self) -> dict[str, Any]:
        # An infinite best loss has no JSON form.
        return {k: v for k, v in asdict(self.plateau).items() if v != math.inf}

    def restore(self, state: dict[str, Any]) -> None:
        self.plateau = Plateau(**state)
