"""The training loss: InfoNCE over the batch of all workers, and the bank's reconstruction error.

Suffixes name the axes of a tensor: B volumes (and texts) of the batch, D embedding width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from brgsa.config import LossConfig
from brgsa.model import Embeddings


class Losses(NamedTuple):
    """Scalars: the weighted total, with gradient, and its unweighted parts, without.

    Bridged and reconstruction are 0 without a bank.
    """

    total: Tensor
    plain: Tensor
    bridged: Tensor
    reconstruction: Tensor


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

    In a process group every worker calls it with its own part of the batch, all parts of one size. The embeddings are
    gathered with their gradients, so that the loss and (after DDP's averaging) the gradients are those of one process on
    the whole batch.

    Args:
        volumes, texts: embeddings of B pairs, row by row, float (B, D).
        scans_B: int64 code of each volume's scan; volumes of one scan are never each other's negatives.
        text_codes_B: int64 code of each volume's text, read when `config.same_text` is "ignore".
        local: use this process's rows alone, even in a process group (when each worker validates all volumes).

    Raises:
        ValueError: `config.same_text` is "ignore" and there are no text codes.
    """
    of_all_workers = (lambda x: x) if local else gather
    codes = [of_all_workers(scans_B)]
    if config.same_text == "ignore":
        if text_codes_B is None:
            raise ValueError("same_text='ignore' needs text_codes_B")
        codes.append(of_all_workers(text_codes_B))
    ignore_BB = not_negatives(*codes)
    plain = info_nce(of_all_workers(volumes.plain), of_all_workers(texts.plain), config.temperature, ignore_BB)
    bridged = reconstruction = plain.new_zeros(())
    if volumes.bridged is not None and texts.bridged is not None:
        bridged = info_nce(
            of_all_workers(volumes.bridged), of_all_workers(texts.bridged), config.temperature, ignore_BB
        )
        reconstruction = F.mse_loss(texts.bridged, texts.plain) + F.mse_loss(volumes.bridged, volumes.plain)
    total = config.plain * plain + config.bridged * bridged + config.reconstruction * reconstruction
    return Losses(total, plain.detach(), bridged.detach(), reconstruction.detach())


def not_negatives(*codes_B: Tensor) -> Tensor:
    """Pairs i != j that share a code (int64), as volumes of one scan or of one text do: bool (B, B)."""
    same_BB = torch.zeros(len(codes_B[0]), len(codes_B[0]), dtype=torch.bool, device=codes_B[0].device)
    for code_B in codes_B:
        same_BB |= code_B[:, None] == code_B[None, :]
    return same_BB.fill_diagonal_(False)


def info_nce(a_BD: Tensor, b_BD: Tensor, temperature: float, ignore_BB: Tensor | None = None) -> Tensor:
    """CE(cos(a, b)/temperature, diagonal) + CE(cos(b, a)/temperature, diagonal): the sum of both directions, a scalar.

    Args:
        a_BD, b_BD: float embeddings; row i of one belongs to row i of the other.
        ignore_BB: bool, True where a pair (i, j) is neither a positive nor a negative; symmetric, False on the diagonal.
    """
    logits_BB = F.normalize(a_BD, dim=-1) @ F.normalize(b_BD, dim=-1).T / temperature
    if ignore_BB is not None:
        logits_BB = logits_BB.masked_fill(ignore_BB, float("-inf"))
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)


def gather(x: Tensor) -> Tensor:
    """(B, …) of this worker → (world·B, …) of all workers in rank order, with gradient; x itself without a group."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    if not x.requires_grad:
        return _all_gather(x)
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums every worker's gradient for this worker's part.

    Each worker computes the loss of the whole batch, so that sum is `world` times the gradient; DDP's mean over the
    workers divides by the same number.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """This worker's rows (B, …) to all workers' (world·B, …)."""
        return _all_gather(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        """The gradient (world·B, …) of all workers' rows to that of this worker's (B, …)."""
        # gloo has no reduce-scatter for every dtype: sum all rows, then keep this worker's.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
