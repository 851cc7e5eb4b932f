"""Heat maps against towers whose answer is known, and the paper's formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from brgsa import zeroshot
from brgsa.config import VisionConfig
from brgsa.heatmaps import support
from brgsa.model import BrgSA, Embeddings

PLACE, SPACING = (24, 8, 4), (6.0, 6.0, 6.0)
CNN = VisionConfig(name="cnn3d", volume=(32, 32, 16), width=4, pool="avg", norm="batch", mean=0.0, std=1.0)


def spot(shape: tuple[int, int, int] = (32, 32, 16)) -> Tensor:
    """Air with one dense block of eight voxels along each axis."""
    volume = torch.full((1, 1, *shape), -1.0)
    x, y, z = PLACE
    volume[..., x - 4 : x + 4, y - 4 : y + 4, z - 4 : z + 4] = 1.0
    return volume


def hand_made(build: Callable[..., BrgSA]) -> BrgSA:
    """A convolutional model whose first channel is the density, and which projects that channel to the first axis."""
    model = build(CNN, enabled=False)
    with torch.no_grad():
        for layer in model.vision.net:
            layer.conv.weight.zero_()
            layer.conv.weight[0, 0] = 1 / 27
        model.project_volume.weight.zero_()
        model.project_volume.weight[0, 0] = 1.0
        model.project_volume.bias.zero_()
        model.project_volume.bias[1] = 1.0  # what there is in every volume
    return model


def along(axis: int, sign: float = 1.0) -> Embeddings:
    text = torch.zeros(1, 10)
    text[0, axis] = sign
    return Embeddings(text, None)


def test_the_dense_block_speaks_for_density(build: Callable[..., BrgSA]) -> None:
    model, volume = hand_made(build), spot()
    found = support(model, volume, along(0), SPACING)
    peak = np.unravel_index(found.relevance.argmax(), found.relevance.shape)
    assert np.abs(np.subtract(peak, PLACE)).max() <= 8
    assert found.relevance.shape == tuple(volume.shape[2:])
    assert (found.relevance.min(), found.relevance.max()) == (pytest.approx(0, abs=1e-6), 1)
    assert found.score == pytest.approx(float(zeroshot.scores(model.encode_volumes(volume), along(0))))


def chest_like() -> Tensor:
    """A body of soft tissue with two lungs of air, noise, and the dense block in one of them."""
    volume = torch.full((1, 1, 32, 32, 16), -1.0)
    volume[..., 3:29, 5:27, :] = 0.05
    volume[..., 5:14, 8:24, 2:] = -0.85
    volume[..., 18:27, 8:24, 2:] = -0.85
    volume[..., 20:25, 6:11, 2:7] = 0.1
    return volume + 0.03 * torch.randn(volume.shape, generator=torch.Generator().manual_seed(0))


def ways_apart(model: BrgSA, volume: Tensor) -> list[np.ndarray]:
    """What each of the six neutral volumes gives, by SciPy's filters: smoothed, and scaled to one height."""

    def blurred(array: np.ndarray, mm: float) -> np.ndarray:
        return gaussian_filter(array, [mm / width for width in SPACING], mode="nearest", truncate=3.0)

    hu = volume[0, 0].numpy()
    neutral = [blurred(hu, mm) for mm in (17.0, 34.0, 68.0)]
    neutral += [np.full_like(hu, -1.0), np.where(hu > -0.9, 0.0, hu), hu[::-1].copy()]
    found = []
    for start in neutral:
        total = np.zeros_like(hu)
        for step in range(12):
            way = torch.from_numpy(start + (hu - start) * (step + 0.5) / 12).float()[None, None].requires_grad_()
            (gradient,) = torch.autograd.grad(zeroshot.scores(model.embed_volumes(way), along(0))[0, 0], way)
            total += gradient[0, 0].numpy() / 12 * (hu - start)
        added = blurred(total, 24.0)
        found.append(added / np.abs(added).max())
    return found


def test_the_map_is_made_of_all_six_ways(build: Callable[..., BrgSA]) -> None:
    """Against the definition in docs/heatmaps.md; without any one of the six the map is another."""
    model, volume = hand_made(build), chest_like()
    relevance = support(model, volume, along(0), SPACING).relevance
    ways = ways_apart(model, volume)

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        total = np.clip(sum(parts), 0, None)
        whole: np.ndarray = total / total.max()
        return whole

    np.testing.assert_allclose(relevance, joined(ways), atol=2e-3)
    for left_out in range(6):
        others = joined([way for number, way in enumerate(ways) if number != left_out])
        assert np.abs(relevance - others).max() > 0.02, left_out


def test_nothing_speaks_for_its_opposite(build: Callable[..., BrgSA]) -> None:
    found = support(hand_made(build), spot(), along(0, -1.0), SPACING)
    assert found.score < 0
    assert found.relevance[PLACE] == 0


def test_a_model_that_sees_nothing_has_no_map(build: Callable[..., BrgSA]) -> None:
    model = hand_made(build)
    with torch.no_grad():
        model.project_volume.weight.zero_()
    assert not support(model, spot(), along(1), SPACING).relevance.any()


@pytest.mark.parametrize("bank", [True, False])
def test_the_map_of_a_transformer_is_the_rollout_of_chefer(build: Callable[..., BrgSA], bank: bool) -> None:
    """Against the matrices of the paper, with gradients from torch's own attention weights."""
    model = build(VisionConfig(volume=(8, 8, 4), patch=(4, 4, 2), width=12, depth=3, heads=2, mlp=16), enabled=bank)
    volume = torch.randn(1, 1, 8, 8, 4, generator=torch.Generator().manual_seed(1))
    prompt = model.encode_texts(["There is pleural effusion."])
    expected_score = float(zeroshot.scores(model.encode_volumes(volume), prompt))
    found = support(model, volume, prompt, SPACING)
    assert found.score == pytest.approx(expected_score, abs=1e-6)
    assert float(zeroshot.scores(model.encode_volumes(volume), prompt)) == expected_score  # the tower is as it was

    weights: list[Tensor] = []

    def slow(block: nn.Module) -> Callable[[Tensor], Tensor]:
        whole = nn.MultiheadAttention(12, 2, batch_first=True)
        whole.in_proj_weight, whole.in_proj_bias = block.qkv.weight, block.qkv.bias
        whole.out_proj = block.proj

        def forward(tokens: Tensor) -> Tensor:
            # torch gives the weights, but not as a part of the graph of its output: so they are applied here.
            weight = whole(tokens, tokens, tokens, average_attn_weights=False)[1]
            weights.append(weight)
            values = block.qkv(tokens)[..., 24:].view(1, -1, 2, 6).transpose(1, 2)
            out: Tensor = block.proj((weight @ values).transpose(1, 2).reshape(tokens.shape))
            return out

        return forward

    for block in model.vision.blocks:
        block.attn.forward = slow(block.attn)
    score = zeroshot.scores(model.embed_volumes(volume), prompt)[0, 0]
    rollout = torch.eye(9)
    for weight, gradient in zip(weights, torch.autograd.grad(score, weights), strict=True):
        rollout = rollout + (gradient * weight).clamp(min=0).mean(dim=1)[0] @ rollout
    cells = rollout[0, 1:].reshape(2, 2, 2)
    fine = nn.functional.interpolate(cells[None, None], size=(8, 8, 4), mode="trilinear")[0, 0].detach().numpy()
    np.testing.assert_allclose(found.relevance, fine / fine.max(), atol=1e-4)


def test_locked_weights_and_training_mode_change_nothing(build: Callable[..., BrgSA]) -> None:
    model, volume = hand_made(build), spot()
    expected = support(model, volume, along(0), SPACING).relevance
    model.requires_grad_(False)
    model.train()
    np.testing.assert_array_equal(support(model, volume, along(0), SPACING).relevance, expected)
    assert model.training


@pytest.mark.parametrize("tower", ["resnet10", "resnet18"])
def test_residual_towers_have_maps(build: Callable[..., BrgSA], tower: str) -> None:
    vision = VisionConfig(name=tower, volume=(32, 32, 16), width=8, stem_kernel=3, stem_stride=1, stem_pool=False)
    model = build(vision)
    found = support(model, spot(), model.encode_texts(["There is cardiomegaly."]), SPACING)
    assert found.relevance.shape == (32, 32, 16)
    assert found.relevance.max() == 1
