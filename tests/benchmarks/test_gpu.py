"""The benchmark of the training step runs from end to end at its small size; how fast is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SOME = ["reference", "compiled", "compiled+micro-8+patch-dropout-0.5"]
OTHERS = ["eager", "compiled+checkpointing", "compiled+patch-dropout-0.5", "compiled+micro-16", "compiled+micro-8"]
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.parametrize(
    "arms", [SOME, pytest.param(["reference", *OTHERS], marks=pytest.mark.long)], ids=["some", "others"]
)
def test_arms_make_their_step_and_the_models_are_equal(arms: list[str]) -> None:
    command = [sys.executable, str(SCRIPT), "--smoke", "--json", "--arms", ",".join(arms)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "gpu"
    assert set(result["ratios"]) == {"mfu", "vs_reference"}
    made = result["figures"]["arms"]
    assert sorted(made) == sorted(arms)
    for name, figures in made.items():
        assert "failed" not in figures, (name, figures)
        assert figures["step_s"] > 0
    differences = result["figures"]["relative_differences"]
    assert set(differences) == {
        "embeddings", "gradients", "first_block_gradient", "micro_batch_gradients", "bfloat16_embeddings",
        "conversion_on_device",
    }  # fmt: skip
    assert max(differences.values()) < 1e-4
