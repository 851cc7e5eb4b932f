"""Text towers: any BERT-like Hugging Face model, or a small BERT with a WordPiece vocabulary of the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from brgsa.config import TextConfig
from brgsa.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What transformers raises for files that are missing or hold something else.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokens(NamedTuple):
    """Tokenised texts: ids and mask (B, L), and the number of words (B,), special tokens counted as words."""

    ids: Tensor
    mask: Tensor
    words: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(*(x.to(device) for x in self))


class TextTower(nn.Module):
    """A BERT whose last hidden layers are summed and averaged over words: texts → (B, `width`).

    The sub-words of a word are summed, then words are averaged (method.md, "text tower").
    """

    def __init__(self, bert: nn.Module, tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> None:
        super().__init__()
        self.bert = bert
        self.tokenizer = tokenizer
        self.max_tokens = config.max_tokens
        self.layers_summed = config.layers_summed
        settings: Any = bert.config
        self.width = int(settings.hidden_size)
        limit = getattr(settings, "max_position_embeddings", config.max_tokens)
        if config.max_tokens > limit:
            raise UserError(
                f"text.max_tokens={config.max_tokens} is over the text model's {limit} positions: lower it."
            )
        if config.layers_summed > settings.num_hidden_layers:
            raise UserError(
                f"text.layers_summed={config.layers_summed} is over the text model's {settings.num_hidden_layers} "
                "layers: lower it."
            )

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts to padded ids, on the CPU; a text over `max_tokens` is cut."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        words = []
        for row, mask in enumerate(batch["attention_mask"]):
            word_ids = batch.word_ids(row)[: len(mask)]
            kept = [word for word, on in zip(word_ids, mask.tolist(), strict=True) if on]
            words.append(len({word for word in kept if word is not None}) + kept.count(None))
        return Tokens(batch["input_ids"], batch["attention_mask"], torch.tensor(words))

    def forward(self, tokens: Tokens) -> Tensor:
        hidden = self.bert(input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=True).hidden_states[
            -self.layers_summed :
        ]
        summed_BLW = torch.stack(hidden).sum(0) * tokens.mask.unsqueeze(-1)
        pooled: Tensor = summed_BLW.sum(1) / tokens.words.unsqueeze(-1)
        return pooled

    def save(self, folder: Path) -> None:
        """Write tokenizer and model configuration; the weights travel with the whole model's."""
        self.tokenizer.save_pretrained(str(folder))
        settings: Any = self.bert.config
        settings.save_pretrained(str(folder))


def train_tokenizer(corpus: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A lower-casing WordPiece tokenizer learned from the corpus; the same corpus gives the same vocabulary.

    Raises:
        UserError: the corpus holds no word twice.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(corpus)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    characters = sorted({c for text in texts for c in normalizer.normalize_str(text) if not c.isspace()})
    draft = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    draft.normalizer = normalizer
    draft.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocabulary, len(SPECIAL_TOKENS) + 2 * len(characters)),
        # The trainer breaks ties between equally frequent pieces by their ids, and numbers single characters as its hash
        # map has them, another way in each process. Given beforehand they have fixed ids.
        special_tokens=[*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)],
        show_progress=False,
        min_frequency=2,
    )
    draft.train_from_iterator(texts, trainer)
    pieces = draft.get_vocab()
    if len(pieces) <= len(SPECIAL_TOKENS) + 2 * len(characters):
        raise UserError("The corpus for the text vocabulary holds no repeated words: check the reports of the store.")
    inner = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, pieces[token]) for token in ("[CLS]", "[SEP]")]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def small_tower(config: TextConfig, tokenizer: PreTrainedTokenizerBase) -> TextTower:
    """A BERT from scratch for the tokenizer's vocabulary."""
    from transformers import BertConfig, BertModel

    settings = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=config.max_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    return TextTower(BertModel(settings, add_pooling_layer=False), tokenizer, config)


def pretrained_tower(config: TextConfig) -> TextTower:
    """A Hugging Face model by folder or hub name.

    Raises:
        UserError: there is no such model, or the hub cannot be reached.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.name, trust_remote_code=False)
        bert = AutoModel.from_pretrained(config.name, trust_remote_code=False)
    except (*DAMAGED, SafetensorError) as error:
        raise UserError(
            f"text.name={config.name!r} is neither a folder with a Hugging Face model nor a model that the hub gives: "
            'correct it, or use "small".'
        ) from error
    _require_fast(tokenizer, config.name)
    return TextTower(_without_pooler(bert), tokenizer, config)


def saved_tower(config: TextConfig, folder: Path) -> TextTower:
    """The tower that `TextTower.save` described, its weights not yet loaded.

    Raises:
        UserError: the files are damaged, missing, or ask for code of their own to be run.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    # Left open, transformers asks at the terminal whether code that lies in the folder may run.
    only_data: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **only_data)
        bert = AutoModel.from_config(AutoConfig.from_pretrained(str(folder), **only_data))
    except DAMAGED as error:
        raise UserError(f"{folder} does not describe a text tower: the checkpoint is damaged, use another.") from error
    return TextTower(_without_pooler(bert), tokenizer, config)


def text_tower(config: TextConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> TextTower:
    """The tower that the configuration names; "small" needs the corpus's tokenizer."""
    if config.name == "small":
        if tokenizer is None:
            raise ValueError("the small text tower needs a tokenizer: see train_tokenizer")
        return small_tower(config, tokenizer)
    return pretrained_tower(config)


def _without_pooler(bert: nn.Module) -> nn.Module:
    # The pooler's weights would never get a gradient, which DDP refuses.
    if getattr(bert, "pooler", None) is not None:
        bert.pooler = None  # type: ignore[assignment, unused-ignore]
    return bert


def _require_fast(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if not tokenizer.is_fast:
        raise UserError(f"The tokenizer of text.name={name!r} has no fast version, which counting words needs.")
