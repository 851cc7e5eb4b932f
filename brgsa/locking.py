"""Towers, or their first blocks, that a training leaves as they are (LiT: Zhai et al. 2022, arXiv 2111.07991)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from brgsa.errors import UserError, nearest
from brgsa.model import BrgSA

TOWERS = ("vision", "text")


class Lock(NamedTuple):
    """A tower that is locked but for its last `free` blocks; with 0 of them it is locked as a whole, its final norm too."""

    tower: str
    free: int

    @classmethod
    def parse(cls, text: str) -> Lock:
        """From "vision" or "text", or "vision:2" for all but the last 2 blocks.

        Raises:
            ValueError: it names no tower, or no number of blocks from 1 on.
        """
        tower, colon, free = text.partition(":")
        if tower not in TOWERS:
            near = nearest(tower, TOWERS)
            raise ValueError(f"{text!r} names no tower{near}: use vision, text, or vision:2 for all but 2 blocks")
        if colon and (not free.isdecimal() or int(free) < 1):
            raise ValueError(
                f"{text!r} leaves no number of blocks free: use {tower}, or {tower}:2 for all but 2 blocks"
            )
        return cls(tower, int(free) if colon else 0)

    def check(self, blocks: int) -> None:
        """Refuse a lock of all but more blocks than a tower has; a convolutional tower has 0.

        Raises:
            ValueError: the tower has too few.
        """
        if self.free > blocks:
            has = f"{blocks} blocks" if blocks else "no blocks"
            raise ValueError(f"{self} leaves {self.free} blocks free and the {self.tower} tower has {has}")

    def __str__(self) -> str:
        return f"{self.tower}:{self.free}" if self.free else self.tower


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
