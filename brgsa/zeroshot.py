"""Zero-shot diagnosis: prompts in the words of the summaries, and the score of a volume for a prompt.

v and t are the plain embeddings of a volume and a prompt, v' and t' the bridged ones (through the knowledge bank). BrgSA's
score is (cos(v, t) + cos(v', t)) / 2; the other pairings are the paper's ablations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from brgsa.errors import UserError
from brgsa.protocols.prompts import TEMPLATE, prompts
from brgsa.protocols.protocol import Prompts

if TYPE_CHECKING:
    from brgsa.model import Embeddings

__all__ = ["PAIRINGS", "TEMPLATE", "Scorer", "contrast_scores", "prompts", "scores"]

PAIRINGS: tuple[str, ...] = ("mean", "v.t", "v.t'", "v'.t", "v'.t'")


@dataclass(frozen=True)
class Scorer:
    """Scores volumes for abnormalities as a protocol asks for them. The prompts are encoded once.

    Attributes:
        present: embeddings (P, D) of the prompts of each member of the ensemble; one where embeddings are averaged.
        absent: as many of their absence; empty without a contrast.
        pairing: one of `PAIRINGS`.
        inverse_temperature: of the softmax over a pair.
    """

    present: Sequence[Embeddings]
    absent: Sequence[Embeddings]
    pairing: str
    inverse_temperature: float

    @classmethod
    def of(
        cls, names: Sequence[str], asked: Prompts, encode: Callable[[list[str]], Embeddings], pairing: str = "mean"
    ) -> Scorer:
        """Encode all prompts for P names.

        Args:
            encode: N texts to their embeddings (N, D).
        """

        def encoded(templates: Sequence[str]) -> list[Embeddings]:
            most = max((len(asked.synonyms.get(name, ())) for name in names), default=0)
            members = []
            for template in templates:
                for i in range(most + 1):
                    # A name with fewer synonyms than another repeats its own, so that each of its words weighs alike.
                    words = [(name, *asked.synonyms.get(name, ())) for name in names]
                    members.append(encode(prompts([own[i % len(own)] for own in words], template)))
            return [_mean_direction(members)] if asked.ensemble == "embeddings" and len(members) > 1 else members

        return cls(encoded(asked.templates), encoded(asked.contrast), pairing, asked.inverse_temperature)

    def __call__(self, volumes: Embeddings) -> Tensor:
        """The scores, float (N, P), of N volumes; see `scores` and `contrast_scores` for what they raise."""
        if not self.absent:
            return torch.stack([scores(volumes, texts, self.pairing) for texts in self.present]).mean(dim=0)
        pairs = zip(self.present, self.absent, strict=True)
        temperature = self.inverse_temperature
        each = [contrast_scores(volumes, yes, no, self.pairing, temperature) for yes, no in pairs]
        return torch.stack(each).mean(dim=0)


def _mean_direction(members: Sequence[Embeddings]) -> Embeddings:
    """The mean of normalised embeddings, plain and bridged apart."""
    from brgsa.model import Embeddings

    def mean(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([functional.normalize(part, dim=-1) for part in parts]).mean(dim=0)

    bridged = [member.bridged for member in members if member.bridged is not None]
    return Embeddings(mean([member.plain for member in members]), mean(bridged) if bridged else None)


def scores(volumes: Embeddings, texts: Embeddings, pairing: str = "mean") -> Tensor:
    """The score of every volume for every prompt: a cosine, or the mean of two.

    Args:
        volumes: embeddings of N volumes, float (N, D).
        texts: embeddings of P prompts, float (P, D).
        pairing: one of `PAIRINGS`. "mean" is (cos(v, t) + cos(v', t)) / 2; for a model without a bank (the CLIP
            baseline) it is cos(v, t).

    Returns:
        float (N, P) in [-1, 1].

    Raises:
        UserError: the pairing is unknown, or is a bridged one and the model has no bank.
    """
    if pairing not in PAIRINGS:
        raise UserError(
            f"Unknown pairing {pairing!r}: choose one of {', '.join(PAIRINGS)}.",
            code="unknown-pairing",
            field="pairing",
            value=pairing,
        )
    if pairing == "mean":
        plain = _cosine(volumes.plain, texts.plain)
        return plain if volumes.bridged is None else (plain + _cosine(volumes.bridged, texts.plain)) / 2
    image, text = pairing.split(".")
    return _cosine(_side(volumes, image, pairing), _side(texts, text, pairing))


def contrast_scores(
    volumes: Embeddings,
    present: Embeddings,
    absent: Embeddings,
    pairing: str = "mean",
    inverse_temperature: float = 10.0,
) -> Tensor:
    """CT-CLIP's variant of `scores`: the probability of "is present" in a softmax over the pair present / not present.

    Args:
        volumes: embeddings of N volumes, float (N, D).
        present, absent: embeddings of the two prompts of each of P abnormalities, row by row, float (P, D).
        inverse_temperature: spreads the probabilities and leaves their order over the volumes as it is; by default that of
            BrgSA's training.

    Returns:
        float (N, P) in [0, 1].

    Raises:
        UserError: as in `scores`.
    """
    pair = torch.stack([scores(volumes, present, pairing), scores(volumes, absent, pairing)])
    return torch.softmax(inverse_temperature * pair, dim=0)[0]


def _side(embeddings: Embeddings, name: str, pairing: str) -> Tensor:
    chosen = embeddings.bridged if name.endswith("'") else embeddings.plain
    if chosen is None:
        raise UserError(
            f"Pairing {pairing!r} needs a knowledge bank, and this model has none: use v.t or mean.",
            code="pairing-needs-bank",
            field="pairing",
            value=pairing,
        )
    return chosen


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return functional.normalize(a, dim=-1) @ functional.normalize(b, dim=-1).T
