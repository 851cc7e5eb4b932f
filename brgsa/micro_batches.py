"""The contrastive loss of a whole batch in the memory of a micro batch (GradCache, Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor

from brgsa.losses import Losses
from brgsa.model import Embeddings

MicroBatch = TypeVar("MicroBatch")


def backward_in_micro_batches(
    encode: Callable[[MicroBatch], tuple[Embeddings, Embeddings]],
    micro_batches: Sequence[MicroBatch],
    loss_of: Callable[[Embeddings, Embeddings], Losses],
    *,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    no_sync: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Losses:
    """Add to the weights' gradients what one backward pass over the whole batch would add.

    Every micro batch is encoded twice. The first pass keeps embeddings only; the loss over all of them gives the
    gradient of each embedding. The second pass draws the same random numbers (dropout) as the first, keeps the
    activations of one micro batch, and carries these gradients on to the weights.

    Args:
        encode: (volume embeddings, text embeddings) of a micro batch. It enters autocast by itself: a cast weight that
            autocast keeps from the first pass has no gradient in the second.
        micro_batches: in order, together the batch of this worker.
        loss_of: the loss over all embeddings of this worker, in that order.
        scale: a gradient scaler's, for 16-bit floats.
        no_sync: DDP's, for all micro batches but the last, so that workers average their gradients once.

    Returns:
        The losses of the whole batch, detached.
    """
    states: list[_RandomState] = []
    encoded: list[tuple[Embeddings, Embeddings]] = []
    with torch.no_grad():
        for micro_batch in micro_batches:
            states.append(_RandomState())
            encoded.append(encode(micro_batch))
    volumes, texts = (_leaves(Embeddings.concatenate(parts)) for parts in zip(*encoded, strict=True))
    losses = loss_of(volumes, texts)
    scale(losses.total).backward()

    sizes = [len(part.plain) for part, _ in encoded]
    gradients = [_gradient(leaf).split(sizes) for leaf in _tensors(volumes, texts)]
    for i, (micro_batch, state) in enumerate(zip(micro_batches, states, strict=True)):
        last = i == len(micro_batches) - 1
        with contextlib.nullcontext() if last else no_sync():
            with state.again():
                outputs = _tensors(*encode(micro_batch))
            torch.autograd.backward(outputs, [parts[i] for parts in gradients])
    return Losses(*(value.detach() for value in losses))


class _RandomState:
    """The state of the random generators at its making, on the CPU and on the current CUDA device."""

    def __init__(self) -> None:
        self._devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(device) for device in self._devices]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Random numbers as they came after this object was made; the generators are untouched afterwards."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def _leaves(embeddings: Embeddings) -> Embeddings:
    plain, bridged = (None if e is None else e.detach().requires_grad_() for e in embeddings)
    assert plain is not None
    return Embeddings(plain, bridged)


def _tensors(volumes: Embeddings, texts: Embeddings) -> list[Tensor]:
    return [e for e in (*volumes, *texts) if e is not None]


def _gradient(leaf: Tensor) -> Tensor:
    # A part of the loss with weight 0 leaves no gradient at all.
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
