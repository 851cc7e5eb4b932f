"""The contrasts of a batch's volumes with its texts: InfoNCE, one softmax a row, and the sigmoid loss, one decision a pair.

Suffixes name the axes of a tensor: B volumes (and texts) of the batch, D embedding width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, arange, eye

from brgsa.losses.pairs import Pairs


def info_nce(
    a_BD: Tensor,
    b_BD: Tensor,
    temperature: float | Tensor,
    ignore_BB: Tensor | None = None,
    positive_BB: Tensor | None = None,
) -> Tensor:
    """CE(cos(a, b)/temperature, targets) + CE(cos(b, a)/temperature, targets): the sum of both directions, a scalar.

    The target of row i is row i alone, or, with P(i) = {j: positive_BB[i, j]}, uniform over P(i):

        -1/B Σ_i 1/|P(i)| Σ_{p in P(i)} log (exp(l_ip) / Σ_k exp(l_ik)),   l = cos/temperature

    as in SupCon's L_out (Khosla et al. 2020, arXiv 2004.11362) and UniCL (Yang et al. 2022, arXiv 2204.03610).

    Args:
        a_BD, b_BD: float embeddings; row i of one belongs to row i of the other.
        ignore_BB, positive_BB: see `pairs.Pairs`; an ignored k is in no sum.
    """
    logits_BB = _cosines(a_BD, b_BD) / temperature
    if ignore_BB is not None:
        logits_BB = logits_BB.masked_fill(ignore_BB, float("-inf"))
    if positive_BB is None:
        target_B = arange(len(logits_BB), device=logits_BB.device)
        return F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)
    return _towards_all(logits_BB, positive_BB) + _towards_all(logits_BB.T, positive_BB)


def sigmoid_loss(a_BD: Tensor, b_BD: Tensor, temperature: float | Tensor, bias: float | Tensor, pairs: Pairs) -> Tensor:
    """-1/B Σ_ij log σ(z_ij (cos(a_i, b_j)/temperature + bias)), z = 1 for a positive pair and -1 for a negative, a scalar.

    SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343); ignored pairs are in no sum. It is the same in both directions.

    Args:
        a_BD, b_BD: float embeddings; row i of one belongs to row i of the other.
    """
    logits_BB = _cosines(a_BD, b_BD) / temperature + bias
    positive_BB = pairs.positive_BB
    if positive_BB is None:
        positive_BB = eye(len(logits_BB), dtype=pairs.ignore_BB.dtype, device=logits_BB.device)
    of_pairs_BB = -F.logsigmoid(logits_BB.where(positive_BB, -logits_BB))
    return of_pairs_BB.masked_fill(pairs.ignore_BB, 0.0).sum() / len(logits_BB)


def _towards_all(logits_BB: Tensor, positive_BB: Tensor) -> Tensor:
    # An ignored pair's -inf must not meet its target of 0: their product is NaN.
    log_p_BB = logits_BB.log_softmax(dim=1).masked_fill(~positive_BB, 0.0)
    return -(log_p_BB.sum(dim=1) / positive_BB.sum(dim=1)).mean()


def _cosines(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    return F.normalize(a_BD, dim=-1) @ F.normalize(b_BD, dim=-1).T
