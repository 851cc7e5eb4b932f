"""The benchmark of the training loop on a GPU runs from end to end at its small size; how fast is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ARMS = ["whole", "micro-16"]  # how each step is made has tests of its own
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_training.py"


@pytest.mark.long
def test_every_arm_trains() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--json", "--arms", ",".join(ARMS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    arms = json.loads(done.stdout.splitlines()[-1])["figures"]["arms"]
    assert list(arms) == ARMS
    for name, figures in arms.items():
        assert "failed" not in figures, (name, figures)
        assert figures["step_s"] > 0
        assert figures["predicted_gib"] > 0
        assert figures["volumes_arrive_whole"]
    # The same weights learn from the same volumes, whichever way the step is made.
    assert arms["micro-16"]["losses"] == pytest.approx(arms["whole"]["losses"], rel=1e-3)
