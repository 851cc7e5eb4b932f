"""The contrastive loss of a whole batch in the memory of a micro batch (GradCache, Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from brgsa.losses.loss import Losses
from brgsa.model import Embeddings

Encode = Callable[[], Embeddings]


def backward_in_micro_batches(
    volumes: Sequence[Encode],
    texts: Sequence[Encode],
    loss_of: Callable[[Embeddings, Embeddings], Losses],
    *,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> Losses:
    """Add to the weights' gradients what one backward pass over the whole batch would add.

    Every micro batch is encoded twice. The first pass keeps embeddings only; the loss over all of them gives the
    gradient of each embedding. The second pass draws the same random numbers (dropout) as the first, keeps the
    activations of one micro batch, and carries these gradients on to the weights.

    Args:
        volumes, texts: each encodes one micro batch of a modality, in order; together they are this worker's batch. A
            text has some thirty times fewer tokens than a volume, so its micro batches may be larger. Each enters
            autocast by itself: a cast weight that autocast keeps from the first pass has no gradient in the second.
        loss_of: the loss over all volume and text embeddings of this worker, in that order.
        scale: a gradient scaler's, for 16-bit floats.

    Returns:
        The losses of the whole batch, detached.
    """
    first = [_FirstPass(volumes), _FirstPass(texts)]
    losses = loss_of(first[0].embeddings, first[1].embeddings)
    scale(losses.total).backward()
    for modality in first:
        modality.backward()
    return Losses(*(value.detach() for value in losses))


class _FirstPass:
    """The embeddings of one modality's batch, as leaves that collect their gradient."""

    def __init__(self, micro_batches: Sequence[Encode]) -> None:
        self._micro_batches = micro_batches
        self._random: list[_RandomState] = []
        parts: list[Embeddings] = []
        with torch.no_grad():
            for encode in micro_batches:
                self._random.append(_RandomState())
                parts.append(encode())
        self._sizes = [len(part.plain) for part in parts]
        plain, bridged = Embeddings.concatenate(parts)
        self.embeddings = Embeddings(plain.requires_grad_(), None if bridged is None else bridged.requires_grad_())

    def backward(self) -> None:
        """The second pass: from the embeddings' gradients to the weights'."""
        gradients = [_gradient(leaf).split(self._sizes) for leaf in self.embeddings if leaf is not None]
        for i, (encode, random) in enumerate(zip(self._micro_batches, self._random, strict=True)):
            with random.again():
                outputs = [output for output in encode() if output is not None]
            torch.autograd.backward(outputs, [parts[i] for parts in gradients])


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


def _gradient(leaf: Tensor) -> Tensor:
    # A part of the loss with weight 0 leaves no gradient at all.
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
