"""BrgSA: two towers, one shared space, and the bank through which both modalities are re-expressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from brgsa.bank import KnowledgeBank
from brgsa.config import ModelConfig
from brgsa.temperature import LearnedScale
from brgsa.text import TextTower, Tokens, text_tower
from brgsa.vision import vision_tower

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Embeddings(NamedTuple):
    """The embeddings of one modality, not normalised.

    Attributes:
        plain: v or t, float (B, D).
        bridged: v' or t', float (B, D); None for a model without a bank.
    """

    plain: Tensor
    bridged: Tensor | None

    def cpu(self) -> Embeddings:
        """The same embeddings in the CPU's memory."""
        return Embeddings(self.plain.cpu(), None if self.bridged is None else self.bridged.cpu())

    def row(self, number: int) -> Embeddings:
        """One of them, as a batch of one."""
        bridged = None if self.bridged is None else self.bridged[number : number + 1]
        return Embeddings(self.plain[number : number + 1], bridged)

    @staticmethod
    def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
        """Several batches of one model as one, row after row."""
        bridged = [part.bridged for part in parts if part.bridged is not None]
        return Embeddings(torch.cat([part.plain for part in parts]), torch.cat(bridged) if bridged else None)


def default_device() -> torch.device:
    """Torch's first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class BrgSA(nn.Module):
    """The model of the paper (arXiv 2501.03565); with `config.bank.enabled` false it is the plain CLIP baseline.

    Args:
        text: a text tower that exists already (a saved one); by default the configuration's is made.
        tokenizer: the corpus's tokenizer, which the "small" text tower needs.

    Attributes:
        scale: the temperature and the bias that a training learns with the towers; scores do not depend on them.

    Raises:
        UserError: the text tower cannot be made (see `brgsa.text.text_tower`).
    """

    scale: LearnedScale | None

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
        self.scale = None

    @property
    def has_bank(self) -> bool:
        """Whether there are bridged embeddings; False for the CLIP baseline."""
        return self.bank is not None

    @property
    def device(self) -> torch.device:
        """The device of the weights, where the inputs must be as well."""
        return self.project_volume.weight.device

    def forward(self, volumes: Tensor, tokens: Tokens) -> tuple[Embeddings, Embeddings]:
        """The embeddings of a batch's volumes and of its texts; the arguments are those of the two methods below."""
        return self.embed_volumes(volumes), self.embed_tokens(tokens)

    def embed_volumes(self, volumes: Tensor) -> Embeddings:
        """The embeddings of volumes, with gradients.

        Args:
            volumes: float (B, 1, X, Y, Z) in [-1, 1] (HU / 1000), on the model's device.
        """
        return self._bridge(self.project_volume(self.vision(volumes)))

    def embed_tokens(self, tokens: Tokens) -> Embeddings:
        """The embeddings of B tokenised texts, with gradients; the tokens are on the model's device."""
        return self._bridge(self.project_text(self.text(tokens)))

    def _bridge(self, plain: Tensor) -> Embeddings:
        return Embeddings(plain, None if self.bank is None else self.bank(plain))

    @torch.no_grad()
    def encode_volumes(self, volumes: Tensor) -> Embeddings:
        """`embed_volumes` without gradients, of volumes on any device."""
        return self.embed_volumes(volumes.to(self.device))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """The embeddings of B prompts, summaries or reports as written, without gradients."""
        return self.embed_tokens(self.text.tokenize(texts).to(self.device))
