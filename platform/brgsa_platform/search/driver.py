"""`brgsa tune`: Tune and Optuna over trainings, each a child run of the search in MLflow."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.config import RunConfig, flatten, merge
from brgsa_platform.runtime import files
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import nodes_for, quiet_environment, ray_session
from brgsa_platform.search import report as search_report
from brgsa_platform.search import study, warm_start
from brgsa_platform.search.spaces import check_space, drawn_config
from brgsa_platform.search.spec import CHECKPOINTS, GOALS, SEARCH_FILE, SearchOptions, SearchSpec, read_spec
from brgsa_platform.search.trials import TrialResources, run_trial, trial_folder
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.batches import rare_labels, split_index
from brgsa_platform.training.driver import check_fit
from brgsa_platform.training.volume_cache import decode_once

if TYPE_CHECKING:
    from optuna.study import Study

    from brgsa_platform.search.searcher import Search

MLFLOW_PATIENCE = 300.0  # seconds that a trial waits for an MLflow server that is away


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its folder, MLflow run, the trials' table, the best trial and its preset file."""

    out: Path
    run_id: str
    trials: list[dict[str, Any]]
    best: dict[str, Any]
    preset: Path
    store: str
    over: str = ""

    def summary(self) -> str:
        drawn = ", ".join(f"{key}={_shown(value)}" for key, value in self.best["values"].items())
        states = [trial["state"] for trial in self.trials]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("complete", "pruned", "failed") if states.count(s))
        return (
            f"{self.out}: best of {len(self.trials)} trials ({counts}) is trial {self.best['number']}, validation AUROC "
            f"{self.best['auroc']:.3f}, with {drawn}.{f' Ended: {self.over}.' if self.over else ''} Next: brgsa train "
            f"--preset {self.preset} --data {self.store}"
        )


def tune(
    store_path: Path | str,
    base: RunConfig,
    spaces: Sequence[str],
    options: SearchOptions = SearchOptions(),
    *,
    name: str | None = None,
    out: Path = Path("searches"),
    goals: Sequence[str] = ("auroc",),
    sampler: str = "tpe",
    pruner: str = "none",
    seed: int = 0,
    storage: str | None = None,
    preset: str | None = None,
    go_on: bool = False,
) -> SearchResult:
    """Search `spaces` for the configuration with the best validation AUROC, starting from `base`.

    Summary styles that the store does not hold yet are computed first.

    Args:
        name: of the search and its folder below `out`; default from the spaces.
        goals: "auroc", or two of "auroc", "common", "rare": means over all, the common, the rare abnormalities.
        sampler, pruner: see `study.SAMPLERS`, `study.PRUNERS`.
        storage: URL of a database for the study; default a journal file in the search's folder.
        go_on: where the search of this name has begun in the same way, go on with it: one command for every try.

    Raises:
        UserError: the space does not fit the configuration or the store, the name is taken, the cluster is too small, or no
            trial completed.
    """
    parameters = tune_spaces.load(spaces)
    _check_options(options, goals)
    study.check_choice(sampler, pruner, len(goals))
    store = Store.open(store_path)
    check_space(parameters, base)
    warm_start.given_points(parameters, options.points)
    _check_comparable(store, goals)
    folder = (out / (name or "+".join(Path(space).stem for space in spaces))).absolute()
    spec = SearchSpec(
        spaces=list(spaces),
        parameters=[json.loads(json.dumps(asdict(p))) for p in parameters],
        base=base.to_dict(),
        store=store.path,
        data=store.fingerprint,
        preset=preset,
        goals=[GOALS[goal] for goal in goals],
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        storage=storage,
    )
    begun = read_spec(folder) if go_on else None
    if begun is not None:
        _check_same(folder.name, begun, spec)
        return _run(folder, begun, store, options)
    learnt = warm_start.learn(options.warm_from, folder.parent, spec)
    _claim(folder, spec)
    return _run(folder, spec, store, options, learnt)


