"""Learning rates: warm-up, cosine and plateau as the formula says, and the same after a stop."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa.config import LossConfig
from brgsa.locking import lock
from brgsa.model import BrgSA
from brgsa.temperature import LearnedScale
from brgsa.text import train_tokenizer
from brgsa_platform.config import OptimSection, load_config
from brgsa_platform.training.schedule import Schedule, optimizer_of

STEPS = 5  # an epoch


class Run:
    """A training that only keeps its learning rates."""

    def __init__(self, config: OptimSection, total_steps: int = 100) -> None:
        self.config, self.total_steps = config, total_steps
        self.optimizer = optimizer_of(config, torch.nn.Linear(1, 1))
        self.schedule = Schedule(config, self.optimizer, total_steps)

    def step(self) -> float:
        """A step of the training; gives its rate."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.after_step()
        return rate

    def rates(self, losses: list[float]) -> list[float]:
        """The rates of epochs with these validation losses."""
        rates = []
        for loss in losses:
            rates += [self.step() for _ in range(STEPS)]
            self.schedule.after_epoch(loss)
        return rates

    def stopped_and_resumed(self) -> Run:
        """The run after its process was killed and started again; strict JSON, as other readers want it."""
        saved = json.dumps(self.schedule.state(), allow_nan=False), self.optimizer.state_dict()
        resumed = Run(self.config, self.total_steps)
        resumed.optimizer.load_state_dict(saved[1])
        resumed.schedule.restore(json.loads(saved[0]))
        return resumed


def formula(config: OptimSection, total_steps: int, losses: list[float]) -> list[float]:
    """The same rates by definition: lr × warm-up × (cosine | halvings)."""
    halvings, best, bad = 1.0, math.inf, 0
    rates = []
    for epoch, loss in enumerate(losses):
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup_steps))
            if config.schedule == "cosine":
                done = max(0, step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
                rate *= 0.5 * (1 + math.cos(math.pi * done))
            rates.append(rate * halvings)
        if config.schedule == "plateau":
            best, bad = (loss, 0) if loss < best * (1 - 1e-4) else (best, bad + 1)
            if bad > config.patience:
                halvings, bad = halvings / 2, 0
    return rates


LOSSES = st.lists(st.floats(0.1, 3.0), min_size=1, max_size=12)


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from(["constant", "cosine", "plateau"]), st.integers(0, 30), st.integers(0, 3), LOSSES)
def test_the_rates_are_those_of_the_formula(kind: Any, warm_up: int, patience: int, losses: list[float]) -> None:
    config = OptimSection(lr=0.3, schedule=kind, warmup_steps=warm_up, patience=patience)
    total_steps = STEPS * len(losses)
    expected = formula(config, total_steps, losses)
    assert Run(config, total_steps).rates(losses) == pytest.approx(expected, rel=1e-9)


def test_the_rate_rises_linearly_to_its_value() -> None:
    run = Run(OptimSection(lr=0.4, schedule="constant", warmup_steps=4))
    assert [run.step() for _ in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert Run(OptimSection(lr=0.4, schedule="constant")).step() == 0.4


def test_the_cosine_falls_to_nothing_at_the_end() -> None:
    run = Run(OptimSection(lr=2.0, schedule="cosine", warmup_steps=10), 110)
    rates = [run.step() for _ in range(110)]
    assert (rates[9], rates[10]) == pytest.approx((2.0, 2.0))
    assert rates[35] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rates[60] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01  # the last step still learns


def test_a_warm_up_longer_than_the_run_stays_finite() -> None:
    run = Run(OptimSection(lr=1.0, schedule="cosine", warmup_steps=50), 10)
    assert [run.step() for _ in range(10)] == pytest.approx([(step + 1) / 50 for step in range(10)])


def test_a_plateau_halves_the_rate() -> None:
    run = Run(OptimSection(lr=1.0, schedule="plateau", patience=2))
    rates = run.rates([5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0])[::STEPS]
    assert rates == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_losses_move_a_plateau_only(kind: Any) -> None:
    config = OptimSection(schedule=kind, patience=0)
    assert Run(config).rates([1.0] * 5) == Run(config).rates([5.0, 4.0, 3.0, 2.0, 1.0])


def test_a_loss_that_is_no_number_does_not_count() -> None:
    run = Run(OptimSection(lr=1.0, patience=0))
    assert set(run.rates([math.nan, math.inf, math.nan, 2.0, 2.0])) == {1.0}
    assert run.step() == 0.5


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from(["constant", "cosine", "plateau"]), st.integers(0, 12), LOSSES, LOSSES)
def test_a_stop_changes_nothing(kind: Any, warm_up: int, before: list[float], after: list[float]) -> None:
    config = OptimSection(lr=1.0, schedule=kind, patience=1, warmup_steps=warm_up)
    undisturbed = Run(config)
    undisturbed.rates(before)
    for _ in range(3):  # and three steps of the next epoch
        undisturbed.step()
    resumed = undisturbed.stopped_and_resumed()
    assert resumed.rates(after) == undisturbed.rates(after)
    assert resumed.schedule.state() == undisturbed.schedule.state()


