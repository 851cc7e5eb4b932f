"""The loss against hand-computed numbers, and the same over two processes as in one."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from brgsa.config import BankConfig, LossConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.losses import brgsa_loss, info_nce, not_negatives
from brgsa.model import BrgSA, Embeddings
from brgsa.text import Tokens, train_tokenizer

TEXTS = [
    f"There is {word}." for word in ("a nodule", "fluid", "air", "no change", "a mass", "calcium", "a hernia", "scar")
]
SCANS = torch.tensor([0, 1, 2, 2, 3, 4, 5, 1])  # scan 1 lies on both workers, scan 2 on one


def reference_info_nce(a: np.ndarray, b: np.ndarray, temperature: float, ignore: np.ndarray) -> float:
    """Written out pair by pair."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    total = 0.0
    for left, right in ((a, b), (b, a)):
        losses = []
        for i in range(len(left)):
            logits = {j: left[i] @ right[j] / temperature for j in range(len(right)) if not ignore[i, j]}
            losses.append(-logits[i] + math.log(sum(math.exp(value) for value in logits.values())))
        total += float(np.mean(losses))
    return total


def test_info_nce_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    # cosines are the identity: each direction is log(1 + exp(-1/temperature))
    assert info_nce(a, a, 0.5).item() == pytest.approx(2 * math.log(1 + math.exp(-2.0)), rel=1e-6)


def test_info_nce_against_pairs_written_out() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    ignore = not_negatives(torch.tensor([0, 1, 1, 2, 3, 0]))
    expected = reference_info_nce(a, b, 0.1, ignore.numpy())
    assert info_nce(torch.tensor(a), torch.tensor(b), 0.1, ignore).item() == pytest.approx(expected, rel=1e-9)


def test_reconstructions_of_a_scan_are_not_negatives() -> None:
    mask = not_negatives(torch.tensor([7, 8, 7]), torch.tensor([1, 1, 2]))
    assert mask.tolist() == [[False, True, True], [True, False, False], [True, False, False]]


def test_what_is_ignored_moves_nothing() -> None:
    cosines = torch.eye(3) * 0.5 + 0.2
    ignore = not_negatives(torch.tensor([0, 0, 1]))
    # Unit vectors b_j along the axes, so that a_i holds its cosines with them.
    b = torch.eye(3)

    def loss(pair: float) -> torch.Tensor:
        a = cosines.clone()
        a[0, 1] = pair
        logits = (a / 0.1).masked_fill(ignore, float("-inf"))
        return torch.nn.functional.cross_entropy(logits, torch.arange(3))

    assert loss(-0.9) == loss(0.9)
    assert info_nce(b, b, 0.1, ignore) < info_nce(b, b, 0.1)


def test_total_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    volumes, texts = (Embeddings(torch.randn(4, 3), torch.randn(4, 3)) for _ in range(2))
    found = brgsa_loss(volumes, texts, torch.arange(4), LossConfig())
    none = torch.zeros(4, 4, dtype=torch.bool)
    assert volumes.bridged is not None
    assert texts.bridged is not None
    plain = info_nce(volumes.plain, texts.plain, 0.1, none)
    bridged = info_nce(volumes.bridged, texts.bridged, 0.1, none)
    mse = ((volumes.plain - volumes.bridged) ** 2).mean() + ((texts.plain - texts.bridged) ** 2).mean()
    assert found.total.item() == pytest.approx((plain + bridged + 0.5 * mse).item(), rel=1e-6)


def test_without_a_bank_it_is_clip() -> None:
    volumes, texts = (Embeddings(torch.randn(4, 3), None) for _ in range(2))
    found = brgsa_loss(volumes, texts, torch.arange(4), LossConfig())
    assert found.total.item() == found.plain.item() == info_nce(volumes.plain, texts.plain, 0.1).item()
    assert found.bridged.item() == found.reconstruction.item() == 0


def test_same_text_is_ignored_when_asked() -> None:
    torch.manual_seed(1)
    volumes, texts = (Embeddings(torch.randn(4, 3), None) for _ in range(2))
    codes = torch.tensor([5, 5, 6, 7])
    kept = brgsa_loss(volumes, texts, torch.arange(4), LossConfig(), codes).total
    ignored = brgsa_loss(volumes, texts, torch.arange(4), LossConfig(same_text="ignore"), codes).total
    assert ignored < kept
    with pytest.raises(ValueError, match="text_codes"):
        brgsa_loss(volumes, texts, torch.arange(4), LossConfig(same_text="ignore"))


def make_model() -> BrgSA:
    torch.manual_seed(0)
    config = ModelConfig(
        vision=VisionConfig(volume=(8, 8, 4), patch=(4, 4, 2), width=12, depth=1, heads=2, mlp=16),
        text=TextConfig(width=16, depth=1, heads=2, layers_summed=1, max_tokens=16),
        bank=BankConfig(size=6),
        embedding=10,
    )
    model = BrgSA(config, tokenizer=train_tokenizer(TEXTS * 2, 100))
    return model.eval()  # no dropout: the two runs must agree


def loss_and_gradients(model: torch.nn.Module, rows: slice) -> tuple[float, dict[str, torch.Tensor]]:
    volumes = torch.randn(8, 1, 8, 8, 4, generator=torch.Generator().manual_seed(3))
    inner: BrgSA = getattr(model, "module", model)
    volume, text = model(volumes[rows], tokens(inner, rows))
    losses = brgsa_loss(volume, text, SCANS[rows], LossConfig())
    losses.total.backward()
    return losses.total.item(), {n: p.grad.clone() for n, p in inner.named_parameters() if p.grad is not None}


def tokens(model: BrgSA, rows: slice) -> Tokens:
    everything = model.text.tokenize(TEXTS)
    return Tokens(*(part[rows] for part in everything))


def worker(rank: int, port: int, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = DistributedDataParallel(make_model())
    loss, gradients = loss_and_gradients(model, slice(4 * rank, 4 * rank + 4))
    # The reconstruction error is each worker's own: its mean over the workers is the whole batch's.
    mean = torch.tensor(loss)
    dist.all_reduce(mean)
    if rank == 0:
        torch.save({"loss": mean.item() / 2, "gradients": gradients}, out)
    dist.destroy_process_group()


def test_two_workers_equal_one_process(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path / "found.pt")), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    loss, gradients = loss_and_gradients(make_model(), slice(None))
    assert found["loss"] == pytest.approx(loss, abs=1e-5)
    assert found["gradients"].keys() == gradients.keys()
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-2
    for name, gradient in gradients.items():
        torch.testing.assert_close(found["gradients"][name], gradient, atol=1e-5, rtol=0, msg=name)
