"""What a search is, as its folder keeps it, and what its user may still change: the dataclasses that the room shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tune_spaces
from brgsa.errors import UserError
from brgsa.files import read_json, write_json
from brgsa_platform.config import RunConfig, flatten

if TYPE_CHECKING:
    from brgsa_platform.loading.volume_cache import VolumeCache

# A goal is what the user asks for by name; its objective is the metric of an epoch's report that the search maximises.
GOALS = {"auroc": "val/auroc", "common": "val/auroc_common", "rare": "val/auroc_rare"}
SAMPLERS = ("tpe", "gp", "cmaes", "random", "qmc", "grid", "nsga2")
PRUNERS = ("asha", "median", "hyperband", "none")
CHECKPOINTS = ("all", "best", "none")
DEFAULT_TRIALS = 16
SEARCH_FILE = "search.json"


@dataclass(frozen=True)
class SearchMethod:
    """How a search finds its points; the same for the whole life of the search.

    Attributes:
        goals: one or two of `GOALS`; two make a Pareto set.
        sampler: one of `SAMPLERS`.
        pruner: one of `PRUNERS`; judges by the first goal.
        seed: of the sampler; any whole number from 0 on.
        storage: URL of a database for the study; None for a journal file in the search's folder.

    Raises:
        UserError: option-value (unknown goal, sampler or pruner, negative seed) or options-conflict (two goals with a
            pruner or a sampler that knows one goal only).
    """

    goals: Sequence[str] = ("auroc",)
    sampler: str = "tpe"
    pruner: str = "none"
    seed: int = 0
    storage: str | None = None

    def __post_init__(self) -> None:
        _check_choice("--sampler", self.sampler, SAMPLERS)
        _check_choice("--pruner", self.pruner, PRUNERS)
        unknown = [goal for goal in self.goals if goal not in GOALS]
        if unknown or not 1 <= len(set(self.goals)) == len(self.goals) <= 2:
            raise _wrong("--goal", tuple(self.goals), f"takes one or two different of {', '.join(GOALS)}")
        if self.seed < 0:
            raise _wrong("--seed", self.seed, "must be 0 or above")
        if len(self.goals) > 1 and self.pruner != "none":
            raise _conflict("--pruner", self.pruner, "Optuna cannot prune trials of two goals: use --pruner none.")
        if len(self.goals) > 1 and self.sampler == "cmaes":
            raise _conflict(
                "--sampler",
                self.sampler,
                "The sampler cmaes knows one goal only: use nsga2, tpe, gp, random or qmc for two.",
            )

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metrics of an epoch's report that are maximised, one a goal."""
        return tuple(GOALS[goal] for goal in self.goals)


@dataclass(frozen=True)
class Limits:
    """When a search ends. None: no such limit.

    Attributes:
        trials: of this search, whatever became of them.
        seconds: of wall clock, of this start of the driver.
        epochs: of all trials together; a trial that failed before its first counts as one.
        patience: ended trials (complete, pruned or failed) without a better one.
    """

    trials: int | None = None
    seconds: float | None = None
    epochs: int | None = None
    patience: int | None = None


@dataclass(frozen=True)
class SearchOptions:
    """How a search is run; all of it may change when the search is resumed, but for where it begins.

    Attributes:
        trials: in all; None: no limit.
        hours: of wall clock, this time; None: no limit.
        epochs: of all trials together; None: no limit.
        patience: trials without a better one after which a search with one goal ends; None: no limit.
        concurrent: trials at a time; None: as many as the cluster holds.
        gpu_share: GPUs of each training process; None: as `train.gpu` says, where "auto" is one if the cluster has any.
        checkpoints: which trials' best checkpoints MLflow gets a copy of: all, best (that of the best trial) or none.
        points: values by field of the first trials, before anything is drawn.
        warm_from: searches of the same folder or runs in MLflow that the sampler learns from; see `warm_start.learn`.
        cache: the store's volumes where they are decoded already, in this Ray session; None decodes them.

    Raises:
        UserError: option-value names the option that is out of its range; endless-search where nothing ends it.
    """

    trials: int | None = DEFAULT_TRIALS
    hours: float | None = None
    epochs: int | None = None
    patience: int | None = None
    concurrent: int | None = None
    gpu_share: float | None = None
    checkpoints: str = "all"
    points: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    warm_from: Sequence[str] = field(default_factory=tuple)
    cache: VolumeCache | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "epochs", "patience", "concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _wrong(f"--{name}", value, "must be at least 1")
        if self.hours is not None and not self.hours > 0:
            raise _wrong("--hours", self.hours, "must be above 0")
        if self.gpu_share is not None and self.gpu_share < 0:
            raise _wrong("--gpus-per-trial", self.gpu_share, "must be 0 or above")
        _check_choice("--checkpoints", self.checkpoints, CHECKPOINTS)
        if not any((self.trials, self.hours, self.epochs, self.patience)):
            raise UserError(
                "A search needs an end: give --trials, --hours, --epochs or --patience.",
                code="endless-search",
                field="--trials",
            )

    def check_end(self, method: SearchMethod) -> None:
        """Refuse a search that nothing ends: of two goals there is no best trial whose age patience could count.

        Raises:
            UserError: endless-search.
        """
        if len(method.goals) > 1 and not any((self.trials, self.hours, self.epochs)):
            raise UserError(
                "--patience does not end a search with two goals, which has no single best trial: give --trials, --hours or "
                "--epochs.",
                code="endless-search",
                field="--patience",
                value=self.patience,
            )

    @property
    def limits(self) -> Limits:
        """When the search ends, in the searcher's units."""
        return Limits(self.trials, None if self.hours is None else 3600 * self.hours, self.epochs, self.patience)