def test_the_state_of_an_earlier_version_is_refused() -> None:
    with refused("schedule-of-earlier-version"):
        Run(OptimSection()).schedule.restore({"factor": 0.5, "bad_epochs": 0})


def test_an_optimisers_step_that_the_scaler_left_out_is_no_warning() -> None:
    run = Run(OptimSection(warmup_steps=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.schedule.after_step()


def test_the_rate_reaches_every_group() -> None:
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": [w]} for w in weights], lr=0.4)
    schedule = Schedule(OptimSection(lr=0.4, warmup_steps=4, patience=0), optimizer, 100)
    optimizer.step()
    schedule.after_step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2]
    for _ in range(2):
        schedule.after_epoch(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_the_configured_one(name: Any, kind: type[torch.optim.Optimizer]) -> None:
    config = OptimSection(name=name, lr=0.3, betas=(0.5, 0.9), weight_decay=0.01)
    model = torch.nn.Linear(2, 3)
    optimizer = optimizer_of(config, model)
    assert type(optimizer) is kind
    matrix, bias = optimizer.param_groups
    assert (matrix["lr"], matrix["betas"], matrix["weight_decay"]) == (0.3, (0.5, 0.9), 0.01)
    assert (bias["lr"], bias["betas"], bias["weight_decay"]) == (0.3, (0.5, 0.9), 0.0)
    assert (matrix["params"], bias["params"]) == ([model.weight], [model.bias])


def model_of(*settings: str) -> tuple[BrgSA, OptimSection]:
    config = load_config("paper-smoke", overrides=["model.vision.positions=learned", *settings])
    return BrgSA(config.model, tokenizer=train_tokenizer(["There is fluid."] * 3, 50)), config.optim


def test_norms_biases_and_tables_do_not_decay() -> None:
    model, config = model_of("optim.weight_decay=0.1")
    decaying = {
        id(w) for group in optimizer_of(config, model).param_groups if group["weight_decay"] for w in group["params"]
    }
    names = {name for name, weight in model.named_parameters() if id(weight) in decaying}
    assert {"bank.vectors", "project_text.weight", "vision.patch_embed.proj.weight"} < names
    for name, _ in model.named_parameters():
        still = "norm" in name.lower() or name.endswith("bias") or "embeddings." in name
        assert (name in names) != (still or name in ("vision.pos_embed", "vision.cls_token")), name


def test_each_part_has_its_rate_through_warm_up_and_plateau() -> None:
    model, config = model_of("optim={lr: 0.4, warmup_steps: 4, patience: 0, rates: {text: 0.1, bank: 5}}")
    optimizer = optimizer_of(config, model)
    schedule = Schedule(config, optimizer, 100)

    def rates() -> dict[str, float]:
        of = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
        return {name.partition(".")[0]: of[id(weight)] for name, weight in model.named_parameters()}

    for step in range(1, 7):
        base = 0.4 * min(1, step / 4)
        assert schedule.rate == pytest.approx(base)
        assert rates() == pytest.approx(
            {"vision": base, "text": base / 10, "project_volume": base, "project_text": base, "bank": 5 * base}
        )
        schedule.after_step()
    for _ in range(2):
        schedule.after_epoch(1.0)
    assert rates()["text"] == pytest.approx(0.02)
    assert schedule.rate == pytest.approx(0.2)


def test_locked_weights_are_not_the_optimisers() -> None:
    model, config = model_of("optim.lock=[text, 'vision:1']")
    lock(model, config.locks)
    held = {id(w) for group in optimizer_of(config, model).param_groups for w in group["params"]}
    assert held == {id(weight) for weight in model.parameters() if weight.requires_grad}
    assert len(held) < len(list(model.parameters()))


def test_a_learned_temperature_decays_in_no_way_of_its_own() -> None:
    model = torch.nn.Linear(2, 2)
    model.scale = LearnedScale(LossConfig(learn_temperature=True))  # type: ignore[assignment]
    groups = optimizer_of(OptimSection(name="adamw", weight_decay=0.5), model).param_groups
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    assert decay == {id(model.weight): 0.5, id(model.bias): 0.0, id(model.scale.log_temperature): 0.0}
