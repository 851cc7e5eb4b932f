"""A learned temperature and bias: their gradients, their bounds, and what a checkpoint keeps of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from brgsa import checkpoint
from brgsa.config import LossConfig
from brgsa.losses import brgsa_loss
from brgsa.model import BrgSA, Embeddings
from brgsa.temperature import LearnedScale, learned_scale

BOTH = LossConfig(contrast="sigmoid", temperature=0.2, bias=-3.0, learn_temperature=True, learn_bias=True)


def loss(temperature: float, bias: float, learned: LearnedScale | None = None) -> torch.Tensor:
    volumes, texts = (
        Embeddings(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)), None) for seed in (0, 1)
    )
    config = LossConfig(contrast="sigmoid", temperature=temperature, bias=bias)
    return brgsa_loss(volumes, texts, torch.arange(4), config, learned=learned).total


def test_the_gradients_are_the_slopes_of_the_loss() -> None:
    learned = learned_scale(BOTH)
    assert learned is not None
    total = loss(9.0, 9.0, learned)  # the learned values count, not the configuration's
    assert total.item() == pytest.approx(loss(0.2, -3.0).item(), rel=1e-6)
    total.backward()  # type: ignore[no-untyped-call]
    assert learned.log_temperature is not None
    assert learned.bias is not None
    assert learned.log_temperature.grad is not None
    assert learned.bias.grad is not None
    h = 1e-2
    over_log = (loss(0.2 * math.exp(h), -3.0) - loss(0.2 * math.exp(-h), -3.0)).item() / (2 * h)
    over_bias = (loss(0.2, -3.0 + h) - loss(0.2, -3.0 - h)).item() / (2 * h)
    assert learned.log_temperature.grad.item() == pytest.approx(over_log, rel=1e-3)
    assert learned.bias.grad.item() == pytest.approx(over_bias, rel=1e-3)


@pytest.mark.parametrize(("sign", "temperature", "bias"), [(1, 1.0, 0.0), (-1, 0.01, -20.0)])
def test_a_step_beyond_the_bounds_ends_at_them(sign: int, temperature: float, bias: float) -> None:
    learned = LearnedScale(BOTH)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter += 100 * sign
    learned.clamp()
    assert learned.learned() == pytest.approx({"temperature": temperature, "bias": bias}, rel=1e-6)


def test_within_the_bounds_nothing_is_moved() -> None:
    learned = LearnedScale(BOTH)
    before = [parameter.clone() for parameter in learned.parameters()]
    learned.clamp()
    assert all(torch.equal(a, b) for a, b in zip(before, learned.parameters(), strict=True))


def test_what_is_not_learned_stays_the_configurations() -> None:
    assert learned_scale(LossConfig()) is None
    learned = learned_scale(LossConfig(learn_temperature=True))
    assert learned is not None
    assert [name for name, _ in learned.named_parameters()] == ["log_temperature"]
    assert learned.values(LossConfig(bias=-4.0))[1] == -4.0
    assert learned.learned().keys() == {"temperature"}


def test_the_values_as_they_are_make_the_same_loss_even_at_a_bound() -> None:
    learned = LearnedScale(BOTH)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter -= 100
    learned.clamp()
    fixed = learned.fixed(BOTH)  # rounded, the temperature may lie a hair outside
    assert not fixed.learn_temperature
    assert not fixed.learn_bias
    assert loss(fixed.temperature, fixed.bias).item() == pytest.approx(loss(1.0, 0.0, learned).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature_bounds": (1.0, 0.01)}, "temperature_bounds"),
        ({"temperature_bounds": (0.1, 0.1)}, "temperature_bounds"),
        ({"temperature_bounds": (0.0, 1.0)}, "temperature_bounds"),
        ({"bias_bounds": (0.0, -10.0)}, "bias_bounds"),
        ({"learn_temperature": True, "temperature": 2.0}, "temperature_bounds"),
        ({"learn_bias": True, "contrast": "sigmoid", "bias": 1.0}, "bias_bounds"),
        ({"learn_bias": True}, "sigmoid"),
        ({"supervised": -1.0}, "supervised"),
    ],
)
def test_bounds_that_make_no_sense(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LossConfig(**settings)  # type: ignore[arg-type]


def test_a_fixed_temperature_has_no_bounds() -> None:
    assert LossConfig(temperature=0.001).temperature == 0.001


def test_a_checkpoint_keeps_what_is_learned(build: Callable[..., BrgSA], tmp_path: Path) -> None:
    trained = build()
    trained.scale = LearnedScale(BOTH)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.25
    folder = checkpoint.save(tmp_path / "learned", trained, {})
    resumed = build()
    resumed.scale = LearnedScale(BOTH)
    checkpoint.load_weights(resumed, folder)
    assert resumed.scale.learned() == pytest.approx({"temperature": 0.2 * math.exp(0.25), "bias": -2.75})
    # A model that scores has no use for it.
    scoring = checkpoint.load(folder).model
    assert scoring.scale is None
    assert torch.equal(scoring.project_text.weight, trained.project_text.weight)


def test_a_checkpoint_without_them_still_loads(build: Callable[..., BrgSA], tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path / "fixed", build(), {})
    model = build()
    model.scale = LearnedScale(BOTH)
    checkpoint.load_weights(model, folder)
    assert model.scale.learned() == pytest.approx({"temperature": 0.2, "bias": -3.0})
