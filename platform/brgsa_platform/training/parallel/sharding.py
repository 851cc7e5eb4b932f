"""FSDP2: weights, gradients and optimiser shared out among the workers, each block gathered while it computes.

torch's modules for it are imported where something is shared out: they take half a second, which every other training and
each trial would pay. What is shared out is told by what it can do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from brgsa.model import BrgSA


def shard(model: BrgSA) -> None:
    """Leave this worker its part of each weight; all workers must hold the same weights.

    The blocks of both towers are gathered one by one, all other weights together. A learned temperature or bias is one
    number, which each worker keeps.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block)
    fully_shard(model, ignored_params=None if model.scale is None else set(model.scale.parameters()))
    for method in ("embed_volumes", "embed_tokens"):
        register_fsdp_forward_method(model, method)


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Hold all weights while the block runs: there, workers may encode different numbers of batches."""
    sharded: list[Any] = [module for module in model.modules() if hasattr(module, "reshard")]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def whole(value: Any) -> Any:
    """A tree of dicts, lists and tensors with every shared tensor gathered in the CPU's memory; all workers call it."""
    if isinstance(value, dict):
        return {key: whole(one) for key, one in value.items()}
    if isinstance(value, list):
        return [whole(one) for one in value]
    return value.full_tensor().cpu() if is_shared_out(value) else value


def is_shared_out(value: Any) -> bool:
    """Whether it is a tensor of which this worker holds its part (torch's DTensor)."""
    return hasattr(value, "full_tensor")


def shared_out(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser of whole weights as that of one whose weights are shared out.

    Args:
        optimizer: over the same weights, shared out.
    """
    from torch.distributed.tensor import distribute_tensor

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(value: Any, weight: Any) -> Any:
        if not is_shared_out(weight) or not isinstance(value, Tensor) or value.shape != weight.shape:
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)

    moments = {
        number: {name: part(value, weights[number]) for name, value in of_weight.items()}
        for number, of_weight in state["state"].items()
    }
    return {**state, "state": moments}
