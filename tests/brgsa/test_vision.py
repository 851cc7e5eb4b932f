"""Vision towers: shapes, the patch embedding as a convolution, positions on other grids."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from brgsa.config import VisionConfig
from brgsa.vision import (
    AverageAndMaximum,
    Block,
    InputChannels,
    PatchEmbedding,
    ResNet3D,
    ViT3D,
    drop_patches,
    resize_positions,
    sincos_positions,
    vision_tower,
)

SMALL_VIT = VisionConfig(volume=(32, 32, 16), patch=(16, 16, 8), width=48, depth=2, heads=4, mlp=96)


def test_patch_embedding_is_a_strided_convolution() -> None:
    patch = PatchEmbedding((4, 2, 3), 2, 7)
    conv = nn.Conv3d(2, 7, (4, 2, 3), stride=(4, 2, 3))
    with torch.no_grad():
        conv.weight.copy_(patch.proj.weight.view(7, 2, 4, 2, 3))
        conv.bias.copy_(patch.proj.bias)  # type: ignore[union-attr]
    x = torch.randn(2, 2, 8, 6, 9)
    torch.testing.assert_close(patch(x), conv(x).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_a_volume_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="patches"):
        PatchEmbedding((4, 4, 4), 1, 8)(torch.zeros(1, 1, 8, 8, 6))
    with pytest.raises(ValueError, match=r"vision\.volume"):
        VisionConfig(volume=(30, 32, 16), patch=(16, 16, 8))


@pytest.mark.parametrize("coordinates", ["unit", "index"])
def test_the_position_table(coordinates: str) -> None:
    grid = (2, 3, 4)
    table = sincos_positions(grid, 26, coordinates)
    assert table.shape == (1, 25, 26)
    assert table[0, 0].abs().sum() == 0  # the class token's row
    assert len({tuple(r.tolist()) for r in table[0]}) == 25
    row = 1
    for place in np.ndindex(grid):  # x slowest
        expected = []
        for index, number in zip(place, grid, strict=True):
            at = index / (number - 1) if coordinates == "unit" else index
            angles = [at / 10000 ** (i / 4) for i in range(4)]
            expected += [np.sin(angle) for angle in angles] + [np.cos(angle) for angle in angles]
        # Two columns are left over by 26 = 3·2·4 + 2.
        np.testing.assert_allclose(table[0, row].numpy(), [*expected, 0, 0], atol=1e-7)
        row += 1


def test_an_axis_of_one_patch_starts_at_nought() -> None:
    assert torch.equal(sincos_positions((1, 1, 1), 6, "unit"), sincos_positions((1, 1, 1), 6, "index"))


def test_resizing_positions() -> None:
    table = torch.randn(1, 1 + 8, 5)
    assert resize_positions(table, (2, 2, 2), (2, 2, 2)) is table
    flat = torch.ones(1, 1 + 8, 5)
    torch.testing.assert_close(resize_positions(flat, (2, 2, 2), (3, 4, 5)), torch.ones(1, 61, 5))
    # A table that is linear in x stays linear: halves at the ends, as trilinear with half-voxel centres gives.
    linear = torch.cat([torch.zeros(1, 1, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1)], dim=1)
    resized = resize_positions(linear, (2, 1, 1), (4, 1, 1))[0, 1:, 0]
    torch.testing.assert_close(resized, torch.tensor([0.0, 0.25, 0.75, 1.0]))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resizing_interpolates_each_axis(axis: int) -> None:
    old, new = [2, 3, 4], [2, 3, 4]
    new[axis] = 7
    along = np.random.default_rng(axis).normal(size=old[axis])
    shape = [1, 1, 1]
    shape[axis] = -1
    body = torch.from_numpy(np.broadcast_to(along.reshape(shape), old).copy()).reshape(1, -1, 1)
    head = torch.full((1, 1, 1), 9.0, dtype=torch.float64)
    resized = resize_positions(torch.cat([head, body], 1), tuple(old), tuple(new))  # type: ignore[arg-type]
    assert resized[0, 0, 0] == 9  # the class token's row is kept
    # Voxel centres: position i of the new grid lies at (i + 1/2)·old/new - 1/2 of the old one, held at the ends.
    centres = (np.arange(7) + 0.5) * old[axis] / 7 - 0.5
    expected = np.broadcast_to(np.interp(centres, np.arange(old[axis]), along).reshape(shape), new)
    np.testing.assert_allclose(resized[0, 1:, 0].reshape(new).numpy(), expected, atol=1e-12)


def test_the_vit_runs_on_another_grid() -> None:
    tower = vision_tower(SMALL_VIT)
    assert tower(torch.randn(2, 1, 32, 32, 16)).shape == (2, 48)
    x = torch.randn(1, 1, 64, 48, 24)
    # The same as a tower that is made for that grid, with the table resized once and for all.
    made_for_it = vision_tower(replace(SMALL_VIT, volume=(64, 48, 24)))
    weights = tower.state_dict()
    weights["pos_embed"] = resize_positions(weights["pos_embed"], (2, 2, 2), (4, 3, 3))
    made_for_it.load_state_dict(weights)
    torch.testing.assert_close(tower(x), made_for_it(x))
    with pytest.raises(ValueError, match="patches"):
        tower(torch.zeros(1, 1, 40, 32, 16))


@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("size", [(32, 32, 16), (48, 32, 16)])  # the second's table is resized
def test_the_position_table_is_fixed_or_learned_and_starts_as_sines(
    positions: Literal["fixed", "learned"], size: tuple[int, int, int]
) -> None:
    tower = vision_tower(replace(SMALL_VIT, positions=positions))
    assert torch.equal(tower.state_dict()["pos_embed"], sincos_positions((2, 2, 2), 48, "unit"))
    optimizer = torch.optim.Adam(tower.parameters(), weight_decay=0.1)
    tower(torch.randn(1, 1, *size))[0, 0].backward()
    optimizer.step()
    changed = (tower.state_dict()["pos_embed"] != sincos_positions((2, 2, 2), 48, "unit")).any(-1)
    assert changed.all() if positions == "learned" else not changed.any()


@pytest.mark.parametrize("norm_eps", [VisionConfig.norm_eps, 0.5])
def test_the_vit_is_torchs_own_transformer(norm_eps: float) -> None:
    torch.manual_seed(0)
    tower = vision_tower(replace(SMALL_VIT, norm_eps=norm_eps)).eval()
    for parameter in tower.parameters():  # norms and biases too
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 1, 32, 32, 16)
    assert isinstance(tower, ViT3D)
    standardised = (x - 0.4978) / 0.2449
    tokens = torch.cat([tower.cls_token.expand(2, -1, -1), tower.patch_embed(standardised)], 1) + tower.pos_embed
    for block in tower.blocks:
        assert isinstance(block, Block)
        layer = nn.TransformerEncoderLayer(
            48, 4, 96, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        ours = block.state_dict()
        names = {
            "self_attn.in_proj_": "attn.qkv.",
            "self_attn.out_proj.": "attn.proj.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
            "norm1.": "norm1.",
            "norm2.": "norm2.",
        }
        layer.load_state_dict({t + kind: ours[o + kind] for t, o in names.items() for kind in ("weight", "bias")})
        tokens = layer(tokens)
    first = tokens[:, 0]
    spread = (first.var(1, correction=0, keepdim=True) + norm_eps).sqrt()
    expected = (first - first.mean(1, keepdim=True)) / spread * tower.norm.weight + tower.norm.bias
    torch.testing.assert_close(tower(x), expected, atol=1e-4, rtol=1e-4)


def test_tokens_know_their_place() -> None:
    tower = vision_tower(SMALL_VIT).eval()
    x = torch.randn(1, 1, 32, 32, 16)
    for axis in (2, 3, 4):  # patches swapped along an axis, each as it was
        swapped = torch.cat(x.chunk(2, axis)[::-1], axis)
        assert (tower(x) - tower(swapped)).abs().max() > 1e-3


def test_the_papers_vit_has_its_sizes() -> None:
    with torch.device("meta"):
        tower = vision_tower(VisionConfig())
    shapes = {name: tuple(p.shape) for name, p in tower.named_parameters()}
    assert shapes["pos_embed"] == (1, 2745, 768)
    assert shapes["patch_embed.proj.weight"] == (768, 2048)
    assert shapes["blocks.11.mlp.fc1.weight"] == (3072, 768)


@pytest.mark.parametrize(("name", "width"), [("resnet10", 64), ("resnet18", 64), ("resnet34", 64), ("cnn3d", 48)])
def test_convolutional_towers(name: str, width: int) -> None:
    for pool, times in (("avg", 1), ("avg+max", 2)):
        tower = vision_tower(VisionConfig(name=name, volume=(32, 32, 16), width=8, pool=pool))  # type: ignore[arg-type]
        assert tower.width == times * width
        assert tower(torch.randn(2, 1, 32, 32, 16)).shape == (2, times * width)
        kinds = [type(module) for module in tower.modules()]
        assert nn.GroupNorm in kinds
        assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)


@pytest.mark.parametrize("name", ["resnet10", "cnn3d"])
def test_batch_norm_stays_when_asked(name: str) -> None:
    grouped, batched = (
        [type(m) for m in vision_tower(VisionConfig(name=name, volume=(32, 32, 16), width=8, norm=norm)).modules()]  # type: ignore[arg-type]
        for norm in ("group", "batch")
    )
    assert nn.GroupNorm not in batched
    assert batched.count(nn.BatchNorm3d) == grouped.count(nn.GroupNorm) > 4


@pytest.mark.parametrize(("name", "layers"), [("resnet10", 10), ("resnet18", 18), ("resnet34", 34)])
def test_resnets_have_the_layers_of_their_name(name: str, layers: int) -> None:
    tower = vision_tower(VisionConfig(name=name, volume=(32, 32, 16), width=4))
    convolutions = [m for m in tower.modules() if isinstance(m, nn.Conv3d) and m.kernel_size != (1, 1, 1)]
    assert len(convolutions) == layers - 1  # with the classifier that is not there, the name's number
    assert all(parameter.requires_grad for parameter in tower.parameters())


def test_a_gentler_stem_keeps_more_voxels() -> None:
    sizes = []
    for settings in ({}, {"stem_pool": False}, {"stem_pool": False, "stem_stride": 1, "stem_kernel": 3}):
        tower = vision_tower(VisionConfig(name="resnet10", volume=(32, 32, 16), width=4, **settings))  # type: ignore[arg-type]
        assert isinstance(tower, ResNet3D)
        seen: list[tuple[int, ...]] = []
        tower.net.layer1.register_forward_hook(lambda module, given, out, seen=seen: seen.append(tuple(out.shape[2:])))
        tower(torch.zeros(1, 1, 32, 32, 16))
        sizes += seen
    assert sizes == [(8, 8, 4), (16, 16, 8), (32, 32, 16)]


def test_average_and_maximum() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    expected = torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], 1)
    torch.testing.assert_close(AverageAndMaximum()(x), expected)


@pytest.mark.parametrize("name", ["resnet10", "cnn3d"])
def test_with_group_norm_a_volume_does_not_see_its_batch(name: str) -> None:
    tower = vision_tower(VisionConfig(name=name, volume=(32, 32, 16), width=8)).train()
    x = torch.randn(3, 1, 32, 32, 16)
    torch.testing.assert_close(tower(x)[:1], tower(x[:1]), atol=1e-5, rtol=1e-5)


def test_windows() -> None:
    windows = ((-1000.0, -500.0), (0.0, 100.0))
    hu = torch.tensor([-1000.0, -750.0, -500.0, 0.0, 50.0, 200.0]).view(1, 1, -1, 1, 1) / 1000
    scaled = np.array([[-1.0, 0.0, 1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0, 0.0, 1.0]])
    for mean, std in ((0.0, 1.0), (0.4978, 0.2449)):
        channels = InputChannels(VisionConfig(windows=windows, mean=mean, std=std))(hu)[0, :, :, 0, 0]
        np.testing.assert_allclose(channels.numpy(), (scaled - mean) / std, atol=1e-6)
    assert InputChannels(VisionConfig(mean=0.0, std=1.0))(hu) is hu


@pytest.mark.parametrize("name", ["vit3d", "resnet10", "cnn3d"])
def test_each_tower_standardises_its_input(name: str) -> None:
    """The paper's inputs run from -6.1 to 2.05."""
    plain = vision_tower(replace(SMALL_VIT, name=name, width=12, mean=0.0, std=1.0)).eval()
    standardising = vision_tower(replace(SMALL_VIT, name=name, width=12)).eval()
    standardising.load_state_dict(plain.state_dict())
    x = torch.rand(2, 1, 32, 32, 16) * 2 - 1
    before = x.clone()
    torch.testing.assert_close(standardising(x), plain((x - 0.4978) / 0.2449), atol=1e-5, rtol=1e-4)
    assert torch.equal(x, before)  # the batch's memory is its owner's
    ends = InputChannels(VisionConfig())(torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([-6.1160, 2.0506]), atol=1e-4, rtol=0)


