"""The knowledge bank's equation, its ways to start, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from brgsa.bank import KnowledgeBank
from brgsa.config import BankConfig
from brgsa.errors import UserError


def test_the_equation_by_hand() -> None:
    bank = KnowledgeBank(BankConfig(size=2), 2)
    with torch.no_grad():
        bank.vectors.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    # x Mᵀ = (1, 2): softmax weights 1/(1+e) and e/(1+e)
    first, second = 1 / (1 + math.e), math.e / (1 + math.e)
    torch.testing.assert_close(bank(torch.tensor([[1.0, 1.0]])), torch.tensor([[first, 2 * second]]))


def test_scaled_logits() -> None:
    plain, scaled = KnowledgeBank(BankConfig(size=5), 4), KnowledgeBank(BankConfig(size=5, scale_logits=True), 4)
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(scaled(x), plain(x / 2))  # sqrt(4)


def test_the_output_lies_in_the_convex_hull() -> None:
    bank = KnowledgeBank(BankConfig(size=7), 3)
    out = bank(100 * torch.randn(50, 3))
    assert (out <= bank.vectors.max(0).values + 1e-6).all()
    assert (out >= bank.vectors.min(0).values - 1e-6).all()


def test_orthogonal_start() -> None:
    narrow = KnowledgeBank(BankConfig(size=4), 8).vectors
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(4), atol=1e-5, rtol=0)
    tall = KnowledgeBank(BankConfig(size=16), 8).vectors
    torch.testing.assert_close(tall.T @ tall, torch.eye(8), atol=1e-5, rtol=0)


def test_other_starts() -> None:
    uniform = KnowledgeBank(BankConfig(size=100, init="uniform"), 20).vectors
    assert uniform.abs().max() <= 0.1
    assert uniform.abs().max() > 0.09
    assert KnowledgeBank(BankConfig(size=500, init="gaussian"), 40).vectors.std().item() == pytest.approx(1, abs=0.05)
    xavier = KnowledgeBank(BankConfig(size=100, init="xavier"), 20).vectors
    assert xavier.abs().max() <= math.sqrt(6 / 120)


def test_kmeans_finds_the_clusters() -> None:
    torch.manual_seed(0)
    centres = 10 * torch.eye(3)
    points = centres.repeat_interleave(20, 0) + 0.01 * torch.randn(60, 3)
    bank = KnowledgeBank(BankConfig(size=3, init="kmeans"), 3)
    bank.initialise_from(points, seed=0)
    distances = torch.cdist(centres, bank.vectors)
    assert distances.min(1).values.max() < 0.1


def test_kmeans_needs_enough_embeddings() -> None:
    bank = KnowledgeBank(BankConfig(size=8, init="kmeans"), 3)
    with pytest.raises(UserError, match=r"at least bank\.size=8"):
        bank.initialise_from(torch.randn(7, 3))


def test_a_bank_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bank\.enabled=false"):
        BankConfig(size=0)
    with pytest.raises(ValueError, match="orthogonal"):
        BankConfig(init="zeros")
