"""How volumes and texts lie to each other: modality gap, separability, retrieval both ways, collapse."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from brgsa.metrics import gap
from brgsa.metrics.retrieval import overlap_at, recall_at
from brgsa.model import Embeddings
from brgsa_platform.evaluation.result import Alignment, Gap
from brgsa_platform.training.encoding import select_rows


@dataclass(frozen=True)
class Paired:
    """N volumes, and the texts of those that have one.

    Attributes:
        volumes: (N, D).
        texts: (N, D), NaN where a volume has no text; None where no volume has.
        codes: (N,) the same for equal texts.
        scans: (N,) code of each volume's scan.
        labels: (N, P).
    """

    volumes: Embeddings
    texts: Embeddings | None
    codes: NDArray[np.int64] = field(repr=False)
    scans: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.float32] = field(repr=False)

    @property
    def written(self) -> torch.Tensor:
        """Rows of the volumes that have a text."""
        if self.texts is None:
            return torch.zeros(0, dtype=torch.long)
        return torch.nonzero(~torch.isnan(self.texts.plain).any(dim=1)).flatten()


def alignment(paired: Paired) -> Alignment:
    """All that can be said of a split's embeddings without prompts."""
    rows = paired.written
    figures = _collapse("volumes", paired.volumes)
    plain = paired.volumes.plain.numpy()
    near = overlap_at(plain, paired.labels, paired.scans)
    figures |= {f"retrieval/volume_to_volume_map_at_{k}": value for k, value in near.items()}
    if paired.texts is None or not len(rows):
        return Alignment(None, figures)
    volumes, texts = select_rows(paired.volumes, rows), select_rows(paired.texts, rows)
    scans, codes = paired.scans[rows.numpy()], paired.codes[rows.numpy()]
    figures |= _collapse("texts", texts) | _retrieval(volumes, texts, codes)
    return Alignment(_gap(volumes, texts), figures | _separability(volumes, texts, scans))


def _gap(volumes: Embeddings, texts: Embeddings) -> Gap:
    before = (volumes.plain.numpy(), texts.plain.numpy())
    plain = Gap(gap.modality_gap(*before), gap.project(*before))
    if volumes.bridged is None or texts.bridged is None:
        return plain
    after = (volumes.bridged.numpy(), texts.bridged.numpy())
    return replace(plain, after=gap.modality_gap(*after), clouds_after=gap.project(*after))


def _separability(volumes: Embeddings, texts: Embeddings, scans: NDArray[np.int64]) -> dict[str, float]:
    found = {"separability/before": gap.separability(volumes.plain.numpy(), texts.plain.numpy(), scans)}
    if volumes.bridged is not None and texts.bridged is not None:
        found["separability/after"] = gap.separability(volumes.bridged.numpy(), texts.bridged.numpy(), scans)
    return found


def _retrieval(volumes: Embeddings, texts: Embeddings, codes: NDArray[np.int64]) -> dict[str, float]:
    """Recall both ways by the score that diagnosis uses: the mean of plain and bridged volume against the plain text."""

    def directions(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(rows, dim=-1)

    seen = directions(volumes.plain)
    if volumes.bridged is not None:
        seen = (seen + directions(volumes.bridged)) / 2
    distinct, first = np.unique(codes, return_index=True)
    read = directions(texts.plain[torch.from_numpy(first)]).numpy()
    there = recall_at(seen.numpy(), read, codes, distinct)
    back = recall_at(read, seen.numpy(), distinct, codes)
    return {
        **{f"retrieval/volume_to_report_at_{k}": value for k, value in there.items()},
        **{f"retrieval/report_to_volume_at_{k}": value for k, value in back.items()},
    }


def _collapse(name: str, cloud: Embeddings) -> dict[str, float]:
    figures = {
        f"collapse/{name}_rank": gap.effective_rank(cloud.plain.numpy()),
        f"collapse/{name}_cosine": gap.mean_cosine(cloud.plain.numpy()),
    }
    if cloud.bridged is not None:
        figures[f"collapse/{name}_bridged_rank"] = gap.effective_rank(cloud.bridged.numpy())
    return figures
