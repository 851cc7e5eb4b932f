"""How good a model is on the validation split: zero-shot AUROC, and the training loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from brgsa import checkpoint, losses, metrics, zeroshot
from brgsa.config import LossConfig
from brgsa.errors import UserError
from brgsa.model import BrgSA, Embeddings
from brgsa_platform.config import RunConfig
from brgsa_platform.loading.batches import SplitIndex, rare_labels, split_index
from brgsa_platform.loading.items import items_of
from brgsa_platform.loading.order import Ints, apart_batches
from brgsa_platform.loading.random_streams import Purpose, stream
from brgsa_platform.loading.supervision import SupervisedLabels
from brgsa_platform.loading.texts import codes_of, drawn_text, written_texts
from brgsa_platform.store.store import Store
from brgsa_platform.training.encoding import encode_texts, select_rows


class Measured(NamedTuple):
    """What validation gives.

    Attributes:
        metrics: `val/loss`, and where they can be measured `val/auroc`, `val/auroc_common`, `val/auroc_rare`; of a training
            with labels also `val/auroc_unsupervised`, over the abnormalities on which it is not supervised.
        reference_scores: prompt → the sorted scores of the split's volumes, by which a new volume's score is ranked.
    """

    metrics: dict[str, float]
    reference_scores: dict[str, list[float]]


@dataclass(frozen=True)
class Validation:
    """The N volumes of the validation split, and what their embeddings are measured against.

    AUROC is that of all volumes. The loss is that of a training's batches: one volume of each item, and drawn sentences. They
    are drawn by the run's seed once, so that epochs are compared on the same ones.

    Attributes:
        labels: the P label names of the store.
        rare: bool (P,), the labels that are rare in the training split.
        texts: the N texts, their sentences drawn.
        batches: rows of each batch of the loss.
        supervised: names of the abnormalities on which the training is supervised.
    """

    rows: SplitIndex
    labels: tuple[str, ...]
    rare: npt.NDArray[np.bool_]
    texts: list[str]
    batches: list[Ints]
    supervised: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: Store, config: RunConfig, supervised: SupervisedLabels | None = None) -> Validation | None:
        """The validation split of a store with its texts of the run's style; None where the store has none.

        The training loss then chooses the best epoch.
        """
        try:
            rows = split_index(store, "validation")
        except UserError as error:
            if error.code != "empty-split":
                raise
            return None
        data, items, drawing = config.data, items_of(store, rows, config), stream(Purpose.VALIDATION, config.train.seed)
        chosen = items.draw(drawing)
        texts = [drawn_text(text, data, drawing, drawing) for text in written_texts(store, data.style, rows)]
        batches = [chosen[batch] for batch in apart_batches(items.apart, config.train.batch_size)]
        understood = np.array([bool(text.strip()) for text in texts])
        if understood.any():  # a volume without a text has no part in the loss
            batches = [rows_of for batch in batches if len(rows_of := batch[understood[batch]])]
        names = () if supervised is None else supervised.names
        rare = rare_labels(split_index(store, "train"))  # of all its scans, as in an evaluation
        return cls(rows, tuple(store.labels), rare, texts, batches, names)

    def measure(self, model: BrgSA, volumes: Embeddings, loss: LossConfig) -> Measured:
        """Measure a model by its embeddings of the split's volumes, float32 (N, D) on the CPU in the order of the rows."""
        prompts = zeroshot.prompts(self.labels)
        scores = (
            zeroshot.scores(volumes, encode_texts(model, prompts)).numpy() if prompts else np.empty((len(self.rows), 0))
        )
        measured = {"val/loss": self._loss(volumes, encode_texts(model, self.texts), loss)}
        reference_scores = dict(zip(prompts, np.sort(scores.T, axis=1).round(6).tolist(), strict=True))
        return Measured(measured | self._aurocs(scores), reference_scores)

    def _aurocs(self, scores: npt.NDArray[np.floating]) -> dict[str, float]:
        """Means over the abnormalities that are both present and absent in the split."""
        labels = self.rows.labels
        aurocs = {
            i: metrics.auroc(labels[:, i], scores[:, i])
            for i in range(len(self.labels))
            if 0 < np.nansum(labels[:, i]) < np.sum(~np.isnan(labels[:, i]))
        }
        groups = {
            "val/auroc": list(aurocs.values()),
            "val/auroc_common": [auroc for i, auroc in aurocs.items() if not self.rare[i]],
            "val/auroc_rare": [auroc for i, auroc in aurocs.items() if self.rare[i]],
        }
        if self.supervised:
            run = {"supervised": self.supervised}
            unseen = [auroc for i, auroc in aurocs.items() if not checkpoint.is_supervised(run, self.labels[i])]
            groups["val/auroc_unsupervised"] = unseen
        return {name: float(np.mean(values)) for name, values in groups.items() if values}

    def _loss(self, volumes: Embeddings, texts: Embeddings, config: LossConfig) -> float:
        """The training loss over the batches, but for a term of labels."""
        scans, codes = torch.from_numpy(self.rows.scans), torch.from_numpy(codes_of(self.texts))
        totals, weights = [], []
        for rows in self.batches:
            part = torch.from_numpy(rows)
            batch = select_rows(volumes, part), select_rows(texts, part)
            totals.append(float(losses.brgsa_loss(*batch, scans[part], config, codes[part], local=True).total))
            weights.append(len(rows))
        return float(np.average(totals, weights=weights))
