"""A calibration beside a tiny checkpoint, as an evaluation leaves it."""

from __future__ import annotations

import json
from pathlib import Path

from brgsa import checkpoint
from brgsa_platform.evaluation.calibration.probabilities import FILE, FORMAT


def calibrate(model: Path, **scalings: tuple[float, float]) -> Path:
    """Keep temperature and bias of some abnormalities ("Lung_nodule"), and of no other."""
    prompts = {}
    for name, (temperature, bias) in scalings.items():
        words = name.replace("_", " ")
        prompts[f"There is {words.lower()}."] = {
            "abnormality": words, "temperature": temperature, "bias": bias, "positives": 5, "negatives": 5,
        }  # fmt: skip
    about = {"weights": checkpoint.weights_digest(model), "pairing": "mean", "protocol": "honest", "data": ""}
    tree = {"format": FORMAT, **about, "prompts": prompts, "unfitted": {}}
    (model / FILE).write_text(json.dumps(tree))
    return model
