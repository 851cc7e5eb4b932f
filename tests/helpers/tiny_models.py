"""A checkpoint too small to know anything, and a scan for it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import torch

from brgsa import checkpoint, zeroshot
from brgsa.config import BankConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.model import BrgSA
from brgsa.text import train_tokenizer
from brgsa.volumes import Geometry

LABELS = ["Cardiomegaly", "Pleural effusion", "Lung nodule"]
PROMPTS = zeroshot.prompts(LABELS)
GEOMETRY = Geometry(spacing=(4.0, 4.0, 8.0), shape=(20, 20, 10))
REFERENCE = {PROMPTS[0]: [-1.0] * 3 + [1.0], PROMPTS[1]: [-1.0] * 4, PROMPTS[2]: [1.0] * 4}


def save_tiny(folder: Path, **more: object) -> Path:
    """A checkpoint whose percentiles for `PROMPTS` are 0.75, 1 and 0 for any scan; `more` goes into its run.json."""
    config = ModelConfig(
        vision=VisionConfig(
            volume=(16, 16, 8), evaluation="whole", patch=(4, 4, 2), width=16, depth=1, heads=2, mlp=32
        ),
        text=TextConfig(max_tokens=16, layers_summed=1, width=16, depth=1, heads=2, vocabulary=200),
        bank=BankConfig(enabled=True, size=8),
        embedding=12,
    )
    torch.manual_seed(0)
    model = BrgSA(config, tokenizer=train_tokenizer(PROMPTS * 2, 200))
    data = {"geometry": GEOMETRY.to_dict(), "style": "report", "fingerprint": "f1n6erpr1nt"}
    return checkpoint.save(folder, model, {"data": data, "labels": LABELS, "reference_scores": REFERENCE, **more})


def save_noise(path: Path, shape: tuple[int, int, int] = (40, 38, 22), low: int = -1000) -> Path:
    """A NIfTI file of random HU from `low` to 600, 200 mm wide."""
    hu = np.random.default_rng(0).integers(low, 600, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([-5.0, -5.0, 6.0, 1.0])), path)
    return path
