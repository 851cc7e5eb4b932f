"""What a search knows before it draws: points that were given, its own base, and what earlier trainings came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.config import flatten
from brgsa_platform.search import study
from brgsa_platform.search.spec import SearchSpec, read_spec
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import runs
from brgsa_platform.tracking.client import Record, quoted

if TYPE_CHECKING:
    from optuna.study import Study

EVERYTHING = "mlflow"  # the name that stands for all finished trainings that are tracked


@dataclass(frozen=True)
class Known:
    """An earlier training: whence it is known, the values of its fields, and what it reached in each goal."""

    whence: str
    values: Mapping[str, Any]
    reached: Sequence[float]


def given_points(
    parameters: Sequence[tune_spaces.Parameter], given: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The points that were given, as the study takes them.

    Raises:
        UserError: one lies outside the space.
    """
    points = []
    for wanted in given:
        point = study.point_in(parameters, wanted)
        if point is None:
            shown = ", ".join(f"{key}={value}" for key, value in wanted.items())
            raise UserError(f"The point {shown} lies outside the space, or lacks one of its fields: correct --point.")
        points.append(point)
    return points


def learn(names: Sequence[str], searches: Path, spec: SearchSpec) -> list[Known]:
    """What earlier trainings came to, as points of this search's space.

    Args:
        names: of searches in the folder `searches`, of runs in MLflow (a search or a training), or "mlflow" for all there.

    Raises:
        UserError: a name is unknown, or none of its trainings tells anything here.
    """
    parameters = spec.space()
    return [known for name in names for known in _points_of(name, searches, spec, parameters)]


def begin(found: Study, spec: SearchSpec, points: Sequence[Mapping[str, Any]], learnt: Sequence[Known]) -> None:
    """Put the given points and the base itself first in line, and let the sampler know earlier trainings."""
    parameters = spec.space()
    for point in given_points(parameters, points):
        found.enqueue_trial(point, skip_if_exists=True)
    base = study.point_in(parameters, flatten(spec.base))
    if base is not None and spec.sampler not in ("grid", "qmc"):
        found.enqueue_trial(base, skip_if_exists=True)  # what is found is then no worse than the base
    for known in learnt:
        _add(found, known, parameters)


def _points_of(name: str, searches: Path, spec: SearchSpec, parameters: Sequence[tune_spaces.Parameter]) -> list[Known]:
    other = read_spec(searches / name)
    trainings = _of_search(name, searches, other, spec) if other is not None else _of_mlflow(name, spec, parameters)
    seen, usable = 0, []
    for training in trainings:
        seen += 1
        point = study.point_in(parameters, training.values)
        if point is not None:
            usable.append(Known(name, point, training.reached))
    if not usable and name != EVERYTHING:
        raise UserError(
            f"None of the {seen} finished trainings of {name} lies in this space and has its goals, so they tell nothing "
            "here: leave --warm-from out, or choose another one."
        )
    return usable


def _of_search(name: str, searches: Path, other: SearchSpec, spec: SearchSpec) -> Iterator[Known]:
    """A search's completed trials, from its study."""
    import optuna

    if other.data != spec.data or other.goals != spec.goals:
        raise UserError(f"The search {name} has other data or other goals, so its trials tell nothing here.")
    past = study.open_study(
        name,
        searches / name,
        storage=other.storage,
        goals=[tracking.short(goal) for goal in other.goals],
        sampler=study.make_sampler("random", 0, other.space()),
        pruner="none",
        epochs=1,
    )
    base = flatten(other.base)
    for trial in past.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        if study.WARM_START_SOURCE not in trial.user_attrs:
            yield Known(name, {**base, **trial.params}, trial.values)


def _of_mlflow(name: str, spec: SearchSpec, parameters: Sequence[tune_spaces.Parameter]) -> Iterator[Known]:
    """Finished trainings that MLflow holds: all on this data, or those of one run."""
    on_data = f"tags.\"brgsa.data\" = {quoted(spec.data)} AND attributes.status = 'FINISHED'"
    if name == EVERYTHING:
        records = tracking.find(on_data)
    else:
        run = runs.one_run(name)
        if run.tags.get("brgsa.data") != spec.data:
            raise UserError(f"The run {name} was not on this data, so it tells nothing here: correct --warm-from.")
        searched = f'{on_data} AND tags."mlflow.parentRunId" = {quoted(run.run_id)}'
        records = tracking.find(searched) if run.verb == "tune" else [run]
    for record in reversed(records):
        reached = _reached(record, spec.goals) if record.verb in ("train", "trial") else None
        if reached is not None:
            yield Known(name, _values(record, parameters), reached)


def _reached(record: Record, goals: Sequence[str]) -> list[float] | None:
    """What a run reached in each goal at its best epoch in the first, as a trial counts; None where it measured no such."""
    if any(goal not in record.metrics for goal in goals):
        return None
    curves = [dict(tracking.metric_history(record.run_id, goal)) for goal in goals]
    best = max(curves[0], key=lambda step: (curves[0][step], step))
    reached = [curve.get(best, float("nan")) for curve in curves]
    return None if any(value != value for value in reached) else reached


def _values(record: Record, parameters: Sequence[tune_spaces.Parameter]) -> dict[str, Any]:
    """A run's parameters, which MLflow holds as text, as the space's fields take them."""
    values: dict[str, Any] = {}
    for p in parameters:
        text = record.params.get(p.field)
        if text is None:
            continue
        if p.kind in ("categorical", "fixed"):
            if chosen := [choice for choice in p.choices if str(choice) == text]:
                values[p.field] = chosen[0]
        else:
            try:
                values[p.field] = int(text) if p.kind == "int" else float(text)
            except ValueError:
                continue  # "None": the field was not set
    return values


def _add(found: Study, known: Known, parameters: Sequence[tune_spaces.Parameter]) -> None:
    import optuna

    found.add_trial(
        optuna.create_trial(
            params=dict(known.values),
            distributions=study.distributions(parameters, known.values),
            values=list(known.reached),
            user_attrs={study.WARM_START_SOURCE: known.whence, "epochs": 0, "reason": f"known from {known.whence}"},
        )
    )