def resume(
    name: str, options: SearchOptions = SearchOptions(), *, out: Path = Path("searches"), spaces: Sequence[str] = ()
) -> SearchResult:
    """Go on with a search whose driver died, or that is to have more trials: finished trials are kept.

    Args:
        spaces: if given, must be the search's.

    Raises:
        UserError: there is no such search, it is over another space, or its store has changed.
    """
    folder = (out / name).absolute()
    spec = read_spec(folder)
    if spec is None:
        raise UserError(f"There is no search {name} in {out.absolute()}: name one of the folders there.")
    if spaces and list(spaces) != spec.spaces:
        raise UserError(
            f"The search {name} is over {spec.over()}, not over {' + '.join(spaces)}: leave --space out, or choose another "
            "--name."
        )
    _check_options(options, ("auroc",))
    if options.points or options.warm_from:
        raise UserError(
            f"--point and --warm-from say how a search begins, and {name} has begun: leave them out, or begin another one."
        )
    store = Store.open(spec.store)
    if store.fingerprint != spec.data:
        raise UserError(
            f"{store.path} has changed since the search {name} began: begin another one with another --name."
        )
    return _run(folder, spec, store, options)


def _check_same(name: str, begun: SearchSpec, wanted: SearchSpec) -> None:
    """Refuse to go on with a search as if it were another one."""
    was, now = (
        flatten(json.loads(json.dumps({**asdict(spec), "parent_run": "", "parameters": []})))
        for spec in (begun, wanted)
    )
    differing = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if differing or begun.parameters != wanted.parameters:
        key = differing[0] if differing else "parameters"
        what = f"{key.removeprefix('base.')} {was.get(key)}, not {now.get(key)}" if differing else "other ranges"
        raise UserError(
            f"The search {name} began with {what}: give the options that it began with, or --resume {name} alone, or begin "
            "another one with another name."
        )


