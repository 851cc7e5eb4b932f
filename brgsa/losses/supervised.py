"""The label-supervised term: which abnormalities a volume shows, asked by their zero-shot prompts.

Suffixes name the axes of a tensor: B volumes, K abnormalities, D embedding width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from brgsa.model import Embeddings
from brgsa.zeroshot import scores


class Supervision(NamedTuple):
    """What the volumes of a batch are supervised by.

    Attributes:
        prompts: embeddings of the K abnormalities' prompts, float (K, D), with gradient.
        labels_BK: float, 1 present, 0 absent, NaN unknown.
    """

    prompts: Embeddings
    labels_BK: Tensor


def supervised_loss(
    volumes: Embeddings, supervision: Supervision, temperature: float | Tensor, bias: float | Tensor = 0.0
) -> Tensor:
    """Binary cross-entropy of the prompt scores, averaged over the known labels: a scalar, 0 where none is known.

        -1/N Σ_known [y log σ(l) + (1 - y) log σ(-l)],   l = s/temperature + bias

    s is the score of "There is …" that evaluation and prediction read ((cos(v, t) + cos(v', t)) / 2, see
    `brgsa.zeroshot.scores`). The contrast with a prompt of its absence is not taken: it would train a difference that they
    do not read, towards a sentence that summaries of what is present never hold.

    Args:
        volumes: embeddings of B volumes, float (B, D).
    """
    logits_BK = scores(volumes, supervision.prompts) / temperature + bias
    known_BK = ~supervision.labels_BK.isnan()
    of_labels_BK = F.binary_cross_entropy_with_logits(
        logits_BK, supervision.labels_BK.nan_to_num(0.0).to(logits_BK.dtype), reduction="none"
    )
    return of_labels_BK.masked_fill(~known_BK, 0.0).sum() / known_BK.sum().clamp(min=1)
