"""The Optuna study behind a search: where it is stored, which trials are its own, and how a space is drawn from it.

The study is the search's only record of what was drawn and of the results. A trial keeps its number over kills and
resumptions; a trial that was running when the driver died is run again under the same number, from its last checkpoint.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.search.spec import SearchMethod, SearchSpec
from brgsa_platform.tracking.query import short

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "study.journal"
# User attributes of a trial. A warm start's trainings carry their source; all others are trials of this search.
WARM_START_SOURCE = "from"
REASON, EPOCHS, BEST_EPOCH, SCORES, VALUES = "reason", "epochs", "best_epoch", "scores", "values"
GRID_POINTS = 5  # of a range, in a grid
SEEDS = 2**32  # NumPy's generators, which Optuna uses, take seeds below this
SEED_STRIDE = 1_000_003  # between the seeds of two searches' first trials
COMPLETE_BEFORE_MEDIAN = 4


def forget(folder: Path) -> None:
    """Remove the journal of a search that was killed before it had begun."""
    for path in folder.glob(f"{JOURNAL}*"):
        path.unlink()


def open_storage(folder: Path, spec: SearchSpec) -> BaseStorage:
    """The storage of a search's study: its database, or the journal in its folder.

    Raises:
        UserError: study-storage where the database cannot be opened.
    """
    from optuna.storages import JournalStorage, RDBStorage

    from brgsa_platform.search.journal import journal

    _quiet()
    with _storage_refused(folder.name):
        if spec.method.storage:
            return RDBStorage(spec.method.storage)
        return JournalStorage(journal(folder / JOURNAL))


def open_study(name: str, spec: SearchSpec, storage: BaseStorage) -> Study:
    """The study of a search, made where there is none; its objectives are the spec's, without "val/", and maximised.

    Raises:
        UserError: study-storage where the database does not take the study.
    """
    import optuna

    _quiet()
    objectives = [short(objective) for objective in spec.method.objectives]
    with _storage_refused(name):
        study = optuna.create_study(
            study_name=name, storage=storage, directions=["maximize"] * len(objectives), load_if_exists=True
        )
        study.set_metric_names(objectives)
        return study


def own_trials(study: Study) -> list[FrozenTrial]:
    """The trials that this search has started, in the order of their numbers.

    Not those that wait in line, nor the trainings that a warm start told the sampler of: they count for nothing here.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state != TrialState.WAITING and WARM_START_SOURCE not in t.user_attrs]


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial that is best in the first objective, the earliest of equal ones; None where none is complete."""
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return max(complete, key=lambda trial: (trial.values[0], -trial.number), default=None)


def reopen_trial(study: Study, storage: BaseStorage, number: int) -> Trial:
    """A trial that a killed driver left running, to go on with."""
    from optuna.trial import Trial

    study_id = storage.get_study_id_from_name(study.study_name)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def make_sampler(method: SearchMethod, parameters: Sequence[tune_spaces.Parameter], trial: int = 0) -> BaseSampler:
    """The search's sampler for its trial of this number.

    Its randomness depends on seed and number alone, not on how often the driver was started: a resumed search draws what
    an undisturbed one would have.
    """
    from optuna import samplers

    _quiet()
    kind, seed = method.sampler, method.seed % SEEDS
    trial_seed = (method.seed * SEED_STRIDE + trial) % SEEDS
    if kind == "tpe":
        # Constant liar: trials that run side by side are not drawn at the same place.
        return samplers.TPESampler(seed=trial_seed, multivariate=True, group=True, constant_liar=True)
    if kind == "gp":
        return samplers.GPSampler(seed=trial_seed, deterministic_objective=False)
    if kind == "cmaes":
        return samplers.CmaEsSampler(seed=trial_seed, warn_independent_sampling=False)
    if kind == "random":
        return samplers.RandomSampler(seed=trial_seed)
    if kind == "qmc":  # one sequence for all trials; the study holds how far it is used up
        return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    if kind == "grid":
        return _grid({p.field: grid_values(p) for p in parameters if p.kind != "fixed"}, seed)
    return samplers.NSGAIISampler(seed=trial_seed, population_size=20)


def _grid(values: Mapping[str, Sequence[Any]], seed: int) -> BaseSampler:
    from optuna.samplers import GridSampler

    class Grid(GridSampler):
        """Optuna's own, which would end an `optimize` loop after its last point; here no such loop runs."""

        def after_trial(self, *arguments: Any) -> None:
            """Do nothing."""

    return Grid(values, seed=seed)


