"""A 3D ResNet of basic blocks, equal to MONAI's in its weights' names, in how they are drawn and in what it computes.

It stands here because `import monai` imports all of MONAI, and through its handlers MLflow: `brgsa predict` took 13 s with it
and takes 8 s without (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ResNet(nn.Module):
    """A stem, four stages, each but the first of half the resolution, and global pooling.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016; in 3D: Hara et al., 2018. The shortcuts that change
    the shape are 1×1×1 convolutions.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: Sequence[int],
        *,
        inputs: int,
        stem_kernel: int,
        stem_stride: int,
        stem_pool: bool,
    ) -> None:
        """A network with random weights.

        Args:
            blocks, channels: of each stage.
            inputs: channels of a volume.
            stem_kernel, stem_stride: of the first convolution.
            stem_pool: whether a maximum over 3×3×3 voxels, with stride 2, follows it.
        """
        super().__init__()
        before = channels[0]
        self.conv1 = nn.Conv3d(inputs, before, stem_kernel, stem_stride, padding=stem_kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm3d(before)
        self.act = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1) if stem_pool else nn.Identity()
        for stage, (number, width) in enumerate(zip(blocks, channels, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (number - 1)
            layers = []
            for stride in strides:
                layers.append(BasicBlock(before, width, stride))
                before = width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.stages = [f"layer{stage}" for stage in range(1, len(blocks) + 1)]
        self.avgpool: nn.Module = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Volumes (B, C, X, Y, Z) to embeddings (B, width of the last stage)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        embedding: Tensor = self.avgpool(x)
        return embedding


class BasicBlock(nn.Module):
    """Two 3×3×3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        # The shortcut's weights are drawn first, as MONAI's are: the same seed gives the same network.
        shortcut = None
        if stride != 1 or inputs != width:
            shortcut = nn.Sequential(nn.Conv3d(inputs, width, 1, stride, bias=False), nn.BatchNorm3d(width))
        self.conv1 = nn.Conv3d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) to (B, width, …)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        out: Tensor = self.act(y + shortcut)
        return out
