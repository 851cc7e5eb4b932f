"""BrgSA: two towers, a shared space, and the bank through which both modalities are re-expressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from brgsa.bank import KnowledgeBank
from brgsa.config import ModelConfig
from brgsa.text import TextTower, Tokens, text_tower
from brgsa.vision import vision_tower

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Embeddings(NamedTuple):
    """Embeddings of one modality, not normalised: plain v or t (B, D), and bridged v' or t' (B, D), None without a bank."""

    plain: Tensor
    bridged: Tensor | None

    def cpu(self) -> Embeddings:
        return Embeddings(self.plain.cpu(), None if self.bridged is None else self.bridged.cpu())

    @staticmethod
    def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
        bridged = [part.bridged for part in parts if part.bridged is not None]
        return Embeddings(torch.cat([part.plain for part in parts]), torch.cat(bridged) if bridged else None)


class BrgSA(nn.Module):
    """The model of method.md; with `config.bank.enabled` false it is the plain CLIP baseline.

    Args:
        text: a text tower that is there already (a saved one); else the configuration's is made.
        tokenizer: the corpus's tokenizer, when the configuration names the "small" text tower.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        text: TextTower | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.vision = vision_tower(config.vision)
        self.text = text or text_tower(config.text, tokenizer)
        self.project_volume = nn.Linear(int(self.vision.width), config.embedding)  # type: ignore[arg-type]
        self.project_text = nn.Linear(self.text.width, config.embedding)
        self.bank = KnowledgeBank(config.bank, config.embedding) if config.bank.enabled else None

    @property
    def has_bank(self) -> bool:
        return self.bank is not None

    @property
    def device(self) -> torch.device:
        return self.project_volume.weight.device

    def forward(self, volumes: Tensor, tokens: Tokens) -> tuple[Embeddings, Embeddings]:
        """Volumes (B, 1, X, Y, Z) in [-1, 1] and tokenised texts to their embeddings."""
        return self.embed_volumes(volumes), self.embed_tokens(tokens)

    def embed_volumes(self, volumes: Tensor) -> Embeddings:
        return self._bridge(self.project_volume(self.vision(volumes)))

    def embed_tokens(self, tokens: Tokens) -> Embeddings:
        return self._bridge(self.project_text(self.text(tokens)))

    @torch.no_grad()
    def encode_volumes(self, volumes: Tensor) -> Embeddings:
        """(B, 1, X, Y, Z) in [-1, 1] (HU / 1000) to embeddings, without gradients."""
        return self.embed_volumes(volumes.to(self.device))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Texts (prompts, summaries or reports) to embeddings, without gradients."""
        return self.embed_tokens(self.text.tokenize(texts).to(self.device))

    def _bridge(self, plain: Tensor) -> Embeddings:
        return Embeddings(plain, None if self.bank is None else self.bank(plain))
