"""The training loss: InfoNCE over the batch of all workers, and the bank's reconstruction error (method.md)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from brgsa.config import LossConfig
from brgsa.model import Embeddings


class Losses(NamedTuple):
    """Scalars: the weighted total and its unweighted parts (bridged and reconstruction are 0 without a bank)."""

    total: Tensor
    plain: Tensor
    bridged: Tensor
    reconstruction: Tensor


def info_nce(a_BD: Tensor, b_BD: Tensor, temperature: float, ignore_BB: Tensor | None = None) -> Tensor:
    """CE(cos(a, b)/temperature, diagonal) + CE(cos(b, a)/temperature, diagonal): the sum of both directions.

    Args:
        ignore_BB: True where a pair (i, j) is neither a positive nor a negative; symmetric, False on the diagonal.
    """
    logits_BB = F.normalize(a_BD, dim=-1) @ F.normalize(b_BD, dim=-1).T / temperature
    if ignore_BB is not None:
        logits_BB = logits_BB.masked_fill(ignore_BB, float("-inf"))
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)


def not_negatives(*codes_B: Tensor) -> Tensor:
    """(B, B) mask of pairs i != j that share a code: volumes of one scan, say, or of one text."""
    same_BB = torch.zeros(len(codes_B[0]), len(codes_B[0]), dtype=torch.bool, device=codes_B[0].device)
    for code_B in codes_B:
        same_BB |= code_B[:, None] == code_B[None, :]
    return same_BB.fill_diagonal_(False)


def brgsa_loss(
    volumes: Embeddings,
    texts: Embeddings,
    scans_B: Tensor,
    config: LossConfig,
    text_codes_B: Tensor | None = None,
    *,
    local: bool = False,
) -> Losses:
    """L = plain·InfoNCE(v, t) + bridged·InfoNCE(v', t') + reconstruction·(mse(t', t) + mse(v', v)).

    In a process group every worker calls it with its own part of the batch: the embeddings are gathered with their
    gradients, so that the loss and (after DDP's averaging) the gradients are those of one process on the whole batch.
    Equal parts are assumed.

    Args:
        scans_B: int64 code of each volume's scan; volumes of one scan are never each other's negatives.
        text_codes_B: int64 code of each volume's text, read when `config.same_text` is "ignore".
        local: keep to this process's rows, though there is a process group (each worker validates all volumes).
    """
    everyone = (lambda x: x) if local else gather
    codes = [everyone(scans_B)]
    if config.same_text == "ignore":
        if text_codes_B is None:
            raise ValueError("same_text='ignore' needs text_codes_B")
        codes.append(everyone(text_codes_B))
    ignore_BB = not_negatives(*codes)
    plain = info_nce(everyone(volumes.plain), everyone(texts.plain), config.temperature, ignore_BB)
    zero = plain.new_zeros(())
    bridged = reconstruction = zero
    if volumes.bridged is not None and texts.bridged is not None:
        bridged = info_nce(everyone(volumes.bridged), everyone(texts.bridged), config.temperature, ignore_BB)
        reconstruction = F.mse_loss(texts.bridged, texts.plain) + F.mse_loss(volumes.bridged, volumes.plain)
    total = config.plain * plain + config.bridged * bridged + config.reconstruction * reconstruction
    return Losses(total, plain.detach(), bridged.detach(), reconstruction.detach())


def gather(x: Tensor) -> Tensor:
    """(B, …) of this worker → (world·B, …) of all workers in rank order, with gradient; x itself without a group."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    if not x.requires_grad:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums every worker's gradient for this worker's part.

    Each worker computes the loss of the whole batch, so that sum is `world` times the gradient; DDP's mean over the
    workers divides by the same number.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        # gloo has no reduce-scatter for every dtype; the sum is taken whole and this worker's rows are cut out.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
