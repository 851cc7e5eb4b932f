"""Which abnormalities a training is supervised on, and the labels of its volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from brgsa import zeroshot
from brgsa.config import LossConfig
from brgsa.errors import UserError, nearest
from brgsa.labels import CT_RATE, CT_RATE_LT
from brgsa.summaries import Status, read_many, understood
from brgsa_platform.config import RunConfig
from brgsa_platform.loading.batches import SplitIndex, split_index
from brgsa_platform.store.store import GIVEN, REPORT, Store

RULE_NAMES = CT_RATE + CT_RATE_LT  # what the rule reader knows
# A report names what it finds: what it does not mention counts as absent, as in CT-RATE's labels. Doubt and past do not tell.
RULES = {Status.PRESENT: 1.0, Status.ABSENT: 0.0, Status.UNCERTAIN: np.nan, Status.HISTORY: np.nan}
UNMENTIONED = 0.0

Labels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SupervisedLabels:
    """The labels that a training learns from.

    Attributes:
        source: "store" or "rules", see `LossConfig.labels`; with what read the store's labels where these are from reports.
        names: the K abnormalities.
        labels: float32 (N, K) of the training's rows: 1 present, 0 absent, NaN unknown.
    """

    source: str
    names: tuple[str, ...]
    labels: Labels

    @property
    def prompts(self) -> list[str]:
        """The zero-shot prompt of each abnormality."""
        return zeroshot.prompts(self.names)


def supervised_labels(store: Store, config: RunConfig) -> SupervisedLabels | None:
    """The labels of the training split's volumes, in the order of `split_index`; None where the term's weight is 0.

    An abnormality is supervised where the split has volumes both with and without it.

    Raises:
        UserError: see `check_supervision`; or the split has no such abnormality.
    """
    check_supervision(store, config.loss)
    loss = config.loss
    if not loss.supervised:
        return None
    rows = split_index(store, "train", config.data.style)
    known = _known_names(store, loss)
    labels = rows.labels if loss.labels == "store" else _by_rules(store, rows)
    wanted = [
        i
        for i, name in enumerate(known)
        if name in (loss.abnormalities or known) and {0.0, 1.0} <= set(np.unique(labels[:, i]).tolist())
    ]
    if not wanted:
        raise UserError(
            f"loss.supervised needs an abnormality that some volumes of the training split of {store.path} have and some have "
            f"not, by their labels (loss.labels={loss.labels}): set loss.supervised=0 or name others in loss.abnormalities.",
            code="no-labels",
            field="loss.labels",
            value=loss.labels,
        )
    source = loss.labels if loss.labels == "rules" or store.label_source == GIVEN else f"store: {store.label_source}"
    return SupervisedLabels(source, tuple(known[i] for i in wanted), labels[:, wanted])


def check_supervision(store: Store, loss: LossConfig) -> None:
    """Refuse a label term that the store cannot serve; reads no report.

    Raises:
        UserError: the store has no labels ("no-labels"), or none for an abnormality that is asked for ("unknown-label").
    """
    if not loss.supervised:
        return
    if loss.labels == "store" and not store.labels:
        raise UserError(
            f"loss.supervised is {loss.supervised:g} and {store.path} has no labels: prepare it with label columns, take them "
            "from the reports with loss.labels=rules, or set loss.supervised=0.",
            code="no-labels",
            field="loss.labels",
            value=loss.labels,
        )
    known = _known_names(store, loss)
    for name in loss.abnormalities:
        if name not in known:
            raise UserError(
                f"loss.abnormalities names {name!r}, of which there are no labels{nearest(name, known)}; there are: "
                f"{', '.join(known)}.",
                code="unknown-label",
                field="loss.abnormalities",
                value=name,
            )


def _known_names(store: Store, loss: LossConfig) -> Sequence[str]:
    return tuple(store.labels) if loss.labels == "store" else RULE_NAMES


def _by_rules(store: Store, rows: SplitIndex) -> Labels:
    """The labels (N, 33) that the rule reader finds in the reports of some rows."""
    by_volume = store.texts(REPORT)
    reports = [by_volume[volume] for volume in rows.volume_ids]
    distinct = tuple(sorted(set(reports)))
    by_report = dict(zip(distinct, _read(distinct), strict=True))
    return np.stack([by_report[report] for report in reports])


@lru_cache(maxsize=1)
def _read(reports: tuple[str, ...]) -> Labels:
    """The labels (R, 33) of distinct reports; kept, since the trials of a search read the same ones."""
    labels = np.full((len(reports), len(RULE_NAMES)), UNMENTIONED, dtype=np.float32)
    for row, (report, findings) in enumerate(zip(reports, read_many(reports), strict=True)):
        if not findings and not understood(report):
            labels[row] = np.nan
        for name, status in findings.items():
            labels[row, RULE_NAMES.index(name)] = RULES[status]
    return labels
