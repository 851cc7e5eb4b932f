"""The training workers as one of them sees them: who it is, and what all of them do together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from brgsa.errors import UserError

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class WorkerContext:
    """One of `world` training workers; by default the only one, on the CPU.

    With several workers torch's default process group connects them, and every method is a collective: all workers call
    it, in the same order.

    Attributes:
        rank: from 0 to world - 1; rank 0 writes files and talks to MLflow.
        device: where the model is.
        report: is told of each epoch's metrics.
        local_world: how many of the workers are on this node and share its CPUs.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    report: Callable[[dict[str, Any]], None] = lambda metrics: None
    local_world: int = 1

    def together(self, work: Callable[[], T]) -> T:
        """Do work that has no collective in it; where a worker refuses it, all workers do, with the same words.

        Otherwise the others would wait for that worker in their next collective until torch gives up, half an hour later.

        Raises:
            UserError: the refusal of the lowest rank that has one.
        """
        result: list[T] = []
        refusal: UserError | None = None
        try:
            result.append(work())
        except UserError as error:
            refusal = error
        if self._any(refusal is not None):
            raise next(error for error in self.gather(refusal) if error is not None)
        return result[0]

    def gather(self, value: T) -> list[T]:
        """Everyone's value, which can be pickled, in rank order."""
        if self.world == 1:
            return [value]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, value)
        return everyone

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The mean over the workers of each scalar."""
        stacked = torch.stack([value.detach() for value in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
            stacked /= self.world
        return dict(zip(values, stacked.tolist(), strict=True))

    def share_buffers(self, model: nn.Module) -> None:
        """Give every worker rank 0's buffers: running statistics of batch norm differ from worker to worker."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def _any(self, flag: bool) -> bool:
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())


ALONE = WorkerContext()