@dataclass(frozen=True)
class SearchSpec:
    """What makes a search what it is: kept in its folder, and the same when it is resumed.

    Attributes:
        spaces: names or paths, as given.
        parameters: what the spaces held when the search began.
        base: the configuration over which values are drawn.
        store: path or URL; data: the store's fingerprint.
        preset: name of the base's preset, for MLflow's tag.
        parent_run: MLflow run id of the search; "" before it has one.
    """

    spaces: Sequence[str]
    parameters: Sequence[tune_spaces.Parameter]
    base: RunConfig
    store: str
    data: str
    preset: str | None
    method: SearchMethod = field(default_factory=SearchMethod)
    parent_run: str = ""

    def to_json(self) -> dict[str, Any]:
        """The tree that `search.json` holds; `from_json` takes it back unchanged."""
        method = asdict(self.method)
        del method["goals"]
        return {
            "spaces": list(self.spaces),
            "parameters": [_parameter_tree(parameter) for parameter in self.parameters],
            "base": self.base.to_dict(),
            "store": self.store,
            "data": self.data,
            "preset": self.preset,
            "goals": list(self.method.objectives),
            **method,
            "parent_run": self.parent_run,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], where: str) -> SearchSpec:
        """A search from the tree of its `search.json`.

        Args:
            where: names the file in messages.

        Raises:
            UserError: search-file where keys are missing or another version of the platform wrote them.
        """
        names = {objective: goal for goal, objective in GOALS.items()}
        try:
            return cls(
                spaces=tree["spaces"],
                parameters=[_parameter(entry) for entry in tree["parameters"]],
                base=RunConfig.from_tree(tree["base"], where),
                store=tree["store"],
                data=tree["data"],
                preset=tree["preset"],
                method=SearchMethod(
                    goals=tuple(names[objective] for objective in tree["goals"]),
                    **{key: tree[key] for key in ("sampler", "pruner", "seed", "storage")},
                ),
                parent_run=tree["parent_run"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{where} does not describe a search of this version ({error}): begin another one with another --name.",
                code="search-file",
                field=where,
            ) from error

    def with_run(self, run_id: str) -> SearchSpec:
        """The same search, which now has its run in MLflow."""
        return replace(self, parent_run=run_id)

    def space_words(self) -> str:
        """The space in words."""
        return f"{' + '.join(self.spaces)} ({', '.join(p.field for p in self.parameters)})"


def read_spec(folder: Path) -> SearchSpec | None:
    """The search that a folder holds; None where it holds none."""
    file = folder / SEARCH_FILE
    if not file.is_file():
        return None
    return SearchSpec.from_json(read_json(file, "begin another search with another --name"), str(file))


def write_spec(folder: Path, spec: SearchSpec) -> None:
    """Keep a search in its folder."""
    write_json(folder / SEARCH_FILE, spec.to_json())


def check_same(name: str, begun: SearchSpec, wanted: SearchSpec) -> None:
    """Refuse to go on with a search as if it were another one.

    Raises:
        UserError: other-search names the first field that differs.
    """
    was, now = (flatten({**spec.to_json(), "parent_run": "", "parameters": []}) for spec in (begun, wanted))
    differing = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if differing or list(begun.parameters) != list(wanted.parameters):
        key = differing[0].removeprefix("base.") if differing else "parameters"
        what = f"{key} {was.get(differing[0])}, not {now.get(differing[0])}" if differing else "other ranges"
        raise UserError(
            f"The search {name} began with {what}: give the options that it began with, or --resume {name} alone, or begin "
            "another one with another name.",
            code="other-search",
            field=key,
            value=now.get(differing[0]) if differing else None,
        )


def default_name(spaces: Sequence[str]) -> str:
    """A search's name where none is given: its spaces'."""
    return "+".join(Path(space).stem for space in spaces)


def trial_name(number: int) -> str:
    """Name of a trial's MLflow run and folder; sorts as the trials were started."""
    return f"trial-{number:04d}"


def _parameter_tree(parameter: tune_spaces.Parameter) -> dict[str, Any]:
    tree = asdict(parameter)
    return {**tree, "choices": list(tree["choices"]), "when": {key: list(v) for key, v in tree["when"].items()}}


def _parameter(tree: Mapping[str, Any]) -> tune_spaces.Parameter:
    when = {key: tuple(values) for key, values in tree["when"].items()}
    return tune_spaces.Parameter(**{**tree, "choices": tuple(tree["choices"]), "when": when})


def _check_choice(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise _wrong(option, value, f"takes one of {', '.join(known)}")


def _wrong(option: str, value: Any, rule: str) -> UserError:
    shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
    return UserError(f"{option} {rule}, not {shown}.", code="option-value", field=option, value=value)


def _conflict(option: str, value: str, sentence: str) -> UserError:
    return UserError(sentence, code="options-conflict", field=option, value=value)
