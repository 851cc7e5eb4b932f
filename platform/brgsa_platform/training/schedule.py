"""The optimiser and its learning rate: torch's own schedulers, whose state is JSON in the checkpoint."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from brgsa.errors import UserError
from brgsa_platform.config import OptimSection

PARTS = {
    "vision": "vision",
    "text": "text",
    "project_volume": "projections",
    "project_text": "projections",
    "bank": "bank",
}
TABLES = ("cls_token", "pos_embed")  # beside every embedding's


def optimizer_of(config: OptimSection, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimiser over the weights that learn; on a GPU fused into one kernel, which never waits.

    A group is a part of the model with or without weight decay; its `share` of the rate is the part's.
    """
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    groups = _groups(config, model)
    fused = all(weight.is_cuda for group in groups for weight in group["params"])
    return kind(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused or None)


def tower_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All weights but a learned temperature and bias."""
    return [weight for name, weight in model.named_parameters() if not name.startswith("scale.")]


def _groups(config: OptimSection, model: nn.Module) -> list[dict[str, Any]]:
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            part = PARTS.get(name.partition(".")[0], "")
            decays = weight.ndim > 1 and id(weight) not in embeddings and not name.endswith(TABLES)
            groups.setdefault((part, decays), []).append(weight)
    shares = {(part, decays): getattr(config.rates, part) if part else 1.0 for part, decays in groups}
    return [
        {
            "params": weights,
            "lr": config.lr * shares[key],
            "share": shares[key],
            "weight_decay": config.weight_decay if key[1] else 0.0,
        }
        for key, weights in groups.items()
    ]


class Schedule:
    """The learning rate of each step: a linear warm-up, then constant, a cosine, or halved on a plateau.

    Args:
        optimizer: a new one with the rate `config.lr`; its rate is the one to use next, from the first step on.
        total_steps: steps of the whole run; the cosine reaches 0 there.
    """

    def __init__(self, config: OptimSection, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self._optimizer = optimizer
        self._by_step = _by_step(config, optimizer, total_steps)
        self._plateau: ReduceLROnPlateau | None = None
        if config.schedule == "plateau":
            # eps=0: a halving counts however small the rate is.
            self._plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=config.patience, eps=0)

    @property
    def rate(self) -> float:
        """The rate to use next, before a part's share of it."""
        group = self._optimizer.param_groups[0]
        return float(group["lr"] / group["share"])

    def after_step(self) -> None:
        """Set the rate of the next step."""
        with warnings.catch_warnings():
            # A gradient scaler leaves out the optimiser's step where gradients overflow, as they often do in the first.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._by_step.step()

    def after_epoch(self, loss: float) -> None:
        """Take an epoch's validation loss, which a plateau watches; NaN and infinity do not count."""
        if self._plateau is not None and math.isfinite(loss):
            self._plateau.step(loss)

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as strict JSON."""
        plateau = None
        if self._plateau is not None:
            # An infinite number, as the best loss before the first epoch, has no JSON form; a new scheduler has it too.
            plateau = {name: value for name, value in self._plateau.state_dict().items() if value != math.inf}
        return {"by_step": self._by_step.state_dict(), "plateau": plateau}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`. The optimiser's own state, which holds the current rate, is restored beforehand.

        Raises:
            UserError: the state is that of an earlier version.
        """
        if "by_step" not in state:
            raise UserError(
                "The checkpoint's learning rate was saved by an earlier version: finish the run with that version, or "
                "train anew with another --out.",
                code="schedule-of-earlier-version",
                field="schedule",
            )
        self._by_step.load_state_dict(state["by_step"])
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])


def _by_step(config: OptimSection, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """What changes the rate from step to step; each multiplies the current rate, so that a plateau's halvings stay."""
    warm_up_steps = config.warmup_steps
    warm_up = LinearLR(optimizer, start_factor=1 / max(1, warm_up_steps), total_iters=max(0, warm_up_steps - 1))
    if config.schedule != "cosine":
        return warm_up
    cosine = CosineAnnealingLR(optimizer, T_max=max(1, total_steps - warm_up_steps))
    return SequentialLR(optimizer, [warm_up, cosine], milestones=[warm_up_steps]) if warm_up_steps else cosine
