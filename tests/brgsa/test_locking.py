"""Locked towers and blocks: what learns and what does not, and locks of what is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from refusals import refused

from brgsa.config import Lock, VisionConfig
from brgsa.locking import lock, locked_modules
from brgsa.model import BrgSA

Build = Callable[..., BrgSA]


def learning(model: BrgSA) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_locked_tower_does_not_learn_and_all_else_does(build: Build, tower: str) -> None:
    model = build()
    before = learning(model)
    lock(model, [Lock.parse(tower)])
    assert learning(model) == {name for name in before if not name.startswith(f"{tower}.")}
    assert locked_modules(model) == [getattr(model, tower)]


def test_the_last_blocks_stay_free(build: Build) -> None:
    model = build(replace(build().config.vision, depth=3))
    lock(model, [Lock.parse("vision:1"), Lock.parse("text:1")])
    towers = {name for name in learning(model) if name.startswith(("vision", "text"))}
    assert {name.rsplit(".", 3)[0] for name in towers} >= {"vision.blocks.2", "text.bert.encoder.layer.1.attention"}
    assert all(name.startswith(("vision.blocks.2.", "vision.norm.", "text.bert.encoder.layer.1.")) for name in towers)
    assert model.vision.blocks[0] in locked_modules(model)
    assert model.vision.blocks[2] not in locked_modules(model)


def test_an_unlocked_model_has_no_locked_modules(build: Build) -> None:
    """A fixed position table is a weight, not a module."""
    assert locked_modules(build()) == []


@pytest.mark.parametrize("text", ["sight", "vision:0", "vision:-1", "text:two", "vision:", ""])
def test_a_lock_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no tower|leaves no number"):
        Lock.parse(text)


@pytest.mark.parametrize(
    ("vision", "locked"),
    [(None, "vision:2"), (None, "text:3"), (VisionConfig(name="cnn3d", volume=(16, 16, 8), width=4), "vision:1")],
)
def test_a_lock_of_blocks_that_do_not_exist_is_refused(build: Build, vision: VisionConfig | None, locked: str) -> None:
    model = build(vision) if vision else build()
    before = learning(model)
    with refused("no-such-block", field="optim.lock", value=locked):
        lock(model, [Lock.parse(locked)])
    assert learning(model) == before


def test_a_locked_towers_output_needs_no_gradient(build: Build) -> None:
    """So that nothing is kept for a backward pass."""
    model = build()
    lock(model, [Lock.parse("vision")])
    assert not model.vision(torch.zeros(1, 1, 8, 8, 4)).requires_grad
