"""The training loss: contrasts over the batch of all workers, the bank's reconstruction error, and labels where asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from brgsa.config import LossConfig
from brgsa.losses.contrasts import info_nce, sigmoid_loss
from brgsa.losses.gathering import gather, gather_embeddings
from brgsa.losses.pairs import pairs_of
from brgsa.losses.supervised import Supervision, supervised_loss
from brgsa.model import Embeddings
from brgsa.temperature import LearnedScale


class Losses(NamedTuple):
    """Scalars: the weighted total, with gradient, and its unweighted parts, without.

    Bridged and reconstruction are 0 without a bank, supervised without labels.
    """

    total: Tensor
    plain: Tensor
    bridged: Tensor
    reconstruction: Tensor
    supervised: Tensor


def brgsa_loss(
    volumes: Embeddings,
    texts: Embeddings,
    scans_B: Tensor,
    config: LossConfig,
    text_codes_B: Tensor | None = None,
    *,
    local: bool = False,
    learned: LearnedScale | None = None,
    supervision: Supervision | None = None,
) -> Losses:
    """L = plain·C(v, t) + bridged·C(v', t') + reconstruction·(mse(t', t) + mse(v', v)) + supervised·BCE(labels).

    C is `config.contrast`, InfoNCE or the sigmoid loss (see `contrasts`); the last term is `supervised.supervised_loss`,
    whose logits have the bias of the sigmoid loss, and none beside InfoNCE.

    In a process group every worker calls it with its own part of the batch, all parts of one size. The embeddings are
    gathered with their gradients, so that the loss and (after DDP's averaging) the gradients are those of one process on
    the whole batch.

    Args:
        volumes, texts: embeddings of B pairs, row by row, float (B, D).
        scans_B: int64 code of each volume's scan; volumes of one scan are never each other's negatives.
        text_codes_B: int64 code of each volume's text, not read when `config.same_text` is "negatives".
        local: use this process's rows alone, even in a process group (when each worker validates all volumes).
        learned: the temperature and the bias that are learned; by default the configuration's are used.
        supervision: labels of the B volumes, and the prompts as this worker encodes them.

    Raises:
        ValueError: `config.same_text` is not "negatives" and there are no text codes.
    """
    if config.same_text != "negatives" and text_codes_B is None:
        raise ValueError(f"same_text={config.same_text!r} needs text_codes_B")
    all_volumes, all_texts = (volumes, texts) if local else (gather_embeddings(volumes), gather_embeddings(texts))
    of_all_workers = (lambda x: x) if local else gather
    codes_B = None if config.same_text == "negatives" or text_codes_B is None else of_all_workers(text_codes_B)
    pairs = pairs_of(of_all_workers(scans_B), codes_B, config.same_text)
    temperature, bias = (config.temperature, config.bias) if learned is None else learned.values(config)

    def contrast(a_BD: Tensor, b_BD: Tensor) -> Tensor:
        if config.contrast == "sigmoid":
            return sigmoid_loss(a_BD, b_BD, temperature, bias, pairs)
        return info_nce(a_BD, b_BD, temperature, pairs.ignore_BB, pairs.positive_BB)

    plain = contrast(all_volumes.plain, all_texts.plain)
    bridged = reconstruction = supervised = plain.new_zeros(())
    if all_volumes.bridged is not None and all_texts.bridged is not None:
        bridged = contrast(all_volumes.bridged, all_texts.bridged)
    if volumes.bridged is not None and texts.bridged is not None:
        reconstruction = F.mse_loss(texts.bridged, texts.plain) + F.mse_loss(volumes.bridged, volumes.plain)
    if supervision is not None:
        of_all = Supervision(supervision.prompts, of_all_workers(supervision.labels_BK))
        supervised = supervised_loss(all_volumes, of_all, temperature, bias if config.contrast == "sigmoid" else 0.0)
    total = config.plain * plain + config.bridged * bridged + config.reconstruction * reconstruction
    if supervision is not None:
        total = total + config.supervised * supervised
    return Losses(total, *(part.detach() for part in (plain, bridged, reconstruction, supervised)))
