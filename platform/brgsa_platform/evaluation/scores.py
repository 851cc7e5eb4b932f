"""The zero-shot scores of an encoded split for some prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brgsa import zeroshot
from brgsa.model import Embeddings
from brgsa_platform.training.encoding import EncodedSplit


def scores_of(
    encoded: EncodedSplit, present: Embeddings, absent: Embeddings | None, pairing: str
) -> NDArray[np.float64]:
    """Scores (N, P) of N volumes for P prompts, contrasted with the prompts of their absence where there are any."""
    if absent is None:
        scores = zeroshot.scores(encoded.embeddings, present, pairing)
    else:
        scores = zeroshot.contrast_scores(encoded.embeddings, present, absent, pairing)
    return scores.numpy().astype(np.float64)
