"""How the benchmark of the losses compares them; what they bring is not asked here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def losses() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "losses.py"
    spec = importlib.util.spec_from_file_location("losses_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for its module
    spec.loader.exec_module(module)
    return module


def test_a_gain_is_over_the_papers_loss_with_the_same_seed(losses: ModuleType) -> None:
    def found(common: float) -> dict[str, float]:
        return {"common": common, "rare": 0.5, "held out": 0.5, "seconds": 1.0}

    measured = {
        "info_nce": {"0": found(0.6), "1": found(0.8)},
        "sigmoid": {"0": found(0.7), "1": found(0.8), "2": found(0.9)},  # the peer lacks the last seed
    }
    table = losses.compared(measured)
    assert table["info_nce"]["common"] == pytest.approx([0.7, 0.1414, 0.0, 0.0], abs=1e-4)
    assert table["sigmoid"]["common"] == pytest.approx([0.8, 0.1, 0.05, 0.0707], abs=1e-4)


def test_each_loss_is_a_configuration_with_the_same_budget(losses: ModuleType) -> None:
    budget = losses.Budget(scans=10, epochs=2, width=8)
    found = {name: losses.configured(name, budget, 1) for name in losses.LOSSES}
    peer = found.pop(losses.PEER)
    for config in found.values():
        assert config.loss != peer.loss
        assert (config.train, config.model, config.data, config.optim) == (
            peer.train,
            peer.model,
            peer.data,
            peer.optim,
        )
    assert not set(found["labels-half"].loss.abnormalities) & set(losses.HELD_OUT)
