"""The Optuna study behind a search: its samplers, its pruners, and where its memory lies.

The study is the search's only record of what was drawn and what came of it. A trial keeps its number over kills and
resumptions; a trial that was running when the driver died is run again under the same number, from its last checkpoint.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tune_spaces
from brgsa.errors import UserError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

SAMPLERS = ("tpe", "gp", "cmaes", "random", "qmc", "grid", "nsga2")
PRUNERS = ("asha", "median", "hyperband", "none")
JOURNAL = "study.journal"
WARM_START_SOURCE = "from"  # user attribute of a training from before the search
GRID_POINTS = 5  # of a range, where a grid is asked for


def open_study(
    name: str,
    folder: Path,
    *,
    storage: str | None,
    goals: Sequence[str],
    sampler: BaseSampler,
    pruner: str,
    epochs: int,
) -> Study:
    """The study of this name, made where there is none.

    Args:
        folder: of the search; holds the journal where no `storage` is given.
        storage: URL of a database that Optuna reads (sqlite:///…, postgresql://…).
        goals: names of what is to be maximised.
        epochs: of a whole trial.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _quiet()
    where: Any = storage or JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    try:
        study = optuna.create_study(
            study_name=name,
            storage=where,
            directions=["maximize"] * len(goals),
            sampler=sampler,
            pruner=make_pruner(pruner, epochs),
            load_if_exists=True,
        )
        study.set_metric_names(list(goals))
        return study
    except Exception as error:  # each database driver has its own exceptions
        raise UserError(
            f"The storage of the search {name} cannot be opened ({type(error).__name__}: {str(error).splitlines()[0]}): "
            "correct --storage."
        ) from error


def _quiet() -> None:
    """Optuna warns of interfaces that may change; its version is pinned."""
    from optuna.exceptions import ExperimentalWarning

    warnings.filterwarnings("ignore", category=ExperimentalWarning)


def make_sampler(kind: str, seed: int, parameters: Sequence[tune_spaces.Parameter], trial: int = 0) -> BaseSampler:
    """A sampler by name, for the trial of this number.

    Its randomness is a function of seed and number, not of how often the driver was started: a resumed search draws what
    an undisturbed one would have.
    """
    from optuna import samplers

    _quiet()
    drawn = seed * 1_000_003 + trial
    if kind == "tpe":
        # Constant liar: trials that run side by side are not drawn at the same place.
        return samplers.TPESampler(seed=drawn, multivariate=True, group=True, constant_liar=True)
    if kind == "gp":
        return samplers.GPSampler(seed=drawn, deterministic_objective=False)
    if kind == "cmaes":
        return samplers.CmaEsSampler(seed=drawn, warn_independent_sampling=False)
    if kind == "random":
        return samplers.RandomSampler(seed=drawn)
    if kind == "qmc":  # one sequence, of which the study holds the place
        return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    if kind == "grid":
        return _grid({p.field: grid_values(p) for p in parameters if p.kind != "fixed"}, seed)
    return samplers.NSGAIISampler(seed=drawn, population_size=20)


def _grid(values: Mapping[str, Sequence[Any]], seed: int) -> BaseSampler:
    from optuna.samplers import GridSampler

    class Grid(GridSampler):
        """Optuna's, without its call to end an `optimize` loop, which is not ours."""

        def after_trial(self, *arguments: Any) -> None:
            return None

    return Grid(values, seed=seed)


def exhausted(study: Study) -> bool:
    """Whether a grid has no point left."""
    from optuna.samplers import GridSampler

    return isinstance(study.sampler, GridSampler) and study.sampler.is_exhausted(study)


def make_pruner(kind: str, epochs: int) -> Any:
    """A pruner by name; ASHA and Hyperband keep a third at each rung, from the first epoch on."""
    from optuna import pruners

    if kind == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if kind == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0)
    if kind == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=max(1, epochs), reduction_factor=3)
    return pruners.NopPruner()


def check_choice(sampler: str, pruner: str, goals: int) -> None:
    """Refuse a sampler or a pruner that does not exist or does not go with so many goals.

    Raises:
        UserError: names what would go.
    """
    for what, chosen, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if chosen not in known:
            raise UserError(f"There is no {what} {chosen!r}: choose one of {', '.join(known)}.")
    if goals > 1 and pruner != "none":
        raise UserError("Optuna cannot prune trials of two goals: use --pruner none.")
    if goals > 1 and sampler == "cmaes":
        raise UserError("The sampler cmaes knows one goal only: use nsga2, tpe, gp, random or qmc for two.")


def draw(trial: Trial, parameters: Sequence[tune_spaces.Parameter]) -> dict[str, Any]:
    """The values of the parameters that apply, drawn or as the trial holds them already."""
    values: dict[str, Any] = {}
    for p in parameters:
        if not tune_spaces.active(p, values):
            continue
        if p.kind == "fixed":
            values[p.field] = p.choices[0]
        elif p.kind == "categorical":
            values[p.field] = trial.suggest_categorical(p.field, list(p.choices))
        elif p.kind == "int":
            low, high, step = int(_number(p.low)), int(_number(p.high)), int(p.step or 1)
            values[p.field] = trial.suggest_int(p.field, low, high, step=step, log=p.log)
        else:
            values[p.field] = trial.suggest_float(p.field, _number(p.low), _number(p.high), step=p.step, log=p.log)
    return values


def grid_values(parameter: tune_spaces.Parameter, points: int = GRID_POINTS) -> list[Any]:
    """All choices, or so many values over a range, its ends among them, evenly on its scale."""
    if parameter.kind == "categorical":
        return list(parameter.choices)
    low, high = _number(parameter.low), _number(parameter.high)
    shares = [i / (points - 1) for i in range(points)]
    if parameter.log:
        values = [math.exp(math.log(low) + s * (math.log(high) - math.log(low))) for s in shares]
    else:
        values = [low + s * (high - low) for s in shares]
    values[0], values[-1] = low, high
    return sorted({round(v) for v in values}) if parameter.kind == "int" else values


def point_in(parameters: Sequence[tune_spaces.Parameter], values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The part of a configuration's values that a search over these parameters can draw; None where it lies outside."""
    point: dict[str, Any] = {}
    for p in parameters:
        if p.kind == "fixed":
            point[p.field] = p.choices[0]
            continue
        if not tune_spaces.active(p, point):
            continue
        if p.field not in values:
            return None
        value = tune_spaces.scalar(values[p.field])
        if not p.takes(value):
            return None
        point[p.field] = value
    return {p.field: point[p.field] for p in parameters if p.kind != "fixed" and p.field in point}


def distributions(parameters: Sequence[tune_spaces.Parameter], point: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's distributions of a point's fields."""
    from optuna import distributions as kinds

    found: dict[str, Any] = {}
    for p in parameters:
        if p.field not in point:
            continue
        if p.kind == "categorical":
            found[p.field] = kinds.CategoricalDistribution(list(p.choices))
        elif p.kind == "int":
            found[p.field] = kinds.IntDistribution(int(_number(p.low)), int(_number(p.high)), p.log, int(p.step or 1))
        else:
            found[p.field] = kinds.FloatDistribution(_number(p.low), _number(p.high), p.log, p.step)
    return found


def values_of(trial: FrozenTrial, parameters: Sequence[tune_spaces.Parameter]) -> dict[str, Any]:
    """A trial's values, those that the space fixes included."""
    values: dict[str, Any] = {}
    for p in parameters:
        if tune_spaces.active(p, values):
            values[p.field] = p.choices[0] if p.kind == "fixed" else trial.params[p.field]
    return values


def _number(value: float | None) -> float:
    assert value is not None
    return value
