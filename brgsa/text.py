"""Text towers: any BERT-like Hugging Face model, or a small BERT with a WordPiece vocabulary of the corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from brgsa.config import TextConfig
from brgsa.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# What transformers raises for files that are missing or hold something else.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)

# What a configuration of BERT's architecture may call itself, beside "bert"; code that its folder brings is never run.
BERT_BY_ANOTHER_NAME = ("cxr-bert",)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, each with its full stop."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", text.strip())]


def plain_form(text: str) -> str:
    """A text in lower case without punctuation, and without its sentences of one word unless it has no other."""
    sentences = [re.findall(r"\w+", sentence.lower()) for sentence in split_sentences(text)]
    longer = [words for words in sentences if len(words) > 1] or sentences
    return " ".join(word for words in longer for word in words)


def as_read(texts: Iterable[str], form: str) -> list[str]:
    """Texts in the form that a tower reads (`TextConfig.form`)."""
    return [plain_form(text) for text in texts] if form == "plain" else list(texts)


class Tokens(NamedTuple):
    """B tokenised texts, padded to the L tokens of the longest; all int64.

    Attributes:
        ids: (B, L).
        mask: (B, L), 1 for a token and 0 for padding.
        words: (B,) number of words; a special token counts as a word.
    """

    ids: Tensor
    mask: Tensor
    words: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on a device."""
        return Tokens(*(x.to(device) for x in self))


