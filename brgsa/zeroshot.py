"""Zero-shot diagnosis: prompts in the words of the summaries, and the score of a volume for a prompt.

v and t are a volume's and a prompt's plain embeddings, v' and t' the same through the knowledge bank (CMKI). BrgSA's
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
NEGATED_TEMPLATE = "There is no {abnormality}."
CT_CLIP_TEMPLATES = ("{abnormality} is present.", "{abnormality} is not present.")


def prompts(names: Sequence[str], template: str = TEMPLATE) -> list[str]:
    """One sentence per abnormality name.

    A name in the middle of a sentence loses its capital ("There is pleural effusion."), unless it is an acronym's.

    Raises UserError if the template lacks the field {abnormality} or holds another.
    """
    place = template.find("{abnormality}")
    if place < 0 or set("{}") & set(template.replace("{abnormality}", "")):
        raise UserError(f"The prompt template {template!r} must hold the field {{abnormality}} and no other braces.")
    return [template.replace("{abnormality}", name if place == 0 else _lower_first(name)) for name in names]


def scores(volumes: Embeddings, texts: Embeddings, pairing: str = "mean") -> Tensor:
    """Score every volume for every prompt: (N, P), a cosine or the mean of two, in [-1, 1].

    volumes: plain and bridged (N, D); texts: plain and bridged (P, D). "mean" is (cos(v, t) + cos(v', t)) / 2; for a
    model without a bank (bridged None: the CLIP baseline) it is cos(v, t).

    Raises UserError for an unknown pairing, and for a bridged pairing of a model without a bank.
    """
    if pairing not in PAIRINGS:
        raise UserError(f"Unknown pairing {pairing!r}: choose one of {', '.join(PAIRINGS)}.")
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
    """CT-CLIP's variant: the probability (N, P) of "is present" in a softmax over the pair present / not present.

    present, absent: the two prompts of each abnormality, row by row (P, D). The inverse temperature, the model's own by
    default in BrgSA's training, spreads the probabilities and leaves their order over volumes as it is.
    """
    pair = torch.stack([scores(volumes, present, pairing), scores(volumes, absent, pairing)])
    return torch.softmax(inverse_temperature * pair, dim=0)[0]


def _side(embeddings: Embeddings, name: str, pairing: str) -> Tensor:
    chosen = embeddings.bridged if name.endswith("'") else embeddings.plain
    if chosen is None:
        raise UserError(
            f"Pairing {pairing!r} needs a knowledge bank, which this model was built without: use v.t or mean."
        )
    return chosen


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return functional.normalize(a, dim=-1) @ functional.normalize(b, dim=-1).T


def _lower_first(name: str) -> str:
    return name if name[1:2].isupper() else name[:1].lower() + name[1:]
