"""Where a step's time goes, by hand."""

from __future__ import annotations

import time

import pytest
import torch

from brgsa_platform.training.monitoring.step_clock import DATA, StepClock


def test_each_part_has_its_time() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.begin(measured=True)
    for part, seconds in ((DATA, 0.02), ("forward", 0.01), ("copy", 0.0), ("forward", 0.03)):
        time.sleep(seconds)
        clock.mark(part)
    found = clock.read()
    assert list(found) == [DATA, "forward", "copy"]
    assert 0.02 <= found[DATA] < found["forward"] + found["copy"] + 0.02
    assert found["forward"] >= 0.04
    assert found["copy"] < 0.01
    assert clock.read() == {}


def test_a_step_that_is_not_measured_costs_nothing() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.begin(measured=False)
    clock.mark(DATA)
    assert clock.read() == {}
    started = time.perf_counter()
    for _ in range(10_000):
        clock.mark(DATA)
    assert time.perf_counter() - started < 1.0  # a tenth of a millisecond each, on the busiest machine


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_by_its_own_clock() -> None:
    clock = StepClock(torch.device("cuda"))
    square = torch.randn(8192, 8192, device="cuda")
    clock.begin(measured=True)
    clock.mark(DATA)
    for _ in range(20):
        square @ square
    clock.mark("forward")
    torch.cuda.synchronize()
    found = clock.read()
    assert found["forward"] > 10 * found[DATA]
