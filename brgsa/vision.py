"""Vision towers by name: the paper's 3D ViT, MONAI's 3D ResNets, and a small convolutional one for coarse grids.

A tower takes volumes, float (B, 1, X, Y, Z) in [-1, 1] (HU / 1000), and gives embeddings, float (B, `tower.width`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from brgsa.config import VisionConfig
from brgsa.resnet import ResNet

Grid = tuple[int, int, int]

# Torch takes flash attention first. On an H100, at the paper's 2,745 tokens of 64 columns a head, cuDNN's forward and
# backward passes take two thirds of its time (docs/benchmarks.md). A kernel that cannot serve is passed over.
ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def vision_tower(config: VisionConfig) -> nn.Module:
    """The tower that the configuration names."""
    return _TOWERS[config.name](config)


class InputChannels(nn.Module):
    """A tower's input: one channel per HU window, each scaled to [-1, 1], or without windows the volume; standardised.

    It is a part of the tower, so that training, evaluation and prediction cannot differ in it.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        windows = config.windows
        self.mean, self.std = config.mean, config.std
        self.number = max(1, len(windows))
        bounds = torch.tensor(windows, dtype=torch.float32).reshape(-1, 2) / 1000.0
        self.register_buffer("low", bounds[:, 0].view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("high", bounds[:, 1].view(1, -1, 1, 1, 1), persistent=False)
        self.low: Tensor
        self.high: Tensor

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (B, 1, X, Y, Z) in HU / 1000, from -1 to 1, to (B, `number`, X, Y, Z)."""
        channels = volumes
        if self.low.numel():
            channels = ((volumes - self.low) / (self.high - self.low)).clamp(0, 1) * 2 - 1
        if (self.mean, self.std) == (0.0, 1.0):
            return channels
        return (channels - self.mean).div_(self.std)


class ViT3D(nn.Module):
    """The paper's 3D vision transformer; its embedding is the class token after the final norm.

    It works at any volume size that its patch divides: the position table is resized trilinearly where the grid of
    patches differs from the configuration's.

    Attributes:
        checkpoint_activations: keep only each block's input for the backward pass and compute the block again there:
            about a twelfth of the memory for a third more arithmetic.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.width = config.width
        self.channels = InputChannels(config)
        self.patch_embed = PatchEmbedding(config.patch, self.channels.number, config.width)
        self.grid = self.patch_embed.grid(config.volume)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        table = sincos_positions(self.grid, config.width, config.coordinates)
        self.pos_embed = nn.Parameter(table, requires_grad=config.positions == "learned")
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.patch_dropout = config.patch_dropout
        self.checkpoint_activations = False
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (B, 1, X, Y, Z) in [-1, 1] to embeddings (B, width).

        Raises:
            ValueError: the patch does not divide the volume's size.
        """
        x = self.channels(volumes)
        grid = self.patch_embed.grid(tuple(x.shape[2:]))
        positions = resize_positions(self.pos_embed, self.grid, grid)
        tokens = self.patch_embed(x) + positions[:, 1:]
        if self.training and self.patch_dropout:
            tokens = drop_patches(tokens, self.patch_dropout)
        tokens = torch.cat([(self.cls_token + positions[:, :1]).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        embedding: Tensor = self.norm(tokens[:, 0])
        return embedding


class PatchEmbedding(nn.Module):
    """Non-overlapping 3D patches to N tokens, x slowest and z fastest.

    A reshape and one matrix product: they compute what a strided Conv3d computes, 5 times quicker on a CPU.
    """

    def __init__(self, patch: Grid, channels: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(channels * patch[0] * patch[1] * patch[2], width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to tokens (B, N, width)."""
        batch, channels, *size = x.shape
        (px, py, pz), (nx, ny, nz) = self.patch, self.grid(tuple(size))
        x = x.reshape(batch, channels, nx, px, ny, py, nz, pz).permute(0, 2, 4, 6, 1, 3, 5, 7)
        tokens: Tensor = self.proj(x.reshape(batch, nx * ny * nz, -1))
        return tokens

    def grid(self, size: tuple[int, ...]) -> Grid:
        """Patches along x, y and z of a volume of `size` voxels.

        Raises:
            ValueError: the patch does not divide the size.
        """
        if any(n % p for n, p in zip(size, self.patch, strict=True)):
            raise ValueError(f"a volume of {size} voxels does not divide into patches of {self.patch}")
        nx, ny, nz = (n // p for n, p in zip(size, self.patch, strict=True))
        return nx, ny, nz


class Block(nn.Module):
    """Pre-norm transformer block, LayerNorm eps 1e-6."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, hidden)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Tokens (B, N, width) to tokens of the same shape."""
        x_BNW = x_BNW + self.attn(self.norm1(x_BNW))
        out_BNW: Tensor = x_BNW + self.mlp(self.norm2(x_BNW))
        return out_BNW


class Attention(nn.Module):
    """Multi-head self-attention through torch's fused kernels."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Tokens (B, N, width) to tokens of the same shape."""
        batch, tokens, width = x_BNW.shape
        qkv = self.qkv(x_BNW).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q_BHNd, k_BHNd, v_BHNd = qkv.unbind(0)
        with sdpa_kernel(ATTENTION, set_priority=True):
            mixed_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        out_BNW: Tensor = self.proj(mixed_BHNd.transpose(1, 2).reshape(batch, tokens, width))
        return out_BNW


class MLP(nn.Module):
    """A transformer block's two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Tokens (B, N, width) to tokens of the same shape."""
        out_BNW: Tensor = self.fc2(F.gelu(self.fc1(x_BNW)))
        return out_BNW


def drop_patches(tokens_BNW: Tensor, share: float) -> Tensor:
    """Keep a random 1 - `share` of each volume's patch tokens, at least one (FLIP, Li et al. 2023, arXiv 2212.00794)."""
    batch, patches, width = tokens_BNW.shape
    kept = max(1, round((1 - share) * patches))
    chosen_BK = torch.rand(batch, patches, device=tokens_BNW.device).argsort(dim=1)[:, :kept]
    return tokens_BNW.gather(1, chosen_BK.unsqueeze(-1).expand(-1, -1, width))


def sincos_positions(grid: Grid, width: int, coordinates: str = "unit") -> Tensor:
    """3D sine-cosine table, float32 (1, 1 + N, width), for a grid of N patches; x is slowest, the class token's row 0 is zero.

    Each axis takes the same even number of columns, half sine and half cosine at frequencies 10000^(-i/n); the columns
    that are left over stay zero.

    Args:
        coordinates: "unit", from 0 to 1 along each axis, or "index", 0, 1, 2 and so on.
    """
    per_axis = width // 6
    frequencies = 10000.0 ** (-torch.arange(per_axis, dtype=torch.float64) / max(per_axis, 1))
    along = [torch.arange(n, dtype=torch.float64) / (1 if coordinates == "index" else max(n - 1, 1)) for n in grid]
    axes = torch.meshgrid(*along, indexing="ij")
    columns = []
    for axis in axes:
        angle = axis.reshape(-1, 1) * frequencies
        columns += [angle.sin(), angle.cos()]
    table = torch.cat(columns, dim=1).float()
    padded = F.pad(table, (0, width - table.shape[1]))
    return torch.cat([torch.zeros(1, width), padded]).unsqueeze(0)


def resize_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A position table (1, 1 + N_old, width) resized trilinearly to another grid; the class token's row stays as it is."""
    if old == new:
        return table
    head, body = table[:, :1], table[:, 1:]
    volume = body.reshape(1, *old, -1).permute(0, 4, 1, 2, 3)
    volume = F.interpolate(volume, size=new, mode="trilinear", align_corners=False)
    return torch.cat([head, volume.permute(0, 2, 3, 4, 1).reshape(1, -1, table.shape[-1])], dim=1)


class ResNet3D(nn.Module):
    """A 3D ResNet without a classifier, pooled by average, or by average and maximum side by side."""

    LAYERS: dict[str, list[int]] = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}  # noqa: RUF012

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.channels = InputChannels(config)
        channels = [config.width * 2**stage for stage in range(4)]
        self.net = ResNet(
            self.LAYERS[config.name],
            channels,
            inputs=self.channels.number,
            stem_kernel=config.stem_kernel,
            stem_stride=config.stem_stride,
            stem_pool=config.stem_pool,
        )
        if config.norm == "group":
            _replace_batch_norm(self.net)
        self.width = channels[-1]
        if config.pool == "avg+max":
            self.net.avgpool = AverageAndMaximum()
            self.width *= 2

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (B, 1, X, Y, Z) in [-1, 1] to embeddings (B, width)."""
        embedding: Tensor = self.net(self.channels(volumes))
        return embedding


class ConvNet3D(nn.Module):
    """Five 3×3×3 convolutions down to an eighth of the resolution, pooled like `ResNet3D`.

    It is made for grids of about 64×64×32 voxels, where a ResNet's five halvings leave nothing of a lesion's place.
    """

    CHANNELS, STRIDES = (1, 2, 2, 4, 6), (2, 2, 1, 2, 1)

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.channels = InputChannels(config)
        layers, channels = [], self.channels.number
        for factor, stride in zip(self.CHANNELS, self.STRIDES, strict=True):
            layers.append(_convolution(channels, factor * config.width, stride))
            channels = factor * config.width
        self.net = nn.Sequential(*layers)
        if config.norm == "group":
            _replace_batch_norm(self.net)
        both = config.pool == "avg+max"
        self.pool = AverageAndMaximum() if both else nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.width = 2 * channels if both else channels
        # oneDNN's convolutions are quicker channels-last; the weights' layout decides.
        self.net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (B, 1, X, Y, Z) in [-1, 1] to embeddings (B, width)."""
        x = self.channels(volumes).contiguous(memory_format=torch.channels_last_3d)
        embedding: Tensor = self.pool(self.net(x))
        return embedding


class AverageAndMaximum(nn.Module):
    """Global average and global maximum side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to (B, 2C)."""
        flat = x.flatten(2)
        return torch.cat([flat.mean(-1), flat.amax(-1)], dim=1)


def _convolution(inputs: int, width: int, stride: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU; the weights' names are those of MONAI's `Convolution`."""
    after = nn.Sequential(OrderedDict(N=nn.BatchNorm3d(width), A=nn.ReLU()))
    return nn.Sequential(OrderedDict(conv=nn.Conv3d(inputs, width, 3, stride, padding=1, bias=False), adn=after))


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            groups = 8 if child.num_features % 8 == 0 else 1
            setattr(module, name, nn.GroupNorm(groups, child.num_features))
        else:
            _replace_batch_norm(child)


_TOWERS: dict[str, Callable[[VisionConfig], nn.Module]] = {
    "vit3d": ViT3D,
    "cnn3d": ConvNet3D,
    "resnet10": ResNet3D,
    "resnet18": ResNet3D,
    "resnet34": ResNet3D,
}