class TextTower(nn.Module):
    """A BERT whose last hidden layers are summed over a text's tokens, and divided by a number of positions or words.

    The paper's text tower sums the sub-words of each word and averages over `config.max_tokens` positions, of which those
    beyond the text's words are zero. `config.pool` "words" averages over the words instead.

    Raises:
        UserError: the model has fewer positions than `config.max_tokens`, or fewer layers than `config.layers_summed`.
    """

    def __init__(self, bert: nn.Module, tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> None:
        super().__init__()
        self.bert = bert
        self.tokenizer = tokenizer
        self.max_tokens = config.max_tokens
        self.pool, self.form = config.pool, config.form
        self.layers_summed = config.layers_summed
        settings: Any = bert.config
        self.width = int(settings.hidden_size)
        limit = getattr(settings, "max_position_embeddings", config.max_tokens)
        if config.max_tokens > limit:
            raise UserError(
                f"text.max_tokens={config.max_tokens} is over the text model's {limit} positions: lower it.",
                code="over-the-text-model",
                field="text.max_tokens",
                value=config.max_tokens,
            )
        if config.layers_summed > settings.num_hidden_layers:
            raise UserError(
                f"text.layers_summed={config.layers_summed} is over the text model's {settings.num_hidden_layers} "
                "layers: lower it.",
                code="over-the-text-model",
                field="text.layers_summed",
                value=config.layers_summed,
            )

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """B texts as written to tokens on the CPU, in the form that the tower reads; one of more than `max_tokens` is cut."""
        read = as_read(texts, self.form)
        batch = self.tokenizer(read, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        words = []
        for row, mask in enumerate(batch["attention_mask"]):
            word_ids = batch.word_ids(row)[: len(mask)]
            kept = [word for word, on in zip(word_ids, mask.tolist(), strict=True) if on]
            words.append(len({word for word in kept if word is not None}) + kept.count(None))
        return Tokens(batch["input_ids"], batch["attention_mask"], torch.tensor(words))

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens on the model's device to embeddings, float (B, `width`)."""
        mask = self._without_waiting(tokens.mask) if tokens.mask.is_cuda else tokens.mask
        hidden = self.bert(input_ids=tokens.ids, attention_mask=mask, output_hidden_states=True).hidden_states[
            -self.layers_summed :
        ]
        summed_BLW = torch.stack(hidden).sum(0) * tokens.mask.unsqueeze(-1)
        pooled_BW: Tensor = summed_BLW.sum(1)
        return pooled_BW / (self.max_tokens if self.pool == "positions" else tokens.words.unsqueeze(-1))

    def _without_waiting(self, mask_BL: Tensor) -> Tensor:
        """The mask as BERT makes it for fused attention, bool (B, 1, L, L).

        Given (B, L), transformers asks the device whether all of it is 1, and waits for all that the device has to do.
        """
        settings: Any = self.bert.config
        if settings.model_type != "bert" or settings._attn_implementation != "sdpa":
            return mask_BL
        length = mask_BL.shape[1]
        return mask_BL.bool()[:, None, None, :].expand(-1, 1, length, -1)

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the model's configuration; the weights are saved with the whole model's."""
        self.tokenizer.save_pretrained(str(folder))
        settings: Any = self.bert.config
        settings.save_pretrained(str(folder))


def text_tower(config: TextConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> TextTower:
    """The tower that the configuration names; "small" needs the corpus's tokenizer.

    Raises:
        UserError: see `TextTower` and `pretrained_tower`.
        ValueError: the small tower has no tokenizer.
    """
    if config.name == "small":
        if tokenizer is None:
            raise ValueError("the small text tower needs a tokenizer: see train_tokenizer")
        return small_tower(config, tokenizer)
    if config.weights is not None and Path(config.name).is_dir():
        return saved_tower(config, Path(config.name))  # the folder need not hold weights of its own
    return pretrained_tower(config)


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
        UserError: there is no such model, the hub cannot be reached, it is no BERT-like encoder, its weights are not those
            of its configuration, or its tokenizer cannot count words.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer, BertTokenizer

    settings = pretrained_settings(config.name)
    only_data: dict[str, Any] = {"trust_remote_code": False}
    try:
        # A BERT by another name names a tokenizer of its own too, which is BERT's.
        kind = BertTokenizer if _settings_tree(config.name)["model_type"] in BERT_BY_ANOTHER_NAME else AutoTokenizer
        tokenizer = kind.from_pretrained(config.name, **only_data)
        bert, loaded = AutoModel.from_pretrained(config.name, config=settings, output_loading_info=True, **only_data)
    except (*DAMAGED, SafetensorError, RuntimeError) as error:
        raise _no_text_model(config.name) from error
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(
            f"text.name={config.name!r} lacks weights of its configuration's architecture, the first {missing[0]}: its weights "
            "are another model's.",
            code="weights-of-another-model",
            field="text.name",
            value=config.name,
        )
    require_fast(tokenizer, config.name, "text.name")
    return TextTower(_without_pooler(bert), tokenizer, config)


def require_fast(tokenizer: PreTrainedTokenizerBase, name: str, field: str) -> None:
    """Refuse a tokenizer that does not tell which pieces are of one word.

    Args:
        name: folder or hub name that the user gave in `field`.

    Raises:
        UserError: "slow-tokenizer".
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer of {field}={name} has no fast version, which counting words needs: choose another.",
            code="slow-tokenizer",
            field=field,
            value=name,
        )


def pretrained_settings(name: str) -> PretrainedConfig:
    """The configuration of a Hugging Face model by folder or hub name.

    A BERT by another name (CXR-BERT) is one of its values that BERT knows.

    Raises:
        UserError: there is no such model, it needs code of its own, or it is no encoder of the kind that BERT is.
    """
    from transformers import AutoConfig, BertConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    try:
        tree = _settings_tree(name)
        if tree.get("model_type") in BERT_BY_ANOTHER_NAME:
            known = BertConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
            return BertConfig.from_dict({key: value for key, value in tree.items() if key in known})
        settings: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except DAMAGED as error:
        raise _no_text_model(name) from error
    # A decoder's first words do not see the last ones, and a picture's encoder reads no words.
    if settings.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or settings.is_encoder_decoder:
        raise UserError(
            f"text.name={name!r} is of the architecture {settings.model_type}, which is no encoder of the kind that BERT is: "
            "choose one.",
            code="not-an-encoder",
            field="text.name",
            value=name,
        )
    return settings


def _settings_tree(name: str) -> dict[str, Any]:
    """What a model's config.json says."""
    from transformers import PretrainedConfig

    tree: dict[str, Any] = PretrainedConfig.get_config_dict(name)[0]
    return tree


def _no_text_model(name: str) -> UserError:
    return UserError(
        f"text.name={name!r} is neither a folder with a Hugging Face model nor a model that the hub gives: "
        'correct it, or use "small".',
        code="no-text-model",
        field="text.name",
        value=name,
    )


def saved_tower(config: TextConfig, folder: Path) -> TextTower:
    """The tower that `TextTower.save` described; its weights are not loaded yet.

    Raises:
        UserError: the files are damaged or missing, or ask to run code of their own.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    # By default transformers asks at the terminal whether code in the folder may run.
    only_data: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **only_data)
        bert = AutoModel.from_config(AutoConfig.from_pretrained(str(folder), **only_data))
    except DAMAGED as error:
        raise UserError(
            f"{folder} does not describe a text tower: the checkpoint is damaged, use another.",
            code="checkpoint-damaged",
            field=str(folder),
        ) from error
    return TextTower(_without_pooler(bert), tokenizer, config)


def _without_pooler(bert: nn.Module) -> nn.Module:
    # The pooler's weights would never get a gradient, which DDP refuses.
    if getattr(bert, "pooler", None) is not None:
        bert.pooler = None  # type: ignore[assignment, unused-ignore]
    return bert


def train_tokenizer(corpus: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A lower-casing WordPiece tokenizer learned from the corpus; the same corpus gives the same vocabulary.

    Args:
        vocabulary: number of pieces to aim at; the corpus's characters and the special tokens are always among them.

    Raises:
        UserError: the corpus repeats no word.
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
        # The trainer breaks ties between equally frequent pieces by their ids, and numbers single characters in the order
        # of its hash map, which differs in each process. Given as special tokens they have fixed ids.
        special_tokens=[*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)],
        show_progress=False,
        min_frequency=2,
    )
    draft.train_from_iterator(texts, trainer)
    pieces = draft.get_vocab()
    if len(pieces) <= len(SPECIAL_TOKENS) + 2 * len(characters):
        raise UserError(
            "The corpus for the text vocabulary holds no repeated words: check the reports of the store.",
            code="no-repeated-words",
        )
    inner = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, pieces[token]) for token in ("[CLS]", "[SEP]")]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)
