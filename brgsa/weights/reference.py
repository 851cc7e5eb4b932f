"""The public reference's checkpoint (github.com/laihaoran/BrgSA) as a model of ours.

Its names are `gloria.img_encoder.model.*` (a ViT), `gloria.img_encoder.global_embedder`, `gloria.text_encoder.model.*` (a
BERT), `gloria.text_encoder.emb_global` and `gloria.dictionarylearning.dictionary`. Sizes follow from the tensors' shapes; heads
have 64 columns, as in every ViT-B and BERT-base, for no shape tells them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from brgsa.config import BankConfig, ModelConfig, TextConfig, VisionConfig
from brgsa.errors import UserError
from brgsa.model import BrgSA
from brgsa.text import TextTower
from brgsa.weights.fitting import Fitted, another_architecture, put
from brgsa.weights.reading import Weights
from brgsa.weights.text import bert_names
from brgsa.weights.vision import cube

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD = 64  # columns of an attention head
LAYERS_SUMMED, POSITIONS = 4, 97
VIT, BERT = "img_encoder.model.", "text_encoder.model."
# Their name → ours, by how a name begins.
NAMES = (
    (VIT, "vision."),
    ("img_encoder.global_embedder.", "project_volume."),
    (BERT, "text.bert."),
    ("text_encoder.emb_global.", "project_text."),
    ("dictionarylearning.dictionary.weight", "bank.vectors"),
)
WANTED = (  # the tensors whose shapes give the sizes
    f"{VIT}patch_embed.proj.weight",
    f"{VIT}pos_embed",
    f"{VIT}blocks.0.mlp.fc1.weight",
    "img_encoder.global_embedder.weight",
    f"{BERT}embeddings.word_embeddings.weight",
    f"{BERT}embeddings.position_embeddings.weight",
    f"{BERT}embeddings.token_type_embeddings.weight",
    f"{BERT}encoder.layer.0.intermediate.dense.weight",
    "dictionarylearning.dictionary.weight",
)


def reference_model(
    weights: Weights, tokenizer: PreTrainedTokenizerBase, name: str, volume: tuple[int, int, int] | None = None
) -> tuple[BrgSA, Fitted]:
    """The model of a reference checkpoint, in evaluation mode, and what became of the file's tensors.

    Args:
        tokenizer: of the BERT; the file has none.
        name: for `text.name`.
        volume: voxels that the position table is made for; by default its patches are taken for a cube.

    Raises:
        UserError: the file is no reference checkpoint, a tensor has an impossible shape or is missing, or the tokenizer has
            another vocabulary size than the BERT.
    """
    weights = weights.without_prefix("gloria.")
    for wanted in WANTED:
        if wanted not in weights.tensors:
            raise another_architecture(weights.path, f"BrgSA reference checkpoint (no {wanted})")
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.tensors.items()}
    vocabulary = shapes[f"{BERT}embeddings.word_embeddings.weight"][0]
    if len(tokenizer) != vocabulary:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} pieces and the BERT of {weights.path} has {vocabulary}: give the tokenizer "
            "that it was trained with.",
            code="vocabulary-differs",
            field="--tokenizer",
            value=len(tokenizer),
        )
    try:
        config = _config(weights.path, shapes, name, volume)
        text = _bert(shapes, tokenizer, config.text)
    except ValueError as error:
        raise UserError(
            f"{weights.path} has shapes that make no model ({error}): use another file.",
            code="weights-mismatch",
            field=str(weights.path),
        ) from error
    model = BrgSA(config, text=text)
    report = Fitted(weights.path, unused=list(weights.skipped))
    put(model, _renamed(weights.tensors), report)
    return model.eval(), report


def _config(
    path: Path, shapes: Mapping[str, tuple[int, ...]], name: str, volume: tuple[int, int, int] | None
) -> ModelConfig:
    kernel, table = shapes[f"{VIT}patch_embed.proj.weight"], shapes[f"{VIT}pos_embed"]
    if len(kernel) != 5 or kernel[1] != 1 or len(table) != 3:
        raise ValueError(f"a patch embedding of {kernel}, a position table of {table}")
    patch = (kernel[2], kernel[3], kernel[4])
    grid = cube(table[1] - 1)
    if volume is None and grid is not None:
        volume = (grid[0] * patch[0], grid[1] * patch[1], grid[2] * patch[2])
    if volume is None or _patches(volume, patch) != table[1] - 1:
        raise UserError(
            f"The position table of {path} has {table[1] - 1} patches of {patch} voxels: give the --volume that it is for.",
            code="unknown-grid",
            field="--volume",
            value=table[1] - 1,
        )
    width = kernel[0]
    size, embedding = shapes["dictionarylearning.dictionary.weight"]
    return ModelConfig(
        vision=VisionConfig(
            volume=volume,
            patch=patch,
            width=width,
            depth=_blocks(shapes, rf"{VIT}blocks\.([0-9]+)\."),
            heads=max(1, width // HEAD),
            mlp=shapes[f"{VIT}blocks.0.mlp.fc1.weight"][0],
            mean=0.4978,
            std=0.2449,
            evaluation="whole",
            positions="fixed",
            norm_eps=1e-5,
        ),
        text=TextConfig(name=name, max_tokens=POSITIONS, layers_summed=LAYERS_SUMMED, pool="positions", form="plain"),
        bank=BankConfig(size=size),
        embedding=embedding,
    )


def _bert(shapes: Mapping[str, tuple[int, ...]], tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> TextTower:
    from transformers import BertConfig, BertModel

    vocabulary, width = shapes[f"{BERT}embeddings.word_embeddings.weight"]
    settings = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=_blocks(shapes, rf"{BERT}encoder\.layer\.([0-9]+)\."),
        num_attention_heads=max(1, width // HEAD),
        intermediate_size=shapes[f"{BERT}encoder.layer.0.intermediate.dense.weight"][0],
        max_position_embeddings=shapes[f"{BERT}embeddings.position_embeddings.weight"][0],
        type_vocab_size=shapes[f"{BERT}embeddings.token_type_embeddings.weight"][0],
        pad_token_id=tokenizer.pad_token_id,
    )
    return TextTower(BertModel(settings, add_pooling_layer=False), tokenizer, config)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names; those that have none keep theirs."""
    renamed = {}
    for name, tensor in bert_names(dict(tensors)).items():
        ours = next((our + name.removeprefix(their) for their, our in NAMES if name.startswith(their)), name)
        renamed[ours] = tensor.flatten(1) if ours == "vision.patch_embed.proj.weight" else tensor
    return renamed


def _patches(volume: tuple[int, ...], patch: tuple[int, ...]) -> int:
    count = 1
    for voxels, size in zip(volume, patch, strict=True):
        count *= voxels // size if voxels % size == 0 else 0
    return count


def _blocks(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    found = (re.match(pattern, name) for name in shapes)
    return 1 + max(int(number[1]) for number in found if number)
