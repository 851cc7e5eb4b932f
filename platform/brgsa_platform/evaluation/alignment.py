"""How volumes and texts lie to each other: modality gap, separability, retrieval both ways, collapse."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from brgsa.metrics import gap
from brgsa.metrics.retrieval import overlap_at, ranks, recall_of
from brgsa.model import Embeddings
from brgsa_platform.evaluation.result import Alignment, Gap, Ranks
from brgsa_platform.training.encoding import select_rows

EXAMPLES = (0.0, 0.25, 0.5, 0.75, 1.0)  # volumes whose own text is found this well, of all from the best to the worst
FIRST = 3  # texts that are kept of an example


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
    found = _retrieval(volumes, texts, codes, rows.numpy())
    figures |= _collapse("texts", texts)
    figures |= {f"retrieval/volume_to_report_at_{k}": value for k, value in recall_of(found.of_text).items()}
    # Equal texts are one query.
    once = found.of_volume[np.unique(codes, return_index=True)[1]]
    figures |= {f"retrieval/report_to_volume_at_{k}": value for k, value in recall_of(once).items()}
    return Alignment(_gap(volumes, texts), figures | _separability(volumes, texts, scans), found)


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


def _retrieval(volumes: Embeddings, texts: Embeddings, codes: NDArray[np.int64], rows: NDArray[np.int64]) -> Ranks:
    """The ranks both ways by the score that diagnosis uses: the mean of plain and bridged volume against the plain text."""

    def directions(of: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(of, dim=-1)

    seen = directions(volumes.plain)
    if volumes.bridged is not None:
        seen = (seen + directions(volumes.bridged)) / 2
    distinct, first, place = np.unique(codes, return_index=True, return_inverse=True)
    read = directions(texts.plain[torch.from_numpy(first)])
    there = ranks(seen.numpy(), read.numpy(), codes, distinct)
    back = ranks(read.numpy(), seen.numpy(), distinct, codes)
    by_rank = np.argsort(there, kind="stable")
    shown = dict.fromkeys(int(by_rank[round(share * (len(there) - 1))]) for share in EXAMPLES)
    nearest = {
        int(rows[i]): rows[first[torch.topk(read @ seen[i], min(FIRST, len(read))).indices.numpy()]].tolist()
        for i in shown
    }
    return Ranks(rows, there, back[place], nearest)


def _collapse(name: str, cloud: Embeddings) -> dict[str, float]:
    figures = {
        f"collapse/{name}_rank": gap.effective_rank(cloud.plain.numpy()),
        f"collapse/{name}_cosine": gap.mean_cosine(cloud.plain.numpy()),
    }
    if cloud.bridged is not None:
        figures[f"collapse/{name}_bridged_rank"] = gap.effective_rank(cloud.bridged.numpy())
    return figures
