"""What a tower costs: its weights, its arithmetic, and the bytes that it keeps for the backward pass.

The vision tower is traced on fake tensors, which have shapes and no memory: in seconds, on a machine without a GPU. Autocast
on a CPU keeps the same tensors as on a GPU, but for the kernels that torch.compile fuses.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from brgsa.config import TextConfig, VisionConfig

# Bytes that a BERT layer keeps for each token and column of its width: inputs of its six linear layers and of attention, both
# norms' inputs, masks of dropout.
TEXT_BYTES = {"32": 74, "16": 44, "bf16": 44}


@dataclass(frozen=True)
class TowerCost:
    """Costs of a tower in training.

    Attributes:
        parameters: number of weights.
        largest_block: of these, in the largest block of a transformer; all of them in another tower.
        flops: of a sample's forward pass.
        kept_bytes: kept for the backward pass, for each sample.
        kept_once: kept once, whatever the batch: weights in 16 bits.
        blocks: number of a transformer's blocks; 0 in another tower.
        block_bytes, block_input: what a vision transformer's block keeps and what goes into it, in bytes for each sample.
        locked: number of weights that do not learn.
        learning: share of the arithmetic that has a backward pass.
    """

    parameters: int
    largest_block: int
    flops: float
    kept_bytes: float
    kept_once: float = 0.0
    blocks: int = 0
    block_bytes: float = 0.0
    block_input: float = 0.0
    locked: int = 0
    learning: float = 1.0

    def but_for(self, free: int) -> TowerCost:
        """The costs when all but the last `free` blocks are locked: these alone keep anything for a backward pass."""
        share = free / self.blocks if free else 0.0
        in_blocks = self.blocks * (self.block_bytes or self.kept_bytes / max(self.blocks, 1))
        return replace(
            self,
            kept_bytes=share * in_blocks,
            kept_once=share * self.kept_once,
            locked=self.parameters - free * self.largest_block,
            learning=share,
        )


@functools.cache
def vision_cost(config: VisionConfig, precision: str) -> TowerCost:
    """Costs of a vision tower, in "32", "16" or "bf16"."""
    one, two = _Trace(config, precision, 1), _Trace(config, precision, 2)
    sizes = [_parameters(block) for block in getattr(one.tower, "blocks", [])] or [_parameters(one.tower)]
    return TowerCost(
        parameters=_parameters(one.tower),
        largest_block=max(sizes),
        flops=one.flops,
        kept_bytes=two.kept - one.kept,
        kept_once=max(0.0, 2 * one.kept - two.kept),
        blocks=one.blocks,
        block_bytes=two.block_bytes - one.block_bytes,
        block_input=one.block_input,
    )


def text_cost(config: TextConfig, precision: str) -> TowerCost:
    """Costs of a text tower with texts of `config.max_tokens` tokens.

    Raises:
        UserError: the model's configuration is neither in a folder nor on the hub ("no-text-model").
    """
    shape = _text_shape(config)
    width, hidden, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    layer = 4 * width * (width + 1) + 2 * width * hidden + hidden + width + 4 * width
    embeddings = (shape.vocab_size + shape.max_position_embeddings + shape.type_vocab_size + 2) * width
    tokens = config.max_tokens
    once = 0.0 if precision == "32" else 2.0 * layers * layer
    return TowerCost(
        parameters=embeddings + layers * layer,
        largest_block=layer,
        flops=2.0 * tokens * layers * layer + 4.0 * layers * tokens**2 * width,
        kept_bytes=float(TEXT_BYTES[precision] * width * layers * tokens),
        kept_once=once,
        blocks=layers,
    )


def _text_shape(config: TextConfig) -> Any:
    from transformers import BertConfig

    from brgsa.text import pretrained_settings

    if config.name == "small":
        return BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            intermediate_size=4 * config.width,
            max_position_embeddings=config.max_tokens,
        )
    if config.name == "bert-base-uncased":
        return BertConfig()  # its values are the defaults: no need to ask the hub
    return pretrained_settings(config.name)


class _Trace:
    """A forward pass of a batch through a tower of fake tensors.

    Attributes:
        kept: bytes of what autograd keeps, but for the weights themselves.
    """

    def __init__(self, config: VisionConfig, precision: str, batch: int) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

        from brgsa.vision import vision_tower

        def attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
            return int(sdpa_flop_count(query, key, value))

        self.blocks, self.block_bytes, self.block_input = 0, 0.0, 0.0
        counted = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
        with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=counted) as counter:
            self.tower = vision_tower(config).train()
            self._weights = {weight.untyped_storage()._cdata for weight in self.tower.parameters()}
            self._storages: dict[int, torch.UntypedStorage] = {}
            self._watch_first_block()
            volumes = torch.empty(batch, 1, *config.volume)
            autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "32")
            with autocast, torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept):
                self.tower(volumes)
        self.kept = self._bytes()
        self.flops = float(counter.get_total_flops()) / batch

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._storages[storage._cdata] = storage
        return tensor

    def _bytes(self) -> float:
        return float(sum(storage.nbytes() for storage in self._storages.values()))

    def _watch_first_block(self) -> None:
        blocks = getattr(self.tower, "blocks", None)
        if blocks is None:
            return
        self.blocks = len(blocks)

        def before(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.block_input = inputs[0].numel() * inputs[0].element_size() / len(inputs[0])
            self.block_bytes = -self._bytes()

        def after(block: nn.Module, inputs: Any, output: Any) -> None:
            self.block_bytes += self._bytes()

        blocks[0].register_forward_pre_hook(before)
        blocks[0].register_forward_hook(after)


def _parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