def test_what_a_tower_sees_outside_training() -> None:
    assert VisionConfig().evaluated((256, 256, 128)) == (256, 256, 128)
    assert VisionConfig(evaluation="centre").evaluated((256, 256, 128)) == (224, 224, 112)


@pytest.mark.parametrize("name", ["vit3d", "resnet10", "cnn3d"])
def test_each_window_is_a_channel(name: str) -> None:
    windows = ((-1000.0, -200.0), (-160.0, 240.0))
    config = replace(SMALL_VIT, name=name, windows=windows, width=48)
    tower = vision_tower(config).eval()
    lung = torch.full((1, 1, 32, 32, 16), -0.8)
    assert tower(lung).shape == (1, tower.width)
    # What lies beyond every window is not seen.
    torch.testing.assert_close(tower(lung + 10), tower(lung + 20))
    with pytest.raises(ValueError, match=r"vision\.windows"):
        VisionConfig(windows=((240.0, -160.0),))


def test_unknown_tower() -> None:
    with pytest.raises(ValueError, match=r"vision\.name"):
        VisionConfig(name="vit4d")


@pytest.mark.parametrize("field", ["width", "depth", "heads", "mlp", "stem_kernel", "stem_stride"])
def test_sizes_of_nothing_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"vision\.{field}"):
        VisionConfig(**{field: 0})
    with pytest.raises(ValueError, match=r"vision\.patch"):
        VisionConfig(patch=(0, 16, 8))
    with pytest.raises(ValueError, match=r"vision\.heads"):
        VisionConfig(width=100, heads=12)


