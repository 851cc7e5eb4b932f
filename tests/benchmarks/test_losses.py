"""How the benchmark of the losses compares them; what they bring is not asked here."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def modules() -> tuple[ModuleType, ModuleType]:
    """The benchmark, and what it shares with that of the summaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("losses"), importlib.import_module("arms")


@pytest.fixture
def losses(modules: tuple[ModuleType, ModuleType]) -> ModuleType:
    return modules[0]


@pytest.fixture
def arms(modules: tuple[ModuleType, ModuleType]) -> ModuleType:
    return modules[1]


def test_a_gain_is_over_the_papers_loss_with_the_same_seed(losses: ModuleType, arms: ModuleType) -> None:
    def found(common: float) -> dict[str, float]:
        return {"common": common, "rare": 0.5, "held out": 0.5, "seconds": 1.0}

    measured = {
        "info_nce": {"0": found(0.6), "1": found(0.8)},
        "sigmoid": {"0": found(0.7), "1": found(0.8), "2": found(0.9)},  # the peer lacks the last seed
    }
    table = arms.compared(measured, losses.COMPARISON)
    assert table["info_nce"]["common"] == pytest.approx([0.7, 0.1414, 0.0, 0.0], abs=1e-4)
    assert table["sigmoid"]["common"] == pytest.approx([0.8, 0.1, 0.05, 0.0707], abs=1e-4)


def test_each_loss_is_a_configuration_with_the_same_budget(losses: ModuleType, arms: ModuleType) -> None:
    budget = arms.Budget(scans=10, epochs=2, width=8)
    found = {name: arms.configured(settings, budget, 1) for name, settings in losses.LOSSES.items()}
    peer = found.pop(losses.PEER)
    for config in found.values():
        assert config.loss != peer.loss
        assert (config.train, config.model, config.data, config.optim) == (
            peer.train,
            peer.model,
            peer.data,
            peer.optim,
        )
    assert not set(found["labels-half"].loss.abnormalities) & set(arms.HELD_OUT)
