"""A split's volumes and any texts to embeddings, each encoded once: for validation, for evaluation, for the bank's start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from brgsa.model import BrgSA, Embeddings
from brgsa.precision import autocast
from brgsa.volumes.augment import Volume16
from brgsa_platform.loading.batches import SplitIndex
from brgsa_platform.loading.input_buffer import InputBuffer, tensor_batches
from brgsa_platform.loading.loaders import Batches
from brgsa_platform.training.parallel.workers import ALONE, WorkerContext

TEXT_BATCH = 64


@dataclass(frozen=True)
class EncodedSplit:
    """The embeddings of a split's N volumes in the order of its rows, on the CPU in float32.

    Attributes:
        pictures: row → int16 HU (x, y, z) of a few volumes, as the model saw them.
    """

    rows: SplitIndex
    embeddings: Embeddings
    pictures: dict[int, Volume16]


def encode_split(
    model: BrgSA,
    rows: SplitIndex,
    batches: Batches,
    *,
    workers: WorkerContext = ALONE,
    precision: str = "32",
    keep: Collection[int] = (),
    advance: Callable[[int], None] = lambda volumes: None,
) -> EncodedSplit:
    """Encode every volume of a split in evaluation mode; every worker encodes its part, and all of them get the whole.

    All of them use the running statistics of rank 0, which are those that a checkpoint holds.

    Args:
        batches: this worker's part of the split, from `batches.evaluation_batches`.
        precision: see `train.precision`.
        keep: rows whose volumes come back as `pictures`, those of this worker's part.
        advance: called with the number of volumes done.

    Raises:
        UserError: a worker cannot read a volume; raised on all of them.
    """
    model.eval()
    workers.share_buffers(model)
    buffer = InputBuffer(model.device)
    order: list[int] = []
    parts: list[Embeddings] = []
    pictures: dict[int, Volume16] = {}

    def encode_part() -> None:
        with contextlib.closing(tensor_batches(batches, model.device)) as ahead:
            for batch, blocks in ahead:
                with autocast(model.device, precision):
                    parts.append(as_float32(model.encode_volumes(buffer.fill(blocks))).cpu())
                order.extend(batch.rows.tolist())
                pictures.update({row: np.array(ct) for row, ct in batch.volumes() if row in keep})
                advance(len(batch.rows))

    workers.together(encode_part)
    # A split of fewer volumes than workers leaves some of them without any.
    gathered = [part for part in workers.gather((order, parts)) if part[0]]
    everyone = Embeddings.concatenate([embeddings for _, each in gathered for embeddings in each])
    back = torch.from_numpy(np.argsort(np.concatenate([each for each, _ in gathered])))
    return EncodedSplit(rows, select_rows(everyone, back), pictures)


def encode_texts(model: BrgSA, texts: Sequence[str]) -> Embeddings:
    """The embeddings of N texts on the CPU, each distinct text encoded once."""
    distinct = list(dict.fromkeys(texts))
    batches = [distinct[start : start + TEXT_BATCH] for start in range(0, len(distinct), TEXT_BATCH)]
    encoded = Embeddings.concatenate([model.encode_texts(batch).cpu() for batch in batches])
    position = {text: i for i, text in enumerate(distinct)}
    return select_rows(encoded, torch.tensor([position[text] for text in texts]))


def select_rows(embeddings: Embeddings, rows: torch.Tensor | slice) -> Embeddings:
    """The embeddings of some rows, in their order."""
    bridged = embeddings.bridged
    return Embeddings(embeddings.plain[rows], None if bridged is None else bridged[rows])


def as_float32(embeddings: Embeddings) -> Embeddings:
    """The embeddings in float32, whatever autocast made of them."""
    bridged = embeddings.bridged
    return Embeddings(embeddings.plain.float(), None if bridged is None else bridged.float())
