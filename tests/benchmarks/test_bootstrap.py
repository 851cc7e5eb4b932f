"""The bootstrap's benchmark on a small study: both ways agree, and its last line is one object."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest


def test_both_ways_agree(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).parents[2] / "benchmarks" / "bootstrap.py"
    spec = importlib.util.spec_from_file_location("bootstrap_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = ["--volumes", "300", "--abnormalities", "4", "--resamples", "200", "--timed", "3", "--json"]
    assert module.main(small) == 0
    tree = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tree["benchmark"] == "bootstrap"
    assert tree["figures"]["largest_difference"] < 1e-9
    assert tree["ratios"]["vs_reference"] > 1
