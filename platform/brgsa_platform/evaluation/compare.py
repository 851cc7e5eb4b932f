"""Two models on the same volumes under one protocol: what the first gains over the second, and whether beyond chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from brgsa.errors import UserError
from brgsa.metrics import Bootstrap
from brgsa.metrics.paired import delong, difference, holm
from brgsa_platform.evaluation.result import Comparison, EvaluationResult, Gain, Observations
from brgsa_platform.evaluation.scored import Scored, Setting, measure

FIGURE = "auroc"


def compare(name: str, first: Scored, second: Scored, setting: Setting) -> Comparison:
    """Compare two models' scores on the volumes and abnormalities that both have.

    Args:
        name: of the second.
        setting: of the first's evaluation.

    Raises:
        UserError: nothing-in-common.
    """
    one, other = _common(first, second)
    if not one.volume_ids or not one.names:
        what = "volume" if not one.volume_ids else "abnormality"
        raise UserError(
            f"{name} has scored no {what} that is under test: compare scores of the same data.",
            code="nothing-in-common",
            field="--compare",
            value=name,
        )
    prevalence = setting.prevalence
    if prevalence is not None:
        prevalence = prevalence[[first.names.index(each) for each in one.names]]
    quick = replace(setting, fitting=None, prevalence=prevalence)
    results = measure(one, quick), measure(other, quick)
    notes = []
    if len(one.volume_ids) < len(first.volume_ids) or len(one.names) < len(first.names):
        notes.append(
            f"{name} has scores of {len(one.volume_ids)} of the {len(first.volume_ids)} volumes and "
            f"{len(one.names)} of the {len(first.names)} abnormalities: both models are compared on these."
        )
    return Comparison(name, len(one.volume_ids), _abnormalities(*results), _means(*results), notes)


def _common(first: Scored, second: Scored) -> tuple[Scored, Scored]:
    """Both models' scores for the same volumes and abnormalities, in the first's order; scans and labels are the first's."""
    place = {volume: row for row, volume in enumerate(second.volume_ids)}
    rows = [row for row, volume in enumerate(first.volume_ids) if volume in place]
    names = [name for name in first.names if name in second.names]
    columns = [first.names.index(name) for name in names]
    one = Scored(
        names=names,
        volume_ids=[first.volume_ids[row] for row in rows],
        labels=np.asarray(first.labels)[np.ix_(rows, columns)],
        scores=first.scores[np.ix_(rows, columns)],
        scans=first.scans[rows],
        patients=first.patients[rows],
        voxels=None if first.voxels is None else first.voxels[rows],
    )
    theirs = [place[volume] for volume in one.volume_ids]
    return one, replace(one, scores=second.scores[np.ix_(theirs, [second.names.index(name) for name in names])])


def _abnormalities(first: EvaluationResult, second: EvaluationResult) -> dict[str, Gain]:
    columns = first.columns()
    one, other = _observed(first), _observed(second)
    found = [_gain(first.bootstrap, second.bootstrap, i) for i in columns]
    exact = [delong(one.labels[:, i], one.scores[:, i], other.scores[:, i]).p for i in columns]
    by_draws, by_delong = holm([gain.p for gain in found]), holm(exact)
    return {
        first.abnormalities[i].name: replace(
            found[k], p_holm=float(by_draws[k]), p_delong=exact[k], p_delong_holm=float(by_delong[k])
        )
        for k, i in enumerate(columns)
    }


def _means(first: EvaluationResult, second: EvaluationResult) -> dict[str, Gain]:
    groups = {group: first.columns(group) for group in first.groups}
    return {group: _gain(first.bootstrap, second.bootstrap, columns) for group, columns in groups.items() if columns}


def _gain(first: Bootstrap, second: Bootstrap, columns: int | list[int]) -> Gain:
    gain, p = difference(first, second, FIGURE, columns)
    both = [float(np.nanmean(one.point[FIGURE][columns])) for one in (first, second)]
    return Gain(both[0], both[1], gain, p)


def _observed(result: EvaluationResult) -> Observations:
    assert result.observed is not None
    return result.observed
