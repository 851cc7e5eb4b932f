"""What a search knows before it draws: points that were given, its own base, and the results of earlier trainings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.config import flatten
from brgsa_platform.search import study as studies
from brgsa_platform.search.spec import SearchSpec, read_spec
from brgsa_platform.tracking import query, runs
from brgsa_platform.tracking.query import Record, quoted

if TYPE_CHECKING:
    from optuna.study import Study

EVERYTHING = "mlflow"  # the name that stands for all finished trainings that are tracked


@dataclass(frozen=True)
class EarlierTraining:
    """A training from before the search.

    Attributes:
        source: the search or run that it was found by, as `--warm-from` names it.
        values: value by field.
        reached: its value in each objective, at its best epoch in the first.
    """

    source: str
    values: Mapping[str, Any]
    reached: Sequence[float]


def parse_points(texts: Sequence[str]) -> list[dict[str, Any]]:
    """`["loss.temperature=0.1,data.style=findings"]` to a mapping of field to value for each text; values are YAML.

    Raises:
        UserError: point-form where a part is not field=value.
    """
    return [_parsed(text) for text in texts]


def given_points(
    parameters: Sequence[tune_spaces.Parameter], given: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The points that were given, as the study takes them.

    Raises:
        UserError: point-outside the space, or without one of its fields.
    """
    points = []
    for wanted in given:
        point = studies.point_in(parameters, wanted)
        if point is None:
            shown = ", ".join(f"{key}={value}" for key, value in wanted.items())
            raise UserError(
                f"The point {shown} lies outside the space, or lacks one of its fields: correct --point.",
                code="point-outside",
                field="--point",
                value=shown,
            )
        points.append(point)
    return points


def learn(names: Sequence[str], searches: Path, spec: SearchSpec) -> list[EarlierTraining]:
    """The results of earlier trainings, as points of this search's space.

    Args:
        names: of searches in the folder `searches`, of runs in MLflow (a search or a training), or "mlflow" for all there.

    Raises:
        UserError: a name is unknown; other-data or other-goals; nothing-learnt where none of its trainings lies in the
            space and measured the goals.
    """
    return [training for name in names for training in _trainings_of(name, searches, spec)]


def begin(
    study: Study, spec: SearchSpec, points: Sequence[Mapping[str, Any]], earlier: Sequence[EarlierTraining]
) -> None:
    """Put the given points and the base itself first in line, and tell the sampler of earlier trainings."""
    for point in given_points(spec.parameters, points):
        study.enqueue_trial(point, skip_if_exists=True)
    base = studies.point_in(spec.parameters, flatten(spec.base.to_dict()))
    if base is not None and spec.method.sampler not in ("grid", "qmc"):
        study.enqueue_trial(base, skip_if_exists=True)  # so that the best trial is no worse than the base
    for training in earlier:
        add(study, training, spec.parameters)


def add(study: Study, training: EarlierTraining, parameters: Sequence[tune_spaces.Parameter]) -> None:
    """Tell the study's sampler of a training that is not a trial of its search."""
    import optuna

    study.add_trial(
        optuna.create_trial(
            params=dict(training.values),
            distributions=studies.distributions(parameters, training.values),
            values=list(training.reached),
            user_attrs={studies.WARM_START_SOURCE: training.source},
        )
    )


def _trainings_of(name: str, searches: Path, spec: SearchSpec) -> list[EarlierTraining]:
    other = read_spec(searches / name)
    trainings = list(_of_search(name, searches, other, spec) if other is not None else _of_mlflow(name, spec))
    usable = []
    for training in trainings:
        point = studies.point_in(spec.parameters, training.values)
        if point is not None:
            usable.append(EarlierTraining(name, point, training.reached))
    if not usable and name != EVERYTHING:
        raise _useless(
            "nothing-learnt",
            name,
            f"None of the {len(trainings)} finished trainings of {name} lies in this space and has its goals, so they tell "
            "nothing here: leave --warm-from out, or choose another one.",
        )
    return usable


def _of_search(name: str, searches: Path, other: SearchSpec, spec: SearchSpec) -> Iterator[EarlierTraining]:
    """A search's completed trials, from its study."""
    if other.data != spec.data:
        raise _useless("other-data", name, f"The search {name} has other data, so its trials tell nothing here.")
    if other.method.objectives != spec.method.objectives:
        raise _useless("other-goals", name, f"The search {name} has other goals, so its trials tell nothing here.")
    past = studies.open_study(name, other, studies.open_storage(searches / name, other))
    base = flatten(other.base.to_dict())
    for trial in studies.own_trials(past):
        if trial.state.name == "COMPLETE":
            yield EarlierTraining(name, {**base, **studies.values_of(trial, other.parameters)}, trial.values)


def _of_mlflow(name: str, spec: SearchSpec) -> Iterator[EarlierTraining]:
    """Finished trainings that MLflow holds: all on this data, or those of one run."""
    on_data = f"tags.\"brgsa.data\" = {quoted(spec.data)} AND attributes.status = 'FINISHED'"
    if name == EVERYTHING:
        records = query.find(on_data)
    else:
        run = runs.one_run(name)
        if run.tags.get("brgsa.data") != spec.data:
            raise _useless(
                "other-data",
                name,
                f"The run {name} was not on this data, so it tells nothing here: correct --warm-from.",
            )
        children = f'{on_data} AND tags."mlflow.parentRunId" = {quoted(run.run_id)}'
        records = query.find(children) if run.verb == "tune" else [run]
    for record in reversed(records):
        reached = _reached(record, spec.method.objectives) if record.verb in ("train", "trial") else None
        if reached is not None:
            yield EarlierTraining(name, _values(record, spec.parameters), reached)


def _reached(record: Record, objectives: Sequence[str]) -> list[float] | None:
    """A run's value in each objective at its best epoch in the first, as a trial counts; None where it measured no such."""
    if any(objective not in record.metrics for objective in objectives):
        return None
    curves = [dict(query.metric_history(record.run_id, objective)) for objective in objectives]
    finite = {step: value for step, value in curves[0].items() if math.isfinite(value)}
    if not finite:
        return None
    best = max(finite, key=lambda step: (finite[step], step))
    reached = [curve.get(best, math.nan) for curve in curves]
    return reached if all(math.isfinite(value) for value in reached) else None


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


def _useless(code: str, name: str, sentence: str) -> UserError:
    return UserError(sentence, code=code, field="--warm-from", value=name)


def _parsed(text: str) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for part in text.split(","):
        field, equals, value = part.partition("=")
        if not equals or not field.strip():
            raise _no_point(text, f"{part!r} in --point {text!r} is not of the form field=value.")
        try:
            point[field.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise _no_point(text, f"The value of {part!r} in --point is not YAML: quote it.") from error
    return point


def _no_point(text: str, sentence: str) -> UserError:
    return UserError(sentence, code="point-form", field="--point", value=text)
