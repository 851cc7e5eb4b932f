"""A split's volumes and any texts to embeddings: once each, in the driver, whatever the number of prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from brgsa import zeroshot
from brgsa.model import BrgSA, Embeddings
from brgsa_platform.training import batches as datasets

TEXT_BATCH = 64


@dataclass(frozen=True)
class EncodedSplit:
    """A split's volumes in the order of its rows, and a few of them as the model saw them (row → (x, y, z) HU)."""

    rows: datasets.SplitIndex
    embeddings: Embeddings
    pictures: dict[int, NDArray[np.int16]]


def encode_split(
    model: BrgSA,
    rows: datasets.SplitIndex,
    crop: tuple[int, int, int],
    batch_size: int,
    advance: Callable[..., None],
    keep: Collection[int] = (),
) -> EncodedSplit:
    """Every volume of `rows`, centre-cropped to `crop` voxels; needs a Ray session.

    advance: called with the number of volumes done. keep: rows whose crops come back as `pictures`.
    """
    order: list[int] = []
    parts: list[Embeddings] = []
    pictures: dict[int, NDArray[np.int16]] = {}
    for batch in datasets.evaluation_batches(datasets.BatchSource(rows, crop), batch_size=batch_size):
        volumes = torch.from_numpy(np.array(batch.ct)).to(model.device).unsqueeze(1).float()
        parts.append(model.encode_volumes(volumes.div_(1000.0).clamp_(-1.0, 1.0)).cpu())
        found = batch.rows.tolist()
        pictures |= {row: np.array(ct) for row, ct in zip(found, batch.ct, strict=True) if row in keep}
        order += found
        advance(len(found))
    back = torch.from_numpy(np.argsort(order))
    return EncodedSplit(rows, select_rows(Embeddings.concatenate(parts), back), pictures)


def encode_texts(model: BrgSA, texts: Sequence[str]) -> Embeddings:
    """Embeddings of the texts, each distinct one encoded once."""
    distinct = list(dict.fromkeys(texts))
    batches = [distinct[start : start + TEXT_BATCH] for start in range(0, len(distinct), TEXT_BATCH)]
    encoded = Embeddings.concatenate([model.encode_texts(batch).cpu() for batch in batches])
    place = {text: i for i, text in enumerate(distinct)}
    return select_rows(encoded, torch.tensor([place[text] for text in texts]))


def select_rows(embeddings: Embeddings, rows: torch.Tensor) -> Embeddings:
    """The embeddings of some rows, in their order."""
    bridged = embeddings.bridged
    return Embeddings(embeddings.plain[rows], None if bridged is None else bridged[rows])


def scores_of(
    encoded: EncodedSplit, present: Embeddings, absent: Embeddings | None, pairing: str
) -> NDArray[np.float64]:
    """Scores (N, P), contrasted with the absence's prompts where there are any."""
    if absent is None:
        found = zeroshot.scores(encoded.embeddings, present, pairing)
    else:
        found = zeroshot.contrast_scores(encoded.embeddings, present, absent, pairing)
    return found.numpy().astype(np.float64)
