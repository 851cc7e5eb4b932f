"""Gradients of a batch taken in micro batches are the gradients of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from brgsa.config import LossConfig, VisionConfig
from brgsa.losses import Losses, brgsa_loss
from brgsa.losses.micro_batches import backward_in_micro_batches
from brgsa.model import BrgSA, Embeddings
from brgsa.text import Tokens

VISION = VisionConfig(volume=(8, 8, 4), patch=(4, 4, 2), width=12, depth=2, heads=2, mlp=16)
TEXTS = ["There is a nodule.", "There is no change.", "A mass.", "Fluid.", "There is fluid and a mass.", "No nodule."]


def gradients(model: BrgSA) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def loss_of(volumes: Embeddings, texts: Embeddings) -> Losses:
    return brgsa_loss(volumes, texts, torch.arange(len(volumes.plain)), LossConfig())


@pytest.fixture
def model(build: Callable[..., BrgSA]) -> BrgSA:
    return build(vision=VISION)


@pytest.fixture
def batch(model: BrgSA) -> tuple[Tensor, Tokens]:
    return torch.rand(len(TEXTS), 1, 8, 8, 4), model.text.tokenize(TEXTS)


@pytest.mark.parametrize(("volumes_at_once", "texts_at_once"), [(1, 6), (2, 3), (4, 6), (6, 1)])
def test_the_gradients_are_the_whole_batchs(
    model: BrgSA, batch: tuple[Tensor, Tokens], volumes_at_once: int, texts_at_once: int
) -> None:
    volumes, tokens = batch
    model.eval()  # dropout has a test of its own
    whole = loss_of(*model(volumes, tokens))
    whole.total.backward()
    expected = gradients(model)
    model.zero_grad()

    parts = [Tokens(*rows) for rows in zip(*(part.split(texts_at_once) for part in tokens), strict=True)]
    losses = backward_in_micro_batches(
        [partial(model.embed_volumes, part) for part in volumes.split(volumes_at_once)],
        [partial(model.embed_tokens, part) for part in parts],
        loss_of,
    )
    torch.testing.assert_close(torch.stack(losses), torch.stack(whole).detach(), atol=1e-6, rtol=1e-5)
    assert (gradients(model) - expected).norm() <= 1e-5 * expected.norm()


def test_both_passes_drop_the_same_units(model: BrgSA, batch: tuple[Tensor, Tokens]) -> None:
    model.train()  # BERT drops units
    volumes, tokens = batch
    drawn: list[Tensor] = []

    def texts() -> Embeddings:
        embeddings = model.embed_tokens(tokens)
        drawn.append(embeddings.plain.detach())
        return embeddings

    backward_in_micro_batches([partial(model.embed_volumes, volumes)], [texts], loss_of)
    torch.testing.assert_close(drawn[0], drawn[1], atol=0, rtol=0)
    assert not torch.equal(drawn[0], model.embed_tokens(tokens).plain)


def test_a_scaled_loss_scales_the_gradients(model: BrgSA, batch: tuple[Tensor, Tokens]) -> None:
    volumes, tokens = batch
    model.eval()
    for scale in (1.0, 8.0):
        backward_in_micro_batches(
            [partial(model.embed_volumes, part) for part in volumes.split(3)],
            [partial(model.embed_tokens, tokens)],
            loss_of,
            scale=lambda loss, scale=scale: scale * loss,  # type: ignore[misc]
        )
        found = gradients(model)
        model.zero_grad()
        if scale == 1.0:
            once = found
    torch.testing.assert_close(found, 8 * once, rtol=1e-4, atol=1e-6)
