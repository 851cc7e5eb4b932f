"""Zero-shot diagnosis: prompts in the words of the summaries, and the score of a volume for a prompt.

v and t are the plain embeddings of a volume and a prompt, v' and t' the bridged ones (through the knowledge bank). BrgSA's
score is (cos(v, t) + cos(v', t)) / 2; the other pairings are the paper's ablations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from brgsa.errors import UserError

if TYPE_CHECKING:
    from brgsa.model import Embeddings

PAIRINGS: tuple[str, ...] = ("mean", "v.t", "v.t'", "v'.t", "v'.t'")

TEMPLATE = "There is {abnormality}."
CT_CLIP_TEMPLATES = ("{abnormality} is present.", "{abnormality} is not present.")


def prompts(names: Sequence[str], template: str = TEMPLATE) -> list[str]:
    """One sentence per abnormality name.

    A name in the middle of a sentence loses its capital ("There is pleural effusion."), unless it begins with an acronym.

    Raises:
        UserError: the template lacks the field {abnormality}, or holds another.
    """
    place = template.find("{abnormality}")
    if place < 0 or set("{}") & set(template.replace("{abnormality}", "")):
        raise UserError(
            f"The prompt template {template!r} must hold the field {{abnormality}} and no other braces.",
            code="prompt-template",
            field="template",
            value=template,
        )
    return [template.replace("{abnormality}", name if place == 0 else _lower_first(name)) for name in names]


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


def _lower_first(name: str) -> str:
    return name if name[1:2].isupper() else name[:1].lower() + name[1:]
