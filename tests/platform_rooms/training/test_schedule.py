"""Learning rates: warm-up, cosine, plateau as torch's, and the same after a stop."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brgsa_platform.config import OptimSection
from brgsa_platform.training.schedule import Schedule, optimizer_of


def test_the_rate_rises_linearly_to_its_value() -> None:
    schedule = Schedule(OptimSection(lr=0.4, schedule="constant", warmup_steps=4), 100)
    assert [schedule.rate(step) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert Schedule(OptimSection(lr=0.4, schedule="constant"), 100).rate(0) == 0.4


def test_the_cosine_falls_to_nothing_at_the_end() -> None:
    schedule = Schedule(OptimSection(lr=2.0, schedule="cosine", warmup_steps=10), 110)
    assert schedule.rate(9) == pytest.approx(2.0)
    assert schedule.rate(10) == pytest.approx(2.0)
    assert schedule.rate(35) == pytest.approx(1 + math.cos(math.pi / 4))
    assert schedule.rate(60) == pytest.approx(1.0)
    assert schedule.rate(110) == pytest.approx(0.0, abs=1e-12)
    assert schedule.rate(10_000) == pytest.approx(0.0, abs=1e-12)
    falling = [schedule.rate(step) for step in range(10, 110)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] > 0  # the last step still learns


def test_a_warm_up_longer_than_the_run_stays_finite() -> None:
    schedule = Schedule(OptimSection(lr=1.0, schedule="cosine", warmup_steps=50), 10)
    assert [schedule.rate(step) for step in (0, 9)] == pytest.approx([0.02, 0.2])


def test_a_plateau_halves_the_rate() -> None:
    schedule = Schedule(OptimSection(lr=1.0, schedule="plateau", patience=2), 100)
    rates = []
    for loss in (5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0):
        schedule.after_epoch(loss)
        rates.append(schedule.rate(0))
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0.1, 3.0), min_size=1, max_size=40), st.integers(0, 4))
def test_a_plateau_is_torchs(losses: list[float], patience: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, eps=0)
    ours = Schedule(OptimSection(lr=1.0, schedule="plateau", patience=patience), 100)
    for loss in losses:
        theirs.step(loss)
        ours.after_epoch(loss)
        assert ours.rate(3) == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_losses_move_a_plateau_only(kind: str) -> None:
    schedule = Schedule(OptimSection(schedule=kind, patience=0), 100)  # type: ignore[arg-type]
    before = schedule.rate(30)
    for _ in range(5):
        schedule.after_epoch(1.0)
    assert schedule.rate(30) == before


def test_a_loss_that_is_no_number_does_not_count() -> None:
    schedule = Schedule(OptimSection(lr=1.0, patience=0), 100)
    for loss in (math.nan, math.inf, math.nan):
        schedule.after_epoch(loss)
    assert schedule.rate(0) == 1.0
    schedule.after_epoch(2.0)
    assert schedule.state()["best"] == 2.0


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0.1, 3.0), max_size=20), st.lists(st.floats(0.1, 3.0), max_size=20))
def test_a_stop_changes_nothing(before: list[float], after: list[float]) -> None:
    config = OptimSection(lr=1.0, schedule="plateau", patience=1, warmup_steps=3)
    through, stopped, resumed = (Schedule(config, 50) for _ in range(3))
    for loss in before:
        through.after_epoch(loss)
        stopped.after_epoch(loss)
    # Strict JSON: an infinite best loss has no form there.
    resumed.restore(json.loads(json.dumps(stopped.state(), allow_nan=False)))
    for loss in after:
        through.after_epoch(loss)
        resumed.after_epoch(loss)
        assert resumed.rate(1) == through.rate(1)
    assert resumed.state() == through.state()


def test_the_rate_reaches_every_group() -> None:
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": [w]} for w in weights], lr=9.0)
    assert Schedule(OptimSection(lr=0.4, warmup_steps=4), 100).apply(optimizer, 1) == 0.2
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2]


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_the_configured_one(name: str, kind: type[torch.optim.Optimizer]) -> None:
    config = OptimSection(name=name, lr=0.3, betas=(0.5, 0.9), weight_decay=0.01)  # type: ignore[arg-type]
    model = torch.nn.Linear(2, 3)
    optimizer = optimizer_of(config, model)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.3, (0.5, 0.9), 0.01)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
