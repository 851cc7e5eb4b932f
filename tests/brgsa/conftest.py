"""A model small enough for a millisecond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from brgsa.config import BankConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.model import BrgSA
from brgsa.text import train_tokenizer

CORPUS = ["There is pleural effusion.", "There is cardiomegaly and no lymphadenopathy.", "Sequelae are seen."] * 3
VISION = VisionConfig(volume=(8, 8, 4), patch=(4, 4, 2), width=12, depth=1, heads=2, mlp=16)
TEXT = TextConfig(width=16, depth=2, heads=2, layers_summed=2, max_tokens=12, vocabulary=60)


@pytest.fixture(scope="module", autouse=True)
def _small(one_thread: None) -> None:
    """Every model here is."""


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return CORPUS


@pytest.fixture(scope="session")
def build() -> Callable[..., BrgSA]:
    """Makes a BrgSA for volumes (8, 8, 4), width 10, the same at each call; in evaluation mode."""

    def make(vision: VisionConfig = VISION, text: TextConfig = TEXT, **bank: Any) -> BrgSA:
        torch.manual_seed(0)
        config = ModelConfig(vision=vision, text=text, bank=BankConfig(**{"size": 6, **bank}), embedding=10)
        return BrgSA(config, tokenizer=train_tokenizer(CORPUS, TEXT.vocabulary)).eval()

    return make
