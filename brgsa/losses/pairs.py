"""Which pairs of a volume and a text of a batch belong together, and which count neither way.

Suffixes name the axes of a tensor: B volumes (and texts) of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """The pairs (i, j) of a batch's volumes and texts; all others are negatives.

    Attributes:
        positive_BB: bool, True where text j is true of volume i; symmetric, True on the diagonal. None: on the diagonal alone.
        ignore_BB: bool, True where the pair is neither a positive nor a negative; symmetric, False on the diagonal.
    """

    positive_BB: Tensor | None
    ignore_BB: Tensor


def pairs_of(scans_B: Tensor, text_codes_B: Tensor | None, same_text: str) -> Pairs:
    """The pairs of a batch.

    Volumes of one scan are never each other's negatives. Two volumes of equal texts are, as `same_text` says, "negatives",
    left out ("ignore"), or "positives".

    Args:
        scans_B, text_codes_B: int64 codes, equal for the same scan and for the same text; without text codes no two texts
            are equal.
    """
    if text_codes_B is None or same_text == "negatives":
        return Pairs(None, not_negatives(scans_B))
    if same_text == "ignore":
        return Pairs(None, not_negatives(scans_B, text_codes_B))
    positive_BB = text_codes_B[:, None] == text_codes_B[None, :]
    return Pairs(positive_BB, not_negatives(scans_B) & ~positive_BB)


def not_negatives(*codes_B: Tensor) -> Tensor:
    """Pairs i != j that share a code (int64), as volumes of one scan or of one text do: bool (B, B)."""
    same_BB = torch.zeros(len(codes_B[0]), len(codes_B[0]), dtype=torch.bool, device=codes_B[0].device)
    for code_B in codes_B:
        same_BB |= code_B[:, None] == code_B[None, :]
    return same_BB.fill_diagonal_(False)
