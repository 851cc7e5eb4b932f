"""Where a volume supports a prompt: the gradient of their score, followed back into the vision tower.

- Transformers: attention rollout weighted by gradients (Chefer et al. 2021, arXiv 2103.15679).
- Convolutional towers: integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) from several neutral volumes. Grad-CAM
  knows only the cells of the last feature map, and on a coarse grid these are larger than the chest's organs
  (docs/heatmaps.md has the figures).

A map tells what raised the score, not whether the score is high: `Support.score` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from brgsa import zeroshot
from brgsa.model import BrgSA, Embeddings
from brgsa.vision import Attention, ViT3D

Spacing = tuple[float, float, float]
Target = Callable[[Embeddings], Tensor]  # the scores (B,) of B volumes

ROUNDING = 1e-8  # what a voxel adds to a score in float32 is rounding below this
# Of the integrated gradients; chosen on the demo's phantom (docs/heatmaps.md).
BLURRED_MM = (17.0, 34.0, 68.0)
SMOOTHED_MM = 24.0
BODY = -0.9  # of HU / 1000
STEPS, STEPS_AT_ONCE = 12, 4


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


def support(model: BrgSA, volume: Tensor, prompt: Embeddings, spacing: Spacing, pairing: str = "mean") -> Support:
    """The map of a prompt's support in one volume.

    A transformer's keeps the attention weights of all blocks: 4 bytes · blocks · heads · tokens², 4.3 GB for the paper's.

    Args:
        volume: float (1, 1, X, Y, Z) in [-1, 1] (HU / 1000).
        prompt: the prompt's embeddings, (1, D).
        spacing: mm of a voxel along x, y and z.
        pairing: see `zeroshot.scores`.
    """

    def target(volumes: Embeddings) -> Tensor:
        return zeroshot.scores(volumes, prompt, pairing)[:, 0]

    was_training, volume = model.training, volume.to(model.device).detach()
    model.eval()
    try:
        with torch.enable_grad():
            score = target(model.encode_volumes(volume)).item()
            if isinstance(model.vision, ViT3D):
                relevance = _rollout(model, model.vision, volume, target)
            else:
                relevance = _integrated_gradients(model, volume, target, spacing)
    finally:
        model.train(was_training)
    highest = relevance.max().clamp(min=ROUNDING)
    found: npt.NDArray[np.float32] = (relevance / highest).detach().float().cpu().numpy()
    return Support(score, found if float(found.max()) == 1 else np.zeros_like(found))


def _integrated_gradients(model: BrgSA, volume: Tensor, target: Target, spacing: Spacing) -> Tensor:
    """What each voxel adds to the target on the way from volumes that show nothing to this one, (X, Y, Z)."""
    total = torch.zeros(volume.shape[2:], device=volume.device)
    for neutral in _neutral(volume, spacing):
        gradient = torch.zeros_like(volume)
        for part in ((torch.arange(STEPS, device=volume.device) + 0.5) / STEPS).split(STEPS_AT_ONCE):
            way = (neutral + (volume - neutral) * part.view(-1, 1, 1, 1, 1)).requires_grad_()
            (step,) = torch.autograd.grad(target(model.embed_volumes(way)).sum(), way)
            gradient += step.sum(dim=0, keepdim=True) / STEPS
        added = _smooth(gradient * (volume - neutral), SMOOTHED_MM, spacing)[0, 0]
        total += added / added.abs().max().clamp(min=ROUNDING)  # so that none of them outweighs the others
    return total.clamp(min=0)


def _neutral(volume: Tensor, spacing: Spacing) -> Iterator[Tensor]:
    """Volumes without what a prompt may name. Each leaves traces of its own in a map; together they hide each other's."""
    for width in BLURRED_MM:
        yield _smooth(volume, width, spacing)
    yield torch.full_like(volume, -1.0)  # air
    yield torch.where(volume > BODY, 0.0, volume)  # water wherever the body is
    yield volume.flip(2)  # the other side of the body


def _smooth(volume: Tensor, width: float, spacing: Spacing) -> Tensor:
    """A volume (1, 1, X, Y, Z) under a Gaussian of `width` mm."""
    for axis, mm in enumerate(spacing):
        sigma = width / mm
        reach = min(int(3 * sigma + 0.5), volume.shape[2 + axis] - 1)
        distance = torch.arange(-reach, reach + 1, device=volume.device, dtype=volume.dtype)
        kernel = torch.softmax(-0.5 * (distance / sigma) ** 2, dim=0)
        shape = [1] * 5
        shape[2 + axis] = -1
        pad = [0] * 6
        pad[4 - 2 * axis : 6 - 2 * axis] = [reach, reach]
        volume = functional.conv3d(functional.pad(volume, pad, mode="replicate"), kernel.view(shape))
    return volume


def _rollout(model: BrgSA, tower: ViT3D, volume: Tensor, target: Target) -> Tensor:
    """The rollout R = R + mean over heads of (gradient · attention)⁺ R; then what the class token owes each patch."""
    with _attention_kept(tower) as kept:
        # Weights may be locked; the volume's gradient leads through all layers.
        score = target(model.embed_volumes(volume.requires_grad_())).sum()
    gradients = torch.autograd.grad(score, kept)
    # Only the class token's row is needed: from the last block to the first, one row instead of a matrix.
    row = functional.one_hot(torch.tensor(0, device=volume.device), kept[0].shape[-1]).to(score)
    for weights, gradient in zip(reversed(kept), reversed(gradients), strict=True):
        row = row + row @ (gradient * weights).clamp(min=0).mean(dim=1)[0]
    cells = row[1:].reshape(1, 1, *tower.patch_embed.grid(tuple(volume.shape[2:])))
    fine: Tensor = functional.interpolate(cells, size=volume.shape[2:], mode="trilinear", align_corners=False)
    return fine[0, 0]


@contextmanager
def _attention_kept(tower: ViT3D) -> Iterator[list[Tensor]]:
    """Within the context the tower keeps each block's attention weights, (1, heads, tokens, tokens), in their graph."""
    kept: list[Tensor] = []
    with ExitStack() as undo:
        for module in tower.modules():
            if isinstance(module, Attention):
                module.forward = _keeping(module, kept)  # type: ignore[method-assign, assignment]
                undo.callback(module.__dict__.pop, "forward")
        yield kept


def _keeping(attention: Attention, kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """`Attention.forward` without the fused kernel, which does not give its weights."""

    def forward(tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = attention.qkv(tokens).view(batch, count, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        weights = torch.softmax(queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5, dim=-1)
        kept.append(weights)
        mixed: Tensor = attention.proj((weights @ values).transpose(1, 2).reshape(batch, count, width))
        return mixed

    return forward
