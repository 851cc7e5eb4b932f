"""Where a volume supports a prompt: the gradient of their score, followed back into the vision tower.

- Convolutional towers: HiResCAM (Draelos and Carin 2020, arXiv 2011.08891), which is Grad-CAM (Selvaraju et al. 2017, arXiv
  1610.02391) with each place's own gradient instead of its mean over the volume.
- Transformers: attention rollout weighted by gradients (Chefer et al. 2021, arXiv 2103.15679).

A map tells what raised the score, not whether the score is high: `Support.score` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from brgsa import zeroshot
from brgsa.errors import UserError
from brgsa.model import BrgSA, Embeddings
from brgsa.vision import Attention, ConvNet3D, ResNet3D, ViT3D

ROUNDING = 1e-6  # of a score in float32: a map that adds up to less is made of rounding errors


@dataclass(frozen=True)
class Support:
    """What in a volume speaks for a prompt.

    Attributes:
        score: of the volume for the prompt, as in `zeroshot.scores`.
        relevance: float32 (X, Y, Z) on the volume's grid, from 0 to 1 at the place that raises the score most; all 0 where
            no place raises it.
    """

    score: float
    relevance: npt.NDArray[np.float32]


def support(
    model: BrgSA, volume: Tensor, prompt: Embeddings, against: Embeddings | None = None, pairing: str = "mean"
) -> Support:
    """The map of a prompt's support in one volume.

    Args:
        volume: float (1, 1, X, Y, Z) in [-1, 1] (HU / 1000).
        prompt: the prompt's embeddings, (1, D).
        against: embeddings of other prompts, (P, D): what speaks for all of them alike is taken off.
        pairing: see `zeroshot.scores`.

    Raises:
        UserError: the model's vision tower is one that no map is known for ("no-heat-map").
    """
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad(), _watched(model.vision) as watched:
            # Weights may be locked; the volume's gradient leads through all layers.
            embeddings = model.embed_volumes(volume.to(model.device).detach().requires_grad_())
            score = zeroshot.scores(embeddings, prompt, pairing)[0, 0]
            target = score
            if against is not None:
                target = score - zeroshot.scores(embeddings, against, pairing)[0].mean()
            cells = watched.relevance(target)
    finally:
        model.train(was_training)
    if isinstance(model.vision, ViT3D):
        cells = cells.reshape(model.vision.patch_embed.grid(tuple(volume.shape[2:])))
    fine = functional.interpolate(cells[None, None], size=volume.shape[2:], mode="trilinear", align_corners=False)
    relevance = fine[0, 0].detach().float().cpu().numpy()
    nothing = float(cells.detach().sum()) < ROUNDING
    return Support(score.item(), np.zeros_like(relevance) if nothing else relevance / relevance.max())


class _Activations:
    """A convolutional tower's last feature map, (1, C, x, y, z), kept with its gradient."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.kept = output

    def relevance(self, target: Tensor) -> Tensor:
        """HiResCAM: gradient times activation, summed over the channels; what lowers the target is left out."""
        assert self.kept is not None
        (gradient,) = torch.autograd.grad(target, self.kept)
        return (gradient * self.kept).sum(dim=1)[0].clamp(min=0)


class _Attentions:
    """The attention weights of every block of a transformer, each (1, heads, tokens, tokens), kept with their gradients."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def attend(self, attention: Attention, tokens: Tensor) -> Tensor:
        """`Attention.forward` without the fused kernel, which does not give its weights."""
        batch, count, width = tokens.shape
        qkv = attention.qkv(tokens).view(batch, count, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        weights = torch.softmax(queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5, dim=-1)
        self.kept.append(weights)
        mixed: Tensor = attention.proj((weights @ values).transpose(1, 2).reshape(batch, count, width))
        return mixed

    def relevance(self, target: Tensor) -> Tensor:
        """The rollout R = R + mean over heads of (gradient · attention)⁺ R; then what the class token owes each patch."""
        gradients = torch.autograd.grad(target, self.kept)
        count = self.kept[0].shape[-1]
        # Only the class token's row is needed: from the last block to the first, one row instead of a matrix.
        row = functional.one_hot(torch.tensor(0), count).to(target)
        for weights, gradient in zip(reversed(self.kept), reversed(gradients), strict=True):
            row = row + row @ (gradient * weights).clamp(min=0).mean(dim=1)[0]
        return row[1:]


@contextmanager
def _watched(tower: nn.Module) -> Iterator[_Activations | _Attentions]:
    """The tower keeps what its map needs while it works within the context."""
    with ExitStack() as undo:
        if isinstance(tower, ViT3D):
            attentions = _Attentions()
            for module in tower.modules():
                if isinstance(module, Attention):
                    module.forward = _bound(attentions, module)  # type: ignore[method-assign, assignment]
                    undo.callback(module.__dict__.pop, "forward")
            yield attentions
        else:
            activations = _Activations()
            handle = _last_layer(tower).register_forward_hook(activations.keep)
            undo.callback(handle.remove)
            yield activations


def _bound(attentions: _Attentions, attention: Attention) -> Callable[[Tensor], Tensor]:
    def forward(tokens: Tensor) -> Tensor:
        return attentions.attend(attention, tokens)

    return forward


def _last_layer(tower: nn.Module) -> nn.Module:
    """The layer whose feature map the tower pools."""
    if isinstance(tower, ConvNet3D):
        return tower.net
    if isinstance(tower, ResNet3D):
        return tower.net.layer4
    name = type(tower).__name__
    raise UserError(f"No heat map is known for the vision tower {name}.", code="no-heat-map", value=name)