def test_patch_dropout_keeps_a_random_share_of_each_volumes_own_patches() -> None:
    torch.manual_seed(0)
    tokens = torch.arange(2 * 40 * 3.0).view(2, 40, 3)
    kept = drop_patches(tokens, 0.75)
    assert kept.shape == (2, 10, 3)
    chosen = [{int(row) for row in (volume[:, 0] / 3) % 40} for volume in kept]
    for volume, rows, original in zip(kept, chosen, tokens, strict=True):
        assert len(rows) == 10
        assert all(any(torch.equal(token, own) for own in original) for token in volume)
    assert chosen[0] != chosen[1]
    assert drop_patches(tokens, 0.999).shape == (2, 1, 3)


def test_patches_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    tower = ViT3D(replace(SMALL_VIT, patch_dropout=0.5))
    whole = ViT3D(SMALL_VIT)
    whole.load_state_dict(tower.state_dict())
    x = torch.randn(2, 1, 32, 32, 16)
    torch.testing.assert_close(tower.eval()(x), whole.eval()(x))
    assert not torch.allclose(tower.train()(x), whole(x))
    with pytest.raises(ValueError, match="patch_dropout"):
        replace(SMALL_VIT, patch_dropout=1.0)
    with pytest.raises(ValueError, match="patch_dropout"):
        VisionConfig(name="cnn3d", patch_dropout=0.5)


def test_checkpointed_activations_change_no_gradient() -> None:
    torch.manual_seed(0)
    tower = ViT3D(SMALL_VIT)
    x = torch.randn(2, 1, 32, 32, 16)
    gradients = []
    for checkpointed in (False, True):
        tower.checkpoint_activations = checkpointed
        tower.zero_grad()
        tower(x).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in tower.parameters() if weight.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)
