"""The training workers as one of them sees them: who it is, and what all of them do together."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
        node: number of this worker's node, from 0 on.
        leads_node: whether it is the first worker of its node.
        is_preempted: whether a node of the training is about to go; a collective. None: nobody watches.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    report: Callable[[dict[str, Any]], None] = lambda metrics: None
    local_world: int = 1
    node: int = 0
    leads_node: bool = True
    is_preempted: Callable[[], bool] | None = None

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
        if self.most(int(refusal is not None)):
            raise next(error for error in self.gather(refusal) if error is not None)
        return result[0]

    def gather(self, value: T) -> list[T]:
        """Everyone's value, which can be pickled, in rank order."""
        if self.world == 1:
            return [value]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, value, group=_of_the_hosts())
        return everyone

    def most(self, number: int) -> int:
        """The largest of everyone's numbers."""
        if self.world == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_of_the_hosts())
        return int(numbers.item())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the workers of a tensor (…) of the same shape on each, to the last bit the same on all of them."""
        if self.world == 1:
            return values
        everyone = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(everyone, values)
        return torch.stack(everyone).mean(0)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace each weight's gradient by its mean over the workers."""
        if self.world == 1:
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        for sum_of_all in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            assert sum_of_all is not None
            sum_of_all.wait()
        torch._foreach_div_(gradients, self.world)

    def share_weights(self, model: nn.Module) -> None:
        """Give every worker rank 0's weights and buffers."""
        if self.world > 1:
            for value in [*model.parameters(), *model.buffers()]:
                dist.broadcast(value.detach(), 0)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every worker rank 0's buffers: running statistics of batch norm differ from worker to worker."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@functools.cache
def _of_the_hosts() -> dist.ProcessGroup | None:
    """A group that talks from host to host, as devices would finish their work first; None: the default group does."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


ALONE = WorkerContext()
