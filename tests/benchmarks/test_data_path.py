"""The benchmark of the data path runs from end to end; how fast is not asked here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data_path.py"


@pytest.mark.ray
@pytest.mark.long
def test_it_runs_and_reports() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--small", "--volumes", "8", "--repeats", "1", "--seconds", "0.3", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == "data_path"
    assert set(found["ratios"]) == {
        "vs_monai_nifti", "vs_monai_persistent", "vs_floor", "as_buffer_vs_ours", "ray_vs_direct",
        "ray_vs_direct_a_core",
    }  # fmt: skip
    assert all(ratio > 0 for ratio in found["ratios"].values())
    for name, figures in found["figures"].items():
        if isinstance(figures, dict):
            assert 0 < figures["min"] <= figures["median"] <= figures["max"], name


@pytest.mark.slow
def test_too_few_volumes_are_refused() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--volumes", "3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--volumes 3 does not fill a batch of 8" in done.stderr