def grid_exhausted(study: Study) -> bool:
    """Whether the study's sampler is a grid that has no point left."""
    from optuna.samplers import GridSampler

    return isinstance(study.sampler, GridSampler) and study.sampler.is_exhausted(study)


def make_pruner(kind: str, epochs: int, warm_started: int = 0) -> BasePruner:
    """A pruner by name; ASHA and Hyperband keep a third at each rung, from the first epoch on.

    Args:
        epochs: of a whole trial.
        warm_started: trainings in the study that are not the search's own. They are complete but have no curves, so the
            median must not wait for fewer trials because of them.
    """
    from optuna import pruners

    if kind == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if kind == "median":
        return pruners.MedianPruner(n_startup_trials=COMPLETE_BEFORE_MEDIAN + warm_started, n_warmup_steps=0)
    if kind == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=max(1, epochs), reduction_factor=3)
    return pruners.NopPruner()


def draw(trial: Trial, parameters: Sequence[tune_spaces.Parameter]) -> dict[str, Any]:
    """The values, by field, of the parameters that apply: drawn now, or as the trial has them already."""
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


def grid_values(parameter: tune_spaces.Parameter) -> list[Any]:
    """All choices, or five values of a range, its ends among them, evenly spaced on its scale."""
    if parameter.kind == "categorical":
        return list(parameter.choices)
    low, high = _number(parameter.low), _number(parameter.high)
    shares = [i / (GRID_POINTS - 1) for i in range(GRID_POINTS)]
    if parameter.log:
        values = [math.exp(math.log(low) + s * (math.log(high) - math.log(low))) for s in shares]
    else:
        values = [low + s * (high - low) for s in shares]
    values[0], values[-1] = low, high
    return sorted({round(v) for v in values}) if parameter.kind == "int" else values


def point_in(parameters: Sequence[tune_spaces.Parameter], values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The part of a configuration's values that a search over these parameters can draw; None where it lies outside.

    Args:
        values: by field, as a flat configuration has them.
    """
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
    """Optuna's distribution of each field of a point."""
    from optuna import distributions as kinds

    by_field: dict[str, Any] = {}
    for p in parameters:
        if p.field not in point:
            continue
        if p.kind == "categorical":
            by_field[p.field] = kinds.CategoricalDistribution(list(p.choices))
        elif p.kind == "int":
            by_field[p.field] = kinds.IntDistribution(
                int(_number(p.low)), int(_number(p.high)), p.log, int(p.step or 1)
            )
        else:
            by_field[p.field] = kinds.FloatDistribution(_number(p.low), _number(p.high), p.log, p.step)
    return by_field


def values_of(trial: FrozenTrial, parameters: Sequence[tune_spaces.Parameter]) -> dict[str, Any]:
    """A trial's values by field, with those that the space fixes."""
    values: dict[str, Any] = {}
    for p in parameters:
        if tune_spaces.active(p, values):
            values[p.field] = p.choices[0] if p.kind == "fixed" else trial.params[p.field]
    return values


@contextmanager
def _storage_refused(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each database driver has its own exceptions
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"The storage of the search {name} cannot be opened ({type(error).__name__}: {reason}): correct --storage.",
            code="study-storage",
            field="--storage",
        ) from error


def _quiet() -> None:
    """Keep Optuna from its log, and from warnings of interfaces that may change: its version is pinned."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _number(value: float | None) -> float:
    assert value is not None
    return value
