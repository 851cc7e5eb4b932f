"""From labels and scores to an abnormality a row and means over them: arrays in, plain data out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brgsa import metrics
from brgsa.metrics import Bootstrap, Interval
from brgsa.metrics.calibration import Reliability, Temperature
from brgsa.metrics.gap import Clouds
from brgsa.metrics.top_k import top_k
from brgsa.protocols import Protocol
from brgsa_platform.loading.batches import RARE_BELOW

Floats = NDArray[np.float64]

METRICS = metrics.RANKING + metrics.AT_THRESHOLD
# Shares of the training scans, from which and below which an abnormality is of the head or the tail.
HEAD_FROM, TAIL_BELOW = 0.10, 0.01
FREQUENCIES = ("head", "medium", "tail")
GROUPS = ("macro", "common", "rare", *FREQUENCIES)
UNSUPERVISED = "unsupervised"  # one more group, where the model was trained on labels of some abnormalities
FEW = 5  # with fewer positives or negatives, a bootstrap draws the same few volumes again and again
UNMEASURED = Interval(*[math.nan] * 5)


@dataclass(frozen=True)
class Abnormality:
    """One row of the table.

    Attributes:
        positives, negatives: observations whose label is known to be 1 or 0.
        threshold: scores above it count as positive; NaN where none could be chosen.
        figures: metric → its value and interval, NaN where it is not measured.
        prevalence: share of the training scans that have it; NaN where that is not known.
        supervised: whether the model was trained on its labels; its figures are then not zero-shot.
    """

    name: str
    rare: bool
    positives: int
    negatives: int
    threshold: float
    figures: dict[str, Interval]
    prevalence: float = math.nan
    supervised: bool = False

    @property
    def measured(self) -> bool:
        """Whether it can be ranked: there are observations with it and others without it."""
        return self.positives > 0 and self.negatives > 0

    @property
    def frequency(self) -> str:
        """One of `FREQUENCIES`; empty where its prevalence is not known."""
        if math.isnan(self.prevalence):
            return ""
        return "head" if self.prevalence >= HEAD_FROM else "tail" if self.prevalence < TAIL_BELOW else "medium"

    def belongs_to(self, group: str) -> bool:
        """Whether it is one of a group."""
        if group in FREQUENCIES:
            return self.frequency == group
        return not self.supervised if group == UNSUPERVISED else group == "macro" or self.rare == (group == "rare")


@dataclass(frozen=True)
class Gap:
    """Modality gap between volumes and their texts, and both clouds in the plane; after CMKI only where there is a bank."""

    before: float
    clouds_before: Clouds
    after: float | None = None
    clouds_after: Clouds | None = None


@dataclass(frozen=True)
class Ranks:
    """Where retrieval finds what belongs together, for the M volumes that have a text.

    Attributes:
        rows: (M,) which of the split's volumes they are.
        of_text: (M,) how many other texts come before a volume's own.
        of_volume: (M,) how many other volumes come before one with a text's own.
        first: row of a volume that serves as an example → rows of the volumes whose texts come first for it.
    """

    rows: NDArray[np.int64]
    of_text: NDArray[np.int64]
    of_volume: NDArray[np.int64]
    first: dict[int, list[int]]


@dataclass(frozen=True)
class Alignment:
    """How a split's embeddings lie: the gap between volumes and texts, and figures of retrieval, separability and collapse.

    Attributes:
        gap: None where no volume has a text.
        figures: name with its group, as "retrieval/report_to_volume_at_5" → value.
        ranks: of retrieval; None where no volume has a text.
    """

    gap: Gap | None
    figures: dict[str, float]
    ranks: Ranks | None = None


@dataclass(frozen=True)
class Calibration:
    """Whether the probabilities that scalings make of the scores hold on the observations under test.

    Attributes:
        errors: scaling → expected calibration error (P,), NaN where it cannot be fitted.
        scales: position of an abnormality → its temperature.
        curves: scaling → reliability over all abnormalities together.
    """

    errors: dict[str, Floats]
    scales: dict[int, Temperature]
    curves: dict[str, Reliability]

    def mean_error(self, scaling: str) -> float:
        """The mean over the abnormalities with a scaling."""
        return float(np.nanmean(self.errors[scaling]))


@dataclass(frozen=True)
class Observations:
    """What was measured: U observations, as the protocol's unit makes them, and P abnormalities.

    Attributes:
        ids: of the volume that an observation is, or of the first that it is made of.
        labels, scores: (U, P).
        groups: (U,) what the bootstrap draws as one; None for single observations.
    """

    ids: list[str]
    labels: Floats
    scores: Floats
    groups: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Gain:
    """What the first model gains over the second in AUROC.

    Attributes:
        first, second: both figures, on the volumes that both have scored.
        gain: the first less the second, with the interval of the paired draws.
        p: of no difference, two-sided, by the paired draws.
        p_holm: the same, corrected for the number of abnormalities.
        p_delong, p_delong_holm: by DeLong's test, which takes observations for independent; NaN for a mean.
    """

    first: float
    second: float
    gain: Interval
    p: float
    p_holm: float = float("nan")
    p_delong: float = float("nan")
    p_delong_holm: float = float("nan")


@dataclass(frozen=True)
class Comparison:
    """The first model beside a second.

    Attributes:
        name: of the second.
        volumes: that both have scored.
        abnormalities: name → gain, of those that both have scored and that can be measured.
        means: group → gain of its mean.
        notes: what was left out.
    """

    name: str
    volumes: int
    abnormalities: dict[str, Gain]
    means: dict[str, Gain]
    notes: list[str]


@dataclass(frozen=True)
class EvaluationResult:
    """The table and how it came about.

    Attributes:
        abnormalities: one row each, in label order.
        means: "macro" (over all measured abnormalities), "common", "rare", "head", "medium" and "tail" → metric → interval; of
            a model that was trained on labels also "unsupervised", over the abnormalities that it knows from texts alone.
        bootstrap: the draws, for the interval of a difference to another result (see `gain`).
        notes: sentences on what was left out, or fitted where it should not be.
        about: checkpoint, data fingerprint, split, protocol and the other choices, as plain JSON values.
        observed: what was measured.
        top: strict Recall@1 and Precision@3 over all abnormalities together.
        calibration: None without a validation split to fit it on.
        alignment: of a checkpoint's embeddings; None for a file of scores.
        comparison: with another model.
        origin: what made it, see `outputs.origin`.
        files: kind of file → path of what was written.
        run_id: its MLflow run.
    """

    abnormalities: list[Abnormality]
    means: dict[str, dict[str, Interval]]
    bootstrap: Bootstrap
    notes: list[str]
    about: dict[str, Any] = field(default_factory=dict)
    observed: Observations | None = None
    top: dict[str, Interval] = field(default_factory=dict)
    calibration: Calibration | None = None
    alignment: Alignment | None = None
    comparison: Comparison | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    run_id: str = ""

    def columns(self, group: str = "macro") -> list[int]:
        """Positions of a group's measured abnormalities."""
        return [i for i, row in enumerate(self.abnormalities) if row.measured and row.belongs_to(group)]

    @property
    def gap(self) -> Gap | None:
        """The modality gap, where it was measured."""
        return None if self.alignment is None else self.alignment.gap

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that have a mean."""
        return (*GROUPS, UNSUPERVISED) if any(row.supervised for row in self.abnormalities) else GROUPS


def tabulate(
    names: Sequence[str],
    labels: NDArray[Any],
    scores: NDArray[Any],
    protocol: Protocol,
    *,
    thresholds: Sequence[float] | Floats,
    groups: NDArray[Any] | None = None,
    prevalence: Sequence[float] | Floats | None = None,
    rare: Sequence[str] | None = None,
) -> EvaluationResult:
    """Measure every abnormality and the means over them.

    An abnormality without a positive or without a negative is listed, unmeasured, and left out of the means; a note says so.

    Args:
        names: of the P abnormalities.
        labels: (U, P) for U observations: 1 present, 0 absent, NaN unknown.
        scores: (U, P).
        protocol: gives how is drawn, and what is made of the draws.
        thresholds: (P,), NaN for none.
        groups: (U,) what the bootstrap draws as one, see `metrics.bootstrap`.
        prevalence: (P,) share of the training scans with each, NaN where it is not known.
        rare: names of the rare abnormalities; by default those in less than 3 % of the training scans.
    """
    drawn = metrics.bootstrap(
        labels, scores, protocol.drawing, groups=groups, thresholds=thresholds, rule=protocol.rule
    )
    present, absent = np.sum(labels == 1, axis=0), np.sum(labels == 0, axis=0)
    shares = np.full(len(names), np.nan) if prevalence is None else np.asarray(prevalence, dtype=np.float64)
    rows = []
    for i, name in enumerate(names):
        measured = bool(present[i] and absent[i])
        figures = {metric: drawn.interval(metric, i) if measured else UNMEASURED for metric in METRICS}
        is_rare = bool(shares[i] < RARE_BELOW) if rare is None else name in rare
        counts = int(present[i]), int(absent[i])
        rows.append(Abnormality(name, is_rare, *counts, float(thresholds[i]), figures, float(shares[i])))
    first = top_k(labels, scores, protocol.drawing, groups=groups, rule=protocol.rule)
    top = {name: first.interval(name) for name in first.point}
    result = EvaluationResult(rows, {}, drawn, _notes(rows), top=top)
    for group in GROUPS:
        result.means[group] = {metric: _mean(drawn, metric, result.columns(group)) for metric in METRICS}
    return result


def mark_supervised(result: EvaluationResult, names: Sequence[str]) -> EvaluationResult:
    """The result of a model that was trained on labels of some abnormalities: they are marked, and the others have a mean."""
    rows = [replace(row, supervised=row.name in names) for row in result.abnormalities]
    marked = [row.name for row in rows if row.supervised]
    if not marked:
        return result
    note = f"The model was trained on their labels, so supervised and not zero-shot: {', '.join(marked)}."
    result = replace(result, abnormalities=rows, notes=[*result.notes, note])
    columns = result.columns(UNSUPERVISED)
    mean = {metric: _mean(result.bootstrap, metric, columns) for metric in METRICS}
    return replace(result, means={**result.means, UNSUPERVISED: mean})


def gain(result: EvaluationResult, over: EvaluationResult, group: str = "common", metric: str = "auroc") -> Interval:
    """The interval of the difference of a mean, both models being measured on the very same resamples.

    Args:
        group: one of `GROUPS`.

    Raises:
        ValueError: the two were not evaluated on the same volumes, resampled alike, or measured other abnormalities.
    """
    same = ("data", "split", "volumes", "protocol", "resamples", "seed")
    differing = [key for key in same if result.about.get(key) != over.about.get(key)]
    if differing or result.columns(group) != over.columns(group):
        raise ValueError(f"the results are not paired: they differ in {', '.join(differing) or 'their abnormalities'}")
    columns = result.columns(group)
    one, other = result.bootstrap, over.bootstrap
    paired = Bootstrap(
        {metric: one.point[metric] - other.point[metric]}, {metric: one.draws[metric] - other.draws[metric]}, one.rule
    )
    return _mean(paired, metric, columns)


def _mean(drawn: Bootstrap, metric: str, columns: list[int]) -> Interval:
    return drawn.interval(metric, columns) if columns else UNMEASURED


def _notes(rows: Sequence[Abnormality]) -> list[str]:
    """What is not measured, or hardly."""
    notes = []
    for count, what in (("positives", "positive"), ("negatives", "negative")):
        names = [row.name for row in rows if not getattr(row, count)]
        if names:
            notes.append(f"No {what} volume in this split, so not measured and in no mean: {', '.join(names)}.")
    names = [row.name for row in rows if row.measured and min(row.positives, row.negatives) < FEW]
    if names:
        notes.append(f"Fewer than {FEW} volumes of a class, so the interval says too little: {', '.join(names)}.")
    names = [row.name for row in rows if row.measured and math.isnan(row.threshold)]
    if names and not all(math.isnan(row.threshold) for row in rows):
        notes.append(f"No threshold could be chosen, so no figures at one: {', '.join(names)}.")
    return notes
