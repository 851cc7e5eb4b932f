"""The reference's model in plain PyTorch, as method.md describes it: the peer of `gpu.py`.

Strided convolution for patches, attention in separate operations, BERT likewise, all texts padded to the longest. No code
is taken from the reference. What costs it time beside the model (its loops over words in Python) is left out, in its favour.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brgsa.config import ModelConfig
from brgsa.model import BrgSA
from brgsa.text import Tokens


class UnfusedAttention(nn.Module):
    """softmax(q kᵀ / sqrt(d)) v, the (B, H, N, N) matrix of attention written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        out: Tensor = self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, width))
        return out


class ReferenceBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = UnfusedAttention(width, heads)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, hidden))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ReferenceModel(nn.Module):
    """Both towers and the bank; `forward` gives v, t, v', t' (B, D)."""

    def __init__(self, config: ModelConfig, bert: nn.Module) -> None:
        super().__init__()
        vision = config.vision
        self.mean, self.std, self.positions = vision.mean, vision.std, config.text.max_tokens
        patches = 1
        for voxels, patch in zip(vision.volume, vision.patch, strict=True):
            patches *= voxels // patch
        self.patch_embed = nn.Conv3d(1, vision.width, vision.patch, stride=vision.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, vision.width))
        learned = vision.positions == "learned"
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, vision.width), requires_grad=learned)
        self.blocks = nn.ModuleList(ReferenceBlock(vision.width, vision.heads, vision.mlp) for _ in range(vision.depth))
        self.norm = nn.LayerNorm(vision.width, eps=vision.norm_eps)
        self.bert = bert
        self.project_volume = nn.Linear(vision.width, config.embedding)
        self.project_text = nn.Linear(bert.config.hidden_size, config.embedding)
        self.bank = nn.Parameter(torch.zeros(config.bank.size, config.embedding))

    def copy_from(self, ours: BrgSA) -> None:
        """Take over our model's weights, name by name."""
        weights = {}
        for name, value in ours.state_dict().items():
            name = name.removeprefix("vision.").replace("text.bert.", "bert.").replace("bank.vectors", "bank")
            if name == "patch_embed.proj.weight":
                value = value.view_as(self.patch_embed.weight)
            weights[name.replace("patch_embed.proj.", "patch_embed.")] = value
        self.load_state_dict(weights)

    def forward(self, volumes: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.patch_embed((volumes - self.mean) / self.std).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        v = self.project_volume(self.norm(x)[:, 0])
        hidden = self.bert(tokens.ids, attention_mask=tokens.mask, output_hidden_states=True).hidden_states[-4:]
        t = self.project_text((torch.stack(hidden).sum(0) * tokens.mask.unsqueeze(-1)).sum(1) / self.positions)
        return v, t, self.bridge(v), self.bridge(t)

    def bridge(self, x: Tensor) -> Tensor:
        return (x @ self.bank.T).softmax(-1) @ self.bank


def reference_loss(v: Tensor, t: Tensor, bridged_v: Tensor, bridged_t: Tensor) -> Tensor:
    """InfoNCE(v, t) + InfoNCE(v', t') + 0.5 (mse(v', v) + mse(t', t)), inverse temperature 10."""

    def info_nce(a: Tensor, b: Tensor) -> Tensor:
        logits = 10.0 * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
        target = torch.arange(len(logits), device=logits.device)
        return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)

    v, t, bridged_v, bridged_t = (x.float() for x in (v, t, bridged_v, bridged_t))
    return info_nce(v, t) + info_nce(bridged_v, bridged_t) + 0.5 * (F.mse_loss(bridged_v, v) + F.mse_loss(bridged_t, t))
