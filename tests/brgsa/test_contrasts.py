"""The sigmoid loss, several positives, and the labels' term, each against plain NumPy that writes the formula out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from brgsa import zeroshot
from brgsa.config import LossConfig
from brgsa.losses import (
    Pairs,
    Supervision,
    brgsa_loss,
    info_nce,
    not_negatives,
    pairs_of,
    sigmoid_loss,
    supervised_loss,
)
from brgsa.model import Embeddings

SCANS = torch.tensor([0, 1, 2, 2, 3, 4])
TEXTS = torch.tensor([7, 8, 7, 9, 7, 8])  # volumes 0, 2 and 4 read alike, and 1 and 5


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    x, y = (e.numpy() / np.linalg.norm(e.numpy(), axis=1, keepdims=True) for e in (a, b))
    return np.asarray(x @ y.T)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_which_pairs_belong_together() -> None:
    positive, ignore = pairs_of(SCANS, TEXTS, "positives")
    assert positive is not None
    for i in range(6):
        for j in range(6):
            same_text = bool(TEXTS[i] == TEXTS[j])
            assert bool(positive[i, j]) == same_text  # on the diagonal, too
            assert bool(ignore[i, j]) == (i != j and not same_text and bool(SCANS[i] == SCANS[j]))
    for same_text, codes in (("negatives", (SCANS,)), ("ignore", (SCANS, TEXTS))):
        only_diagonal, ignored = pairs_of(SCANS, TEXTS, same_text)
        assert only_diagonal is None
        assert torch.equal(ignored, not_negatives(*codes))


@pytest.mark.parametrize("same_text", ["negatives", "ignore", "positives"])
def test_the_sigmoid_loss_pair_by_pair(same_text: str) -> None:
    a, b = drawn(6, 5), drawn(6, 5, seed=1)
    temperature, bias = 0.2, -1.5
    cos, expected = cosines(a, b), 0.0
    for i in range(6):
        for j in range(6):
            alike, one_scan = bool(TEXTS[i] == TEXTS[j]), bool(SCANS[i] == SCANS[j])
            is_positive = i == j or (alike and same_text == "positives")
            if not is_positive and (one_scan or (alike and same_text == "ignore")):
                continue
            z = 1 if is_positive else -1
            expected -= log_sigmoid(z * (cos[i, j] / temperature + bias)) / 6
    pairs = pairs_of(SCANS, TEXTS, same_text)
    assert sigmoid_loss(a, b, temperature, bias, pairs).item() == pytest.approx(expected, rel=1e-12)
    assert sigmoid_loss(b, a, temperature, bias, pairs).item() == pytest.approx(expected, rel=1e-12)


def test_info_nce_towards_all_equal_texts() -> None:
    a, b = drawn(6, 5), drawn(6, 5, seed=1)
    positive, ignore = pairs_of(SCANS, TEXTS, "positives")
    assert positive is not None
    logits, expected = cosines(a, b) / 0.3, 0.0
    for way in (logits, logits.T):
        for i in range(6):
            counted = [k for k in range(6) if not ignore[i, k]]
            total = sum(math.exp(way[i, k]) for k in counted)
            positives = [p for p in range(6) if TEXTS[p] == TEXTS[i]]
            expected -= sum(math.log(math.exp(way[i, p]) / total) for p in positives) / len(positives) / 6
    assert info_nce(a, b, 0.3, ignore, positive).item() == pytest.approx(expected, rel=1e-12)


def test_without_equal_texts_several_positives_are_one() -> None:
    a, b = drawn(4, 3), drawn(4, 3, seed=1)
    positive, ignore = pairs_of(torch.arange(4), torch.arange(4), "positives")
    torch.testing.assert_close(info_nce(a, b, 0.1, ignore, positive), info_nce(a, b, 0.1))


def test_an_ignored_pair_beside_several_positives_has_no_gradient() -> None:
    a, b = drawn(6, 6).requires_grad_(), torch.eye(6, dtype=torch.float64)
    positive, ignore = pairs_of(SCANS, TEXTS, "positives")
    for loss in (info_nce(a, b, 0.3, ignore, positive), sigmoid_loss(a, b, 0.3, -1.0, Pairs(positive, ignore))):
        (gradient,) = torch.autograd.grad(loss, a)
        # Along the axis of text 3 the volume 2, of the same scan, moves by what its length does alone.
        lengthwise = (gradient[2] * a[2]).sum()
        assert gradient.isfinite().all()
        assert abs(lengthwise) < 1e-9  # a cosine does not see the length
    with_it = info_nce(a, b, 0.3, torch.zeros_like(ignore), positive)
    assert not torch.allclose(torch.autograd.grad(with_it, a)[0][2], gradient[2])


@pytest.mark.parametrize("bank", [True, False])
def test_the_labels_term_is_the_cross_entropy_of_the_prompt_scores(bank: bool) -> None:
    volumes = Embeddings(drawn(4, 3), drawn(4, 3, seed=1) if bank else None)
    prompts = Embeddings(drawn(2, 3, seed=2), drawn(2, 3, seed=3) if bank else None)
    labels = torch.tensor([[1.0, 0.0], [0.0, math.nan], [math.nan, math.nan], [1.0, 1.0]])
    scores = cosines(volumes.plain, prompts.plain)
    if volumes.bridged is not None:
        scores = (scores + cosines(volumes.bridged, prompts.plain)) / 2
    np.testing.assert_allclose(scores, zeroshot.scores(volumes, prompts).numpy(), rtol=1e-12)  # what is evaluated
    terms = []
    for i in range(4):
        for k in range(2):
            y, logit = float(labels[i, k]), scores[i, k] / 0.1 - 0.5
            if not math.isnan(y):
                terms.append(-(y * log_sigmoid(logit) + (1 - y) * log_sigmoid(-logit)))
    found = supervised_loss(volumes, Supervision(prompts, labels), 0.1, -0.5)
    assert found.item() == pytest.approx(sum(terms) / 5, rel=1e-12)


def test_unknown_labels_alone_teach_nothing() -> None:
    volumes, prompts = Embeddings(drawn(2, 3).requires_grad_(), None), Embeddings(drawn(2, 3, seed=1), None)
    loss = supervised_loss(volumes, Supervision(prompts, torch.full((2, 2), math.nan)), 0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert volumes.plain.grad is not None
    assert volumes.plain.grad.abs().max() == 0


@pytest.mark.parametrize("contrast", ["info_nce", "sigmoid"])
def test_the_total_takes_the_labels_by_their_weight(contrast: str) -> None:
    volumes, texts, prompts = (Embeddings(drawn(3, 4, seed=s), drawn(3, 4, seed=s + 1)) for s in (0, 2, 4))
    labels = torch.eye(3)
    config = LossConfig(contrast=contrast, bias=-2.0, supervised=0.25)  # type: ignore[arg-type]
    supervision = Supervision(prompts, labels)
    found = brgsa_loss(volumes, texts, torch.arange(3), config, supervision=supervision)
    without = brgsa_loss(volumes, texts, torch.arange(3), config)
    # InfoNCE does not feel an offset of all cosines, and has no bias to lend.
    term = supervised_loss(volumes, supervision, 0.1, -2.0 if contrast == "sigmoid" else 0.0)
    assert without.supervised.item() == 0
    assert found.supervised.item() == pytest.approx(term.item(), rel=1e-12)
    assert found.total.item() == pytest.approx(without.total.item() + 0.25 * term.item(), rel=1e-12)
    if contrast == "sigmoid":
        pairs = pairs_of(torch.arange(3), None, "negatives")
        assert without.plain.item() == pytest.approx(sigmoid_loss(volumes.plain, texts.plain, 0.1, -2.0, pairs).item())


def test_gradients_are_those_of_the_losses() -> None:
    def total(*parts: torch.Tensor) -> torch.Tensor:
        config = LossConfig(contrast="sigmoid", bias=-1.0, same_text="positives", supervised=0.5)
        v, bridged_v, t, bridged_t, prompts = parts
        supervision = Supervision(Embeddings(prompts, prompts), torch.tensor([[1.0, math.nan]] * 3 + [[0.0, 1.0]] * 3))
        return brgsa_loss(
            Embeddings(v, bridged_v), Embeddings(t, bridged_t), SCANS, config, TEXTS, supervision=supervision
        ).total

    parts = [drawn(6, 3, seed=s).requires_grad_() for s in range(4)]
    assert torch.autograd.gradcheck(total, (*parts, drawn(2, 3, seed=9).requires_grad_()))
