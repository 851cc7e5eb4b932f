"""The whole model: both towers, the shared space, the bank between them, and zero-shot scores from it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from refusals import refused

from brgsa import zeroshot
from brgsa.config import BankConfig, ModelConfig, VisionConfig
from brgsa.model import BrgSA, Embeddings

Build = Callable[..., BrgSA]
VOLUMES = torch.randn(3, 1, 8, 8, 4, generator=torch.Generator().manual_seed(5))


def test_embeddings_are_linear_projections_of_the_towers(build: Build, corpus: list[str]) -> None:
    model = build()
    volumes, texts = model.encode_volumes(VOLUMES), model.encode_texts(corpus[:2])
    assert volumes.plain.shape == (3, 10)
    assert texts.plain.shape == (2, 10)
    assert not volumes.plain.requires_grad
    with torch.no_grad():
        by_hand = model.vision(VOLUMES) @ model.project_volume.weight.T + model.project_volume.bias
        torch.testing.assert_close(volumes.plain, by_hand)
        pooled = model.text(model.text.tokenize(corpus[:2]))
        torch.testing.assert_close(texts.plain, pooled @ model.project_text.weight.T + model.project_text.bias)


def test_both_modalities_go_through_one_bank(build: Build, corpus: list[str]) -> None:
    model = build()
    assert model.has_bank
    assert model.bank is not None
    for embeddings in (model.encode_volumes(VOLUMES), model.encode_texts(corpus[:2])):
        assert embeddings.bridged is not None
        vectors = model.bank.vectors.detach()
        torch.testing.assert_close(embeddings.bridged, torch.softmax(embeddings.plain @ vectors.T, -1) @ vectors)


def test_without_a_bank_it_is_clip(build: Build, corpus: list[str]) -> None:
    model, with_bank = build(enabled=False), build()
    assert not model.has_bank
    assert not any("bank" in name for name in model.state_dict())
    volumes, texts = model.encode_volumes(VOLUMES), model.encode_texts(corpus[:2])
    assert volumes.bridged is texts.bridged is None
    cosines = torch.nn.functional.cosine_similarity(volumes.plain[:, None], texts.plain[None], dim=-1)
    torch.testing.assert_close(zeroshot.scores(volumes, texts), cosines)
    with refused("pairing-needs-bank", field="pairing", value="v'.t"):
        zeroshot.scores(volumes, texts, "v'.t")
    # The bank draws its start last, so that the towers of both are the same.
    assert torch.equal(with_bank.encode_volumes(VOLUMES).plain, volumes.plain)


def test_the_score_is_the_mean_of_two_cosines(build: Build, corpus: list[str]) -> None:
    model = build()
    volumes, texts = model.encode_volumes(VOLUMES), model.encode_texts(corpus[:2])
    assert volumes.bridged is not None
    plain, bridged = (
        torch.nn.functional.cosine_similarity(v[:, None], texts.plain[None], dim=-1)
        for v in (volumes.plain, volumes.bridged)
    )
    torch.testing.assert_close(zeroshot.scores(volumes, texts), (plain + bridged) / 2)


def test_padding_and_company_change_nothing(build: Build, corpus: list[str]) -> None:
    model = build()
    alone = model.encode_texts(["Seen."]).plain
    torch.testing.assert_close(model.encode_texts(["Seen.", corpus[1]]).plain[:1], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode_volumes(VOLUMES).plain[:1], model.encode_volumes(VOLUMES[:1]).plain)


@pytest.mark.parametrize(
    "vision",
    [
        VisionConfig(volume=(8, 8, 4), patch=(4, 4, 2), width=12, depth=1, heads=2, mlp=16),
        VisionConfig(name="resnet10", volume=(16, 16, 8), width=4),
        VisionConfig(name="cnn3d", volume=(16, 16, 8), width=4, windows=((-1000, -200), (-160, 240))),
    ],
    ids=lambda vision: vision.name,
)
def test_every_weight_gets_a_gradient(build: Build, corpus: list[str], vision: VisionConfig) -> None:
    model = build(vision).train()
    volumes, texts = model(torch.randn(2, 1, *vision.volume), model.text.tokenize(corpus[:2]))
    (volumes.bridged.square().sum() + texts.bridged.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_parts_are_joined_in_order() -> None:
    parts = [Embeddings(torch.full((n, 2), float(n)), torch.full((n, 2), -float(n))) for n in (1, 3)]
    joined = Embeddings.concatenate(parts)
    assert joined.plain[:, 0].tolist() == [1, 3, 3, 3]
    assert joined.bridged is not None
    assert joined.bridged[:, 0].tolist() == [-1, -3, -3, -3]
    assert Embeddings.concatenate([Embeddings(part.plain, None) for part in parts]).bridged is None


def test_the_defaults_are_the_papers() -> None:
    config = ModelConfig()
    assert config.vision == VisionConfig(
        name="vit3d", volume=(224, 224, 112), patch=(16, 16, 8), width=768, depth=12, heads=12, mlp=3072, windows=()
    )
    assert (config.text.max_tokens, config.text.layers_summed) == (97, 4)
    assert config.bank == BankConfig(enabled=True, size=2048, init="orthogonal", scale_logits=False)
    assert config.embedding == 768


def test_a_configuration_comes_back_from_json() -> None:
    config = ModelConfig(vision=VisionConfig(windows=((-1000, -200), (0, 1000))), bank=BankConfig(size=7), embedding=3)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"model\.embedding"):
        ModelConfig(embedding=0)