def _check_options(options: SearchOptions, goals: Sequence[str]) -> None:
    for option, value in (("--trials", options.trials), ("--epochs", options.epochs), ("--patience", options.patience)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1, not {value}.")
    if options.hours is not None and not options.hours > 0:
        raise UserError(f"--hours must be above 0, not {options.hours}.")
    if not any((options.trials, options.hours, options.epochs, options.patience)):
        raise UserError("A search needs an end: give --trials, --hours, --epochs or --patience.")
    if options.gpu_share is not None and options.gpu_share < 0:
        raise UserError(f"--gpus-per-trial must not be negative, as {options.gpu_share} is.")
    if options.checkpoints not in CHECKPOINTS:
        raise UserError(f"--checkpoints takes one of {', '.join(CHECKPOINTS)}, not {options.checkpoints}.")
    unknown = [goal for goal in goals if goal not in GOALS]
    if unknown or not 1 <= len(set(goals)) == len(goals) <= 2:
        raise UserError(f"--goal takes one or two different of {', '.join(GOALS)}, not {', '.join(goals)}.")


def _claim(folder: Path, spec: SearchSpec) -> None:
    """Make the search's folder, or refuse one that is taken."""
    there = read_spec(folder)
    if there is not None:
        raise UserError(
            f"There is a search {folder.name} in {folder.parent} already, over {there.over()}; this one would be over "
            f"{spec.over()}: go on with that one with --resume {folder.name}, or choose another --name."
        )
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if folder.is_dir() and not any(folder.iterdir()):
            return  # a search that was killed before it had begun
        raise UserError(f"{folder} exists and is no search: choose another --name, or remove it.") from None
    except OSError as error:
        raise UserError(
            f"The search folder {folder} cannot be made ({error.strerror}): choose another --out."
        ) from error


def _run(
    folder: Path, spec: SearchSpec, store: Store, options: SearchOptions, learnt: Sequence[warm_start.Known] = ()
) -> SearchResult:
    quiet_environment()  # before Ray is imported, which reads it then
    import ray

    from brgsa_platform.search.searcher import Search

    base, parameters = RunConfig.from_tree(spec.base), spec.space()
    with ray_session():
        per_trial = TrialResources.of(base, options.concurrent, _gpu_share(options), ray.cluster_resources())
        _summarize_missing(store, parameters)
        check_fit(store, base)
        found = study.open_study(
            folder.name,
            folder,
            storage=spec.storage,
            goals=[tracking.short(goal) for goal in spec.goals],
            sampler=study.make_sampler(spec.sampler, spec.seed, parameters),
            pruner=spec.pruner,
            epochs=base.train.epochs,
        )
        search = Search(
            found,
            parameters,
            tuple(spec.goals),
            options.limits(),
            lambda number: study.make_sampler(spec.sampler, spec.seed, parameters, number),
            base.train.epochs,
        )
        with tracking.run(
            "tune",
            name=folder.name,
            params={"sampler": spec.sampler, "pruner": spec.pruner, "seed": spec.seed, "base": spec.base},
            tags=search_report.search_tags(spec.preset, store.fingerprint, spec.spaces),
            run_id=spec.parent_run if spec.parent_run and tracking.exists(spec.parent_run) else None,
        ) as run:
            spec = SearchSpec(**{**asdict(spec), "parent_run": run.run_id})
            files.write_json(folder / SEARCH_FILE, asdict(spec))
            if not found.get_trials(deepcopy=False):
                warm_start.begin(found, spec, options.points, learnt)
            try:
                _search(search, folder, spec, per_trial, options)
            finally:
                _settle(folder, found)
            result = _result(run, folder, spec, search)
            wanted = {"all": [row["number"] for row in result.trials], "best": [result.best["number"]], "none": []}
            _log_checkpoints(folder, wanted[options.checkpoints])
            return result


def _gpu_share(options: SearchOptions) -> float:
    import ray

    if options.gpu_share is not None:
        return options.gpu_share
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def _search(search: Search, folder: Path, spec: SearchSpec, per_trial: TrialResources, options: SearchOptions) -> None:
    """Run trials until a limit is reached."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is ours: Tune's would wait for the trials
    from ray import tune as ray_tune
    from ray.tune import RunConfig as TuneRunConfig
    from ray.tune import TuneConfig, Tuner

    from brgsa_platform.search.searcher import StudyScheduler, StudySearcher
    from brgsa_platform.search.watch import Watch

    # A failed trial stands in the table with its reason; Tune's traceback of it is not the user's business.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    base = RunConfig.from_tree(spec.base)
    inside = {"workers": 0} if base.train.workers <= 1 else {}
    settings = {
        "base": merge(spec.base, {"train": {**inside, "threads": per_trial.threads}}),
        "store": spec.store,
        "folder": str(folder),
        "preset": spec.preset,
        "space": ",".join(spec.spaces),
        "parent_run": spec.parent_run,
        "uri": tracking.tracking_uri(),
        "experiment": tracking.experiment_name(),
        "patience": str(MLFLOW_PATIENCE),
        "gpu_share": _gpu_share(options),
        "cache": decode_once(Store.open(spec.store)),
    }
    # A trial in its own process trains there; one with workers of its own waits for them anywhere.
    where = nodes_for("training") if base.train.workers <= 1 else {}
    bundle: dict[str, float] = {"CPU": per_trial.cpus, **({"GPU": per_trial.gpus} if per_trial.gpus else {})}
    resources = ray_tune.PlacementGroupFactory([bundle], bundle_label_selector=[where] if where else None)
    with Watch(search, base.train.epochs, folder) as watch:
        Tuner(
            ray_tune.with_resources(ray_tune.with_parameters(run_trial, settings=settings), resources),
            tune_config=TuneConfig(
                num_samples=-1,
                max_concurrent_trials=per_trial.at_once,
                search_alg=StudySearcher(search),
                scheduler=StudyScheduler(search),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
                # The next trial takes over a warm process; one that waits for workers of its own does not let go in time.
                reuse_actors=base.train.workers <= 1,
            ),
            run_config=TuneRunConfig(
                name="ray", storage_path=str(folder), verbose=0, callbacks=[watch], log_to_file=True
            ),
        ).fit()


def _settle(folder: Path, found: Study) -> None:
    """Give each trial's MLflow run the status that the study gives the trial."""
    for trial in found.get_trials(deepcopy=False):
        file = trial_folder(folder, trial.number) / "run.json"
        if not file.is_file():
            continue
        state = search_report.STATES[trial.state.name]
        status = {"complete": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
        tags = {"brgsa.state": "interrupted" if state == "running" else state}
        if trial.user_attrs.get("reason"):
            tags["brgsa.reason"] = trial.user_attrs["reason"]
        tracking.settle(str(files.read_json(file)["mlflow_run_id"]), status, tags)


def _log_checkpoints(folder: Path, numbers: Sequence[int]) -> None:
    """Copy these trials' best checkpoints into their MLflow runs; a trial without an epoch has none."""
    with progress(len(numbers), "log checkpoints") as advance:
        for number in numbers:
            trial = trial_folder(folder, number)
            if run_checkpoints.whole(trial):
                run_id = str(files.read_json(trial / "run.json")["mlflow_run_id"])
                tracking.log_checkpoint(run_id, run_checkpoints.resolve(trial))
            advance(1)


def _result(run: tracking.Run, folder: Path, spec: SearchSpec, search: Search) -> SearchResult:
    rows = search_report.trial_rows(search.study)
    trials = {trial.number: trial for trial in search.study.get_trials(deepcopy=False)}
    rows = [row for row in rows if study.WARM_START_SOURCE not in trials[row["number"]].user_attrs]
    complete = [row for row in rows if row["state"] == "complete"]
    if not complete:
        reasons = [row["reason"] for row in rows if row["reason"]] or ["no trial was started"]
        raise UserError(f"None of the {len(rows)} trials of {folder.name} completed; the first: {reasons[0]}")
    best = max(complete, key=lambda row: (trials[row["number"]].values[0], -row["number"]))
    trial = trials[best["number"]]
    values = study.values_of(trial, spec.space())
    auroc = float(trial.values[0])
    chosen = {"number": trial.number, "auroc": auroc, "values": values}
    preset = folder / "best.yaml"
    aside = folder / f".best.{os.getpid()}"
    aside.write_text(yaml.safe_dump(drawn_config(RunConfig.from_tree(spec.base), values).to_dict(), sort_keys=False))
    os.replace(aside, preset)
    run.log_artifact(preset)
    search_report.log_search(run, search.study, folder)
    return SearchResult(folder, run.run_id, rows, chosen, preset, spec.store, search.over())


def _check_comparable(store: Store, goals: Sequence[str]) -> None:
    """Trials are compared by validation AUROC; losses of other temperatures or styles say nothing of each other."""
    try:
        labels = split_index(store, "validation").labels
    except UserError:
        raise UserError(
            f"{store.path} has no validation split to compare trials on: prepare it with a --validation-fraction."
        ) from None
    measured = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
    rare = rare_labels(split_index(store, "train"))
    for goal in goals:
        what = "abnormality" if goal == "auroc" else f"{goal} abnormality"
        if not (measured & {"auroc": True, "common": ~rare, "rare": rare}[goal]).any():
            raise UserError(
                f"{store.path} has no {what} that is both present and absent in its validation split, so trials cannot be "
                "compared: add labels, or prepare it with a larger --validation-fraction."
            )


def _summarize_missing(store: Store, parameters: Sequence[tune_spaces.Parameter]) -> None:
    from brgsa_platform.summaries.summarize import summarize

    wanted = {str(choice) for p in parameters if p.field == "data.style" for choice in p.choices}
    missing = sorted(wanted - set(store.styles()) - {"report"})
    if missing:
        summarize(store.path, missing)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else str(value)
