"""Towers, or their first blocks, that a training leaves as they are (LiT: Zhai et al. 2022, arXiv 2111.07991)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from brgsa.config import Lock
from brgsa.errors import UserError
from brgsa.model import BrgSA


def lock(model: BrgSA, locks: Sequence[Lock]) -> None:
    """Take the locked weights out of training; projections and bank always learn.

    Raises:
        UserError: a tower has no such blocks ("no-such-block").
    """
    for one in locks:
        tower: nn.Module = getattr(model, one.tower)
        blocks = _blocks(tower)
        try:
            one.check(len(blocks))
        except ValueError as error:
            raise UserError(
                f"optim.lock: {error}.", code="no-such-block", field="optim.lock", value=str(one)
            ) from error
        # What follows the blocks, a final norm, learns with the last of them.
        after = [] if not one.free else [*blocks[-one.free :], *_final(tower)]
        learning = {id(weight) for module in after for weight in module.parameters()}
        for weight in tower.parameters():
            if id(weight) not in learning:
                weight.requires_grad_(False)


def locked_modules(model: nn.Module) -> list[nn.Module]:
    """The largest modules of which no weight learns.

    A training keeps them in evaluation mode: what they compute stays the same, and running statistics of batch norm too.
    """
    weights = list(model.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        return [model]
    return [module for child in model.children() for module in locked_modules(child)]


def _blocks(tower: nn.Module) -> list[nn.Module]:
    """A transformer's blocks, first to last."""
    return next((list(module) for module in tower.modules() if isinstance(module, nn.ModuleList)), [])


def _final(tower: nn.Module) -> list[nn.Module]:
    return [tower.norm] if isinstance(getattr(tower, "norm", None), nn.Module) else []  # type: ignore[list-item]
