"""Vision towers that start from an encoder which others trained.

A ViT takes the names of timm (M3AE and other masked autoencoders, the reference, ours) or of MONAI; a ResNet those of MONAI,
which are MedicalNet's. Position tables are resized to the tower's grid, input channels are summed or shared out. A
transformer's number of heads is nowhere in its weights: `model.vision.heads` must be the encoder's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from brgsa.config import VisionConfig
from brgsa.errors import UserError
from brgsa.vision import Grid, ResNet3D, ViT3D, resize_positions
from brgsa.weights.fitting import Fitted, another_architecture, check_shape, put, too_deep
from brgsa.weights.reading import Weights

MONAI_TABLE = "patch_embedding.position_embeddings"
# MONAI's name → ours, by the part of a name that it replaces.
MONAI = (
    ("patch_embedding.patch_embeddings.1.", "patch_embed.proj."),
    ("patch_embedding.patch_embeddings.", "patch_embed.proj."),
    (MONAI_TABLE, "pos_embed"),
    ("patch_embedding.cls_token", "cls_token"),
    (".mlp.linear1.", ".mlp.fc1."),
    (".mlp.linear2.", ".mlp.fc2."),
    (".attn.out_proj.", ".attn.proj."),
)
PERCEPTRON = "patch_embedding.patch_embeddings.1.weight"  # MONAI's patch embedding without a convolution


def start_vision(tower: nn.Module, config: VisionConfig, weights: Weights, grid: Grid | None = None) -> Fitted:
    """Start a tower from an encoder's weights.

    Args:
        config: the tower's.
        grid: patches along x, y and z of the file's position table; by default the tower's own if their number is the same,
            else a cube.

    Raises:
        UserError: the file is not of this kind of tower, or of another size (see `fitting.put`), or its grid is unknown.
    """
    if isinstance(tower, ViT3D):
        return _start_vit(tower, config, weights, grid)
    return _start_convolutional(tower, weights)


def _start_vit(tower: ViT3D, config: VisionConfig, weights: Weights, grid: Grid | None) -> Fitted:
    patches = ("patch_embed.proj.weight", "patch_embedding.patch_embeddings.weight", PERCEPTRON)
    prefix = _prefix(weights.tensors, r"blocks\.0\.norm1\.weight", patches)
    if prefix is None:
        raise another_architecture(weights.path, "vision transformer (timm's or MONAI's names)")
    inside = {name.removeprefix(prefix): value for name, value in weights.tensors.items() if name.startswith(prefix)}
    report = Fitted(weights.path, unused=[*_others(weights, prefix), *weights.skipped])
    theirs = {_our_name(name): value for name, value in inside.items()}
    theirs["patch_embed.proj.weight"] = _patches(config, inside, theirs, report)
    if "pos_embed" in theirs:
        has_class = "cls_token" in theirs and MONAI_TABLE not in inside  # MONAI adds its class token after the table
        theirs["pos_embed"] = _positions(tower, theirs["pos_embed"], has_class, grid, report)
    _check_depth(weights, theirs, config.depth)
    for block in range(config.depth):
        name = f"blocks.{block}.attn.qkv.bias"
        if f"blocks.{block}.attn.qkv.weight" in theirs and name not in theirs:
            theirs[name] = torch.zeros(3 * config.width)  # MONAI's attention has none by default
            report.fitted += [f"{name} is zero"]
            report.used -= 1
    return put(
        tower, theirs, report, may_lack=lambda name: name in ("cls_token", "pos_embed", "norm.weight", "norm.bias")
    )


def _start_convolutional(tower: nn.Module, weights: Weights) -> Fitted:
    """A ResNet, or the small tower from another run's."""
    is_resnet = isinstance(tower, ResNet3D)
    first = "conv1.weight" if is_resnet else "0.conv.weight"
    beside = ("layer1.0.conv1.weight",) if is_resnet else ("1.conv.weight",)
    prefix = _prefix(weights.tensors, re.escape(first), beside)
    if prefix is None:
        raise another_architecture(weights.path, "ResNet (MONAI's and MedicalNet's names)" if is_resnet else "cnn3d")
    report = Fitted(weights.path, unused=[*_others(weights, prefix), *weights.skipped])
    theirs = {f"net.{n.removeprefix(prefix)}": value for n, value in weights.tensors.items() if n.startswith(prefix)}
    ours = tower.state_dict()
    stem = f"net.{first}"
    if theirs[stem].dim() == ours[stem].dim():
        theirs[stem] = _channels(theirs[stem], ours[stem].shape[1], report)
    deeper = [name for name in theirs if name not in ours and ".conv" in name and "layer" in name]
    if deeper:
        raise too_deep(weights.path, deeper[0])
    # A shortcut of MedicalNet's type A has no weights. A counter of batches is no weight.
    return put(
        tower, theirs, report, may_lack=lambda name: "downsample" in name or name.endswith("num_batches_tracked")
    )


