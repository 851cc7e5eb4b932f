"""A checkpoint file as the public reference writes it, at a small size, and its forward pass in plain torch."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, DEPTH, HEADS, MLP = 128, 2, 2, 160
GRID, PATCH = (2, 2, 2), (4, 4, 2)
TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS, TEXT_MLP, POSITIONS = 64, 5, 1, 96, 100
EMBEDDING, BANK = 40, 7
MEAN, STD = 0.4978, 0.2449


def state_dict(vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """The tensors, by the reference's names."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    state = {
        "img_encoder.model.cls_token": torch.randn(1, 1, WIDTH),
        "img_encoder.model.pos_embed": torch.randn(1, 1 + GRID[0] * GRID[1] * GRID[2], WIDTH),
        **_named("img_encoder.model.patch_embed.proj", nn.Conv3d(1, WIDTH, PATCH)),
        **_named("img_encoder.model.norm", _norm(WIDTH)),
        **_named("img_encoder.global_embedder", nn.Linear(WIDTH, EMBEDDING)),
        **_named("img_encoder.local_embedder", nn.Conv1d(WIDTH, EMBEDDING, 1)),
        **_named("text_encoder.emb_global", nn.Linear(TEXT_WIDTH, EMBEDDING)),
        **_named("text_encoder.emb_local", nn.Conv1d(TEXT_WIDTH, EMBEDDING, 1)),
        "dictionarylearning.dictionary.weight": torch.randn(BANK, EMBEDDING),
    }
    for block in range(DEPTH):
        name = f"img_encoder.model.blocks.{block}"
        state |= _named(f"{name}.norm1", _norm(WIDTH)) | _named(f"{name}.norm2", _norm(WIDTH))
        state |= _named(f"{name}.attn.qkv", nn.Linear(WIDTH, 3 * WIDTH))
        state |= _named(f"{name}.attn.proj", nn.Linear(WIDTH, WIDTH))
        state |= _named(f"{name}.mlp.fc1", nn.Linear(WIDTH, MLP)) | _named(f"{name}.mlp.fc2", nn.Linear(MLP, WIDTH))
    settings = BertConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        num_hidden_layers=TEXT_DEPTH,
        num_attention_heads=TEXT_HEADS,
        intermediate_size=TEXT_MLP,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
    )
    state |= _named("text_encoder.model", BertModel(settings))
    return {f"gloria.{name}": tensor for name, tensor in state.items()}


def save(path: Path, state: dict[str, Tensor]) -> Path:
    """The file, with its hyper-parameters as objects of a library that is not there when it is read."""
    module = types.ModuleType("absentconf.dictconfig")
    kind = type("DictConfig", (), {"__module__": module.__name__})
    setattr(module, "DictConfig", kind)  # noqa: B010 (a module made here)
    sys.modules |= {"absentconf": types.ModuleType("absentconf"), module.__name__: module}
    settings: Any = kind()
    settings.model = {"lr": 5e-5}
    try:
        torch.save({"state_dict": state, "hyper_parameters": settings, "epoch": 7}, path)
    finally:
        del sys.modules["absentconf"], sys.modules[module.__name__]
    return path


def scores(state: dict[str, Tensor], hu: Tensor, texts: list[list[int]]) -> Tensor:
    """(B, P) zero-shot scores of volumes (B, X, Y, Z) in HU for P texts, each the ids of its pieces with [CLS] and [SEP]."""
    w = {name.removeprefix("gloria."): tensor for name, tensor in state.items()}
    v = _linear(w, "img_encoder.global_embedder", _vit(w, hu))
    t = _linear(w, "text_encoder.emb_global", torch.stack([_bert(w, ids) for ids in texts]))
    bank = w["dictionarylearning.dictionary.weight"]
    bridged = torch.softmax(v @ bank.T, 1) @ bank
    return (F.normalize(v) @ F.normalize(t).T + F.normalize(bridged) @ F.normalize(t).T) / 2


def _vit(w: dict[str, Tensor], hu: Tensor) -> Tensor:
    x = ((hu.clamp(-1000, 1000) / 1000)[:, None] - MEAN) / STD
    p = "img_encoder.model."
    x = F.conv3d(x, w[f"{p}patch_embed.proj.weight"], w[f"{p}patch_embed.proj.bias"], stride=PATCH)
    table = w[f"{p}pos_embed"]
    if tuple(x.shape[2:]) != GRID:
        body = table[:, 1:].transpose(1, 2).reshape(1, WIDTH, *GRID)
        body = F.interpolate(body, size=x.shape[2:], mode="trilinear", align_corners=False)
        table = torch.cat([table[:, :1], body.flatten(2).transpose(1, 2)], 1)
    x = torch.cat([w[f"{p}cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + table
    for block in range(DEPTH):
        b = f"{p}blocks.{block}."
        y = _linear(w, f"{b}attn.qkv", _normed(w, f"{b}norm1", x, 1e-6))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in y.chunk(3, -1))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5, -1) @ v
        x = x + _linear(w, f"{b}attn.proj", mixed.transpose(1, 2).flatten(2))
        x = x + _linear(w, f"{b}mlp.fc2", F.gelu(_linear(w, f"{b}mlp.fc1", _normed(w, f"{b}norm2", x, 1e-6))))
    return _normed(w, f"{p}norm", x, 1e-5)[:, 0]


def _bert(w: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Mean over 97 rows, of which each token has one and padding is zero, of the sum of the last four layers."""
    p = "text_encoder.model."
    e = f"{p}embeddings."
    x = w[f"{e}word_embeddings.weight"][ids] + w[f"{e}position_embeddings.weight"][: len(ids)]
    x = _normed(w, f"{e}LayerNorm", x + w[f"{e}token_type_embeddings.weight"][0], 1e-12)
    layers = []
    for layer in range(TEXT_DEPTH):
        b = f"{p}encoder.layer.{layer}."
        q, k, v = (
            _linear(w, f"{b}attention.self.{part}", x).unflatten(-1, (TEXT_HEADS, -1)).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = torch.softmax(q @ k.transpose(-1, -2) / (TEXT_WIDTH // TEXT_HEADS) ** 0.5, -1) @ v
        attended = _linear(w, f"{b}attention.output.dense", mixed.transpose(0, 1).flatten(1))
        x = _normed(w, f"{b}attention.output.LayerNorm", x + attended, 1e-12)
        hidden = F.gelu(_linear(w, f"{b}intermediate.dense", x))
        x = _normed(w, f"{b}output.LayerNorm", x + _linear(w, f"{b}output.dense", hidden), 1e-12)
        layers.append(x)
    rows = torch.zeros(97, TEXT_WIDTH)
    rows[: len(ids)] = sum(layers[-4:])
    return rows.mean(0)


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _normed(w: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def _named(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{own}": tensor.detach().clone() for own, tensor in module.state_dict().items()}


def _norm(width: int) -> nn.LayerNorm:
    """With weights that a mistake in the order of layers would show."""
    norm = nn.LayerNorm(width)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm
