"""The batch of all workers, with its gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from brgsa.model import Embeddings


def gather(x: Tensor) -> Tensor:
    """(B, …) of this worker → (world·B, …) of all workers in rank order, with gradient; x itself without a group."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    if not x.requires_grad:
        return _all_gather(x)
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def gather_embeddings(embeddings: Embeddings) -> Embeddings:
    """`gather` of both embeddings."""
    bridged = embeddings.bridged
    return Embeddings(gather(embeddings.plain), None if bridged is None else gather(bridged))


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
