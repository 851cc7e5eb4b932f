"""Vision towers: shapes, the patch embedding as a convolution, positions on other grids."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brgsa.config import VisionConfig
from brgsa.vision import PatchEmbedding, Windows, resize_positions, sincos_positions, vision_tower

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
    with pytest.raises(ValueError, match="does not divide"):
        PatchEmbedding((4, 4, 4), 1, 8)(torch.zeros(1, 1, 8, 8, 6))
    with pytest.raises(ValueError, match="not a multiple"):
        VisionConfig(volume=(30, 32, 16), patch=(16, 16, 8))


def test_the_position_table() -> None:
    table = sincos_positions((2, 3, 4), 26)
    assert table.shape == (1, 25, 26)
    assert table[0, 0].abs().sum() == 0  # the class token's row
    assert (table[0, 1:, 24:] == 0).all()  # columns left over by 26 = 3·2·4 + 2
    # Row of patch (x, y, z), x slowest: the first column of each axis is sin(index).
    row = 1 + 1 * 12 + 2 * 4 + 3
    found = table[0, row, [0, 8, 16]]
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0]).sin())
    assert len({tuple(r.tolist()) for r in table[0]}) == 25


def test_resizing_positions() -> None:
    table = torch.randn(1, 1 + 8, 5)
    assert resize_positions(table, (2, 2, 2), (2, 2, 2)) is table
    flat = torch.ones(1, 1 + 8, 5)
    torch.testing.assert_close(resize_positions(flat, (2, 2, 2), (3, 4, 5)), torch.ones(1, 61, 5))
    # A table that is linear in x stays linear: halves at the ends, as trilinear with half-voxel centres gives.
    linear = torch.cat([torch.zeros(1, 1, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1)], dim=1)
    found = resize_positions(linear, (2, 1, 1), (4, 1, 1))[0, 1:, 0]
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_the_vit_runs_on_another_grid() -> None:
    tower = vision_tower(SMALL_VIT)
    assert tower(torch.randn(2, 1, 32, 32, 16)).shape == (2, 48)
    assert tower(torch.randn(1, 1, 64, 48, 24)).shape == (1, 48)


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
        assert not any(isinstance(module, nn.BatchNorm3d) for module in tower.modules())


def test_with_group_norm_a_volume_does_not_see_its_batch() -> None:
    tower = vision_tower(VisionConfig(name="resnet10", volume=(32, 32, 16), width=8)).train()
    x = torch.randn(3, 1, 32, 32, 16)
    torch.testing.assert_close(tower(x)[:1], tower(x[:1]), atol=1e-5, rtol=1e-5)


def test_windows() -> None:
    windows = Windows(((-1000.0, -500.0), (0.0, 100.0)))
    hu = torch.tensor([-1000.0, -750.0, -500.0, 0.0, 50.0, 200.0]).view(1, 1, -1, 1, 1) / 1000
    found = windows(hu)[0, :, :, 0, 0]
    torch.testing.assert_close(found[0], torch.tensor([-1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(found[1], torch.tensor([-1.0, -1.0, -1.0, -1.0, 0.0, 1.0]))
    assert Windows(())(hu) is hu


def test_unknown_tower() -> None:
    with pytest.raises(ValueError, match="vit3d"):
        VisionConfig(name="vit4d")
