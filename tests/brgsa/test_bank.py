"""The knowledge bank's equation, its ways to start, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from refusals import refused

from brgsa.bank import KnowledgeBank
from brgsa.config import BankConfig


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


def test_the_equation_written_out() -> None:
    torch.manual_seed(0)
    bank = KnowledgeBank(BankConfig(size=9, init="gaussian"), 4)
    x, vectors = torch.randn(5, 4).numpy(), bank.vectors.detach().numpy()
    expected = np.zeros((5, 4))
    for row in range(5):
        weights = [math.exp(sum(x[row][d] * vectors[k][d] for d in range(4))) for k in range(9)]
        for k in range(9):
            expected[row] += weights[k] / sum(weights) * vectors[k]
    np.testing.assert_allclose(bank(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-5)


def test_one_vector_answers_everything() -> None:
    bank = KnowledgeBank(BankConfig(size=1, init="gaussian"), 4)
    torch.testing.assert_close(bank(torch.randn(3, 4)), bank.vectors.expand(3, 4))


def test_gradients_reach_the_bank_and_the_embedding() -> None:
    bank = KnowledgeBank(BankConfig(size=5), 3).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, m: torch.func.functional_call(bank, {"vectors": m}, x), (x, bank.vectors))


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
    bound = math.sqrt(6 / 120)
    assert 0.9 * bound < xavier.abs().max() <= bound


def test_kmeans_finds_the_clusters() -> None:
    torch.manual_seed(0)
    centres = 10 * torch.eye(3)
    points = centres.repeat_interleave(20, 0) + 0.01 * torch.randn(60, 3)
    bank = KnowledgeBank(BankConfig(size=3, init="kmeans"), 3)
    bank.initialise_from(points, seed=0)
    distances = torch.cdist(centres, bank.vectors)
    assert distances.min(1).values.max() < 0.1


def test_kmeans_centroids_are_the_means_of_their_clusters() -> None:
    torch.manual_seed(1)
    points = torch.cat([torch.randn(15, 4) + 30 * shift for shift in torch.eye(4)])
    bank = KnowledgeBank(BankConfig(size=4, init="kmeans"), 4)
    bank.initialise_from(points[torch.randperm(60)], seed=3)
    means = points.view(4, 15, 4).mean(1)
    order = torch.cdist(means, bank.vectors).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(bank.vectors[order], means, atol=1e-4, rtol=0)


def test_kmeans_repeats_itself() -> None:
    points = torch.randn(50, 4)
    first, second = (KnowledgeBank(BankConfig(size=7, init="kmeans"), 4) for _ in range(2))
    first.initialise_from(points, seed=3)
    second.initialise_from(points, seed=3)
    assert torch.equal(first.vectors, second.vectors)
    assert first.vectors.requires_grad


def test_kmeans_needs_enough_embeddings() -> None:
    bank = KnowledgeBank(BankConfig(size=8, init="kmeans"), 3)
    with refused("too-few-embeddings", field="bank.size", value=8):
        bank.initialise_from(torch.randn(7, 3))


def test_a_bank_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bank\.size"):
        BankConfig(size=0)
    with pytest.raises(ValueError, match=r"bank\.init"):
        BankConfig(init="zeros")
