"""The benchmark of the whole path beside bare PyTorch trains both ways; how fast is not asked here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from brgsa_platform.config import load_config

pytestmark = pytest.mark.ray


def test_both_ways_train(pairs: Path, tmp_path: Path, one_thread: None) -> None:
    file = Path(__file__).parents[3] / "benchmarks" / "train_step.py"
    spec = importlib.util.spec_from_file_location("train_step_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    settings = [
        "data={style: report, unit: volume, shuffle_buffer: 20}",
        "model.vision={name: cnn3d, volume: [16, 16, 8], width: 4}",
        "train={epochs: 3, batch_size: 8, threads: 1, workers: 0}",
    ]
    config = load_config("paper-smoke", overrides=settings)
    rates = benchmark.measure(tmp_path, pairs, config, 1)
    assert {way: len(found) for way, found in rates.items()} == {"ours": 2, "bare": 2}
    assert min(*rates["ours"], *rates["bare"]) > 0
