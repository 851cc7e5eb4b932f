"""What one arm gains over another, over seeds and volumes: rows for a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from brgsa.metrics import Interval
from brgsa.metrics.paired import gain_over_seeds, holm
from brgsa_platform.evaluation.result import EvaluationResult

FIGURE = "auroc"
LEVEL = 0.05  # of an adjusted p-value below which a difference is called one

Results = Mapping[str, Sequence[EvaluationResult]]  # arm → its results, a seed each


@dataclass(frozen=True)
class ArmGain:
    """What an arm gains over another in the mean AUROC of a group.

    Attributes:
        arm, over: their names.
        group: "common", "rare", "unseen" or another of the tables'.
        gain: with the interval over volumes and seeds.
        p, p_holm: two-sided, of no difference; adjusted for the comparisons of this group.
    """

    arm: str
    over: str
    group: str
    gain: Interval
    p: float
    p_holm: float = float("nan")

    @property
    def beyond_chance(self) -> bool:
        """Whether the arm is better than the other beyond chance."""
        return self.gain.value > 0 and self.p_holm < LEVEL


def group_columns(result: EvaluationResult, group: str, unseen: Sequence[str] = ()) -> list[int]:
    """Positions of a group's measured abnormalities; those that the training did not see are a group of their own."""
    chosen = result.columns("macro" if group == "unseen" else group)
    return [i for i in chosen if (result.abnormalities[i].name in unseen) == (group == "unseen")]


def seed_means(results: Sequence[EvaluationResult], columns: Sequence[int]) -> list[float]:
    """The mean AUROC over some abnormalities, a seed each."""
    return [float(np.mean([one.bootstrap.point[FIGURE][i] for i in columns])) for one in results]


def arm_gains(
    results: Results, pairs: Sequence[tuple[str, str]], group: str, unseen: Sequence[str] = ()
) -> list[ArmGain]:
    """What the first arm of each pair gains over the second, with Holm's correction over the pairs; none for an empty group."""
    found = []
    for arm, over in pairs:
        columns = group_columns(results[arm][0], group, unseen)
        if not columns:
            return []
        first, second = ([one.bootstrap for one in results[name]] for name in (arm, over))
        found.append(ArmGain(arm, over, group, *gain_over_seeds(first, second, FIGURE, columns)))
    adjusted = holm([one.p for one in found])
    return [replace(one, p_holm=float(p)) for one, p in zip(found, adjusted, strict=True)]
