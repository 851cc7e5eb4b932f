"""A small untrained model as a checkpoint on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from brgsa import checkpoint, zeroshot
from brgsa.config import BankConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.model import BrgSA
from brgsa.text import train_tokenizer
from brgsa.volumes import Geometry

LABELS = ["Cardiomegaly", "Pleural effusion", "Lung nodule"]
GEOMETRY = Geometry(spacing=(4.0, 4.0, 8.0), shape=(20, 20, 10))
CROP = (16, 16, 8)


VISION = VisionConfig(volume=CROP, evaluation="centre", patch=(4, 4, 2), width=16, depth=1, heads=2, mlp=32)


def save_model(
    folder: Path,
    bank: bool = True,
    vision: VisionConfig = VISION,
    more_data: dict[str, object] | None = None,
    **more: object,
) -> Path:
    config = ModelConfig(
        vision=vision,
        text=TextConfig(max_tokens=16, layers_summed=1, width=16, depth=1, heads=2, vocabulary=200),
        bank=BankConfig(enabled=bank, size=8),
        embedding=12,
    )
    torch.manual_seed(0)
    tokenizer = train_tokenizer(zeroshot.prompts(LABELS) * 2, 200)
    data = {"geometry": GEOMETRY.to_dict(), "style": "report", **(more_data or {})}
    return checkpoint.save(folder, BrgSA(config, tokenizer=tokenizer), {"data": data, "labels": LABELS, **more})
