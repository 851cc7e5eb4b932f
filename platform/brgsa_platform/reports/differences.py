"""What the first of several evaluations gains over each other one, and whether beyond chance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from brgsa.metrics.paired import difference, holm
from brgsa.protocols import Protocol
from brgsa_platform.evaluation.compare import compare
from brgsa_platform.evaluation.result import Comparison, EvaluationResult, Gain
from brgsa_platform.evaluation.scored import Scored, Setting, measure
from brgsa_platform.reports.runs import Evaluated

LIKELY = 0.05  # a p-value from which a difference is no difference


@dataclass(frozen=True)
class Difference:
    """The first evaluation beside another one.

    Attributes:
        other: its name.
        comparison: the gains in AUROC; None where they cannot be told.
        paired: whether both were measured on the same volumes, drawn alike.
        said: how was compared, or why not.
    """

    other: str
    comparison: Comparison | None
    paired: bool
    said: str

    @property
    def macro(self) -> Gain | None:
        """The gain of the mean over all measured abnormalities."""
        return None if self.comparison is None else self.comparison.means.get("macro")


def differ(first: Evaluated, other: Evaluated) -> Difference:
    """Compare two evaluations under one protocol: paired on the volumes that both have scored, else on those of each."""
    one, two = first.scored, other.scored
    if one is None or two is None:
        missing = first.name if one is None else other.name
        return _none(other, f"Scores and labels by volume of {missing} are not beside its table: evaluate it again.")
    if first.protocol != other.protocol:
        return _none(
            other, f"Their protocols differ ({first.protocol.name}, {other.protocol.name}), so that figures do too."
        )
    common = [name for name in one.names if name in two.names]
    if not common:
        return _none(other, "They have no abnormality in common.")
    shared = set(one.volume_ids) & set(two.volume_ids)
    if shared and not _same_labels(one, two, common):
        return _none(other, "The volumes that both have scored have other labels in one than in the other.")
    if shared:
        found = compare(other.name, one, two, _setting(first, one.names))
        said = (
            f"Paired: both on the same {found.volumes} volumes, drawn alike, so that the luck of the volumes falls out."
        )
        return Difference(other.name, found, True, " ".join([said, *found.notes]))
    found = _apart(first, other, common)
    said = "Not paired: they have no volume in common, so that an interval holds the luck of both."
    return Difference(other.name, found, False, said)


def _none(other: Evaluated, why: str) -> Difference:
    return Difference(other.name, None, False, f"No differences are told. {why}")


def _same_labels(one: Scored, two: Scored, names: list[str]) -> bool:
    place = {volume: row for row, volume in enumerate(two.volume_ids)}
    rows = [row for row, volume in enumerate(one.volume_ids) if volume in place]
    theirs = [place[one.volume_ids[row]] for row in rows]
    columns = [[scored.names.index(name) for name in names] for scored in (one, two)]
    mine, others = np.asarray(one.labels)[np.ix_(rows, columns[0])], np.asarray(two.labels)[np.ix_(theirs, columns[1])]
    return bool(np.array_equal(mine, others, equal_nan=True))


def _setting(run: Evaluated, names: list[str], protocol: Protocol | None = None) -> Setting:
    rows = {row.name: row for row in run.abnormalities}
    return Setting(
        protocol or run.protocol,
        prevalence=np.array([rows[name].prevalence for name in names]),
        rare=[row.name for row in run.abnormalities if row.rare],
    )


def _apart(first: Evaluated, other: Evaluated, names: list[str]) -> Comparison:
    """Gains over volumes of others: the draws of both are independent."""
    assert first.scored is not None
    assert other.scored is not None
    drawn = other.protocol.bootstrap
    shifted = replace(other.protocol, bootstrap=replace(drawn, seed=drawn.seed + drawn.resamples))
    one = measure(first.scored.for_names(names), _setting(first, names))
    two = measure(other.scored.for_names(names), _setting(first, names, shifted))
    columns = [i for i in one.columns() if two.abnormalities[i].measured]
    gains = [_gain(one, two, [i]) for i in columns]
    adjusted = holm([gain.p for gain in gains])
    of = {one.abnormalities[i].name: replace(gains[k], p_holm=float(adjusted[k])) for k, i in enumerate(columns)}
    groups = {group: [i for i in one.columns(group) if i in columns] for group in one.groups}
    means = {group: _gain(one, two, held) for group, held in groups.items() if held}
    return Comparison(other.name, 0, of, means, [])


def _gain(one: EvaluationResult, two: EvaluationResult, columns: list[int]) -> Gain:
    gain, p = difference(one.bootstrap, two.bootstrap, "auroc", columns)
    both = [float(np.nanmean(of.bootstrap.point["auroc"][columns])) for of in (one, two)]
    return Gain(both[0], both[1], gain, p)