def _prefix(names: Iterable[str], first: str, beside: tuple[str, ...]) -> str | None:
    """What stands before the encoder's own names: of one that has `first` and one of `beside`; None where there is none."""
    names = list(names)
    candidates = (re.fullmatch(rf"(|.*\.){first}", name) for name in names)
    prefixes = [found[1] for found in candidates if found]
    return next((prefix for prefix in prefixes if any(prefix + name in names for name in beside)), None)


def _others(weights: Weights, prefix: str) -> list[str]:
    return [name for name in weights.tensors if not name.startswith(prefix)]


def _our_name(name: str) -> str:
    for theirs, ours in MONAI:
        if theirs in name:
            return name.replace(theirs, ours)
    return name


def _patches(
    config: VisionConfig, inside: Mapping[str, Tensor], theirs: Mapping[str, Tensor], report: Fitted
) -> Tensor:
    """The patch embedding's matrix (width, C·x·y·z) from a convolution's kernel, or from a matrix of MONAI's or ours."""
    kernel, channels = theirs["patch_embed.proj.weight"], max(1, len(config.windows))
    voxels = config.patch[0] * config.patch[1] * config.patch[2]
    if kernel.dim() == 2 and kernel.shape[1] % voxels == 0:
        if PERCEPTRON in inside:  # its channels stand last
            kernel = kernel.reshape(len(kernel), *config.patch, -1).permute(0, 4, 1, 2, 3)
        else:
            kernel = kernel.reshape(len(kernel), -1, *config.patch)
    have, want = tuple(kernel.shape), (config.width, channels, *config.patch)
    if kernel.dim() == 5:
        check_shape(report.path, "patch_embed.proj.weight", (have[0], *have[2:]), (want[0], *want[2:]))
    else:
        check_shape(report.path, "patch_embed.proj.weight", have, want)
    return _channels(kernel, channels, report).reshape(config.width, -1)


def _channels(kernel: Tensor, channels: int, report: Fitted) -> Tensor:
    """A kernel (out, C, x, y, z) for another number of input channels, which answers the same where all channels are equal."""
    if kernel.shape[1] == channels:
        return kernel
    report.fitted.append(f"{kernel.shape[1]} input channels are now {channels}")
    return (kernel.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1, -1)


def _positions(tower: ViT3D, table: Tensor, has_class: bool, grid: Grid | None, report: Fitted) -> Tensor:
    """Their table (1, N or 1 + N, width) as one of the tower's grid; a table without the class token's row gets a zero row."""
    if table.dim() != 3 or len(table) != 1 or table.shape[-1] != tower.width:
        check_shape(report.path, "pos_embed", tuple(table.shape), tuple(tower.pos_embed.shape))
    if not has_class:
        table = torch.cat([torch.zeros(1, 1, tower.width), table], dim=1)
    theirs = grid or _grid(table.shape[1] - 1, tower.grid)
    if theirs is None or theirs[0] * theirs[1] * theirs[2] != table.shape[1] - 1:
        raise UserError(
            f"The position table of {report.path} has {table.shape[1] - 1} patches, which are no cube: its grid is unknown, so "
            "set model.vision.volume to what the file was trained on.",
            code="unknown-grid",
            field="model.vision.volume",
            value=table.shape[1] - 1,
        )
    if theirs != tower.grid:
        report.fitted.append(f"a position table of {theirs} patches is now one of {tower.grid}")
    return resize_positions(table.float(), theirs, tower.grid)


def _grid(patches: int, own: Grid) -> Grid | None:
    """The grid of so many patches: the tower's own, or a cube."""
    return own if patches == own[0] * own[1] * own[2] else cube(patches)


def cube(patches: int) -> Grid | None:
    """The cube of so many patches, if there is one."""
    side = round(patches ** (1 / 3))
    return (side, side, side) if side**3 == patches else None


def _check_depth(weights: Weights, theirs: Mapping[str, Tensor], depth: int) -> None:
    for name in theirs:
        found = re.match(r"blocks\.([0-9]+)\.", name)
        if found and int(found[1]) >= depth:
            raise too_deep(weights.path, name)
