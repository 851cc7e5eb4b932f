"""`brgsa tune`: Tune and Optuna over trainings, each a child run of the search in MLflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.config import RunConfig
from brgsa_platform.loading.batches import rare_labels, split_index
from brgsa_platform.loading.volume_cache import VolumeCache, decode_once
from brgsa_platform.runtime.locks import held, is_claim
from brgsa_platform.runtime.session import quiet_environment, ray_session
from brgsa_platform.search import study as studies
from brgsa_platform.search import warm_start
from brgsa_platform.search.report import search_tags
from brgsa_platform.search.result import SearchResult, conclude, log_checkpoints, settle
from brgsa_platform.search.spaces import check_space
from brgsa_platform.search.spec import (
    SearchMethod,
    SearchOptions,
    SearchSpec,
    check_same,
    default_name,
    read_spec,
    write_spec,
)
from brgsa_platform.search.trials import TrialResources, TrialSettings, placement, run_trial
from brgsa_platform.store import lineage
from brgsa_platform.store.doubts import warn_of_doubts
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection, query
from brgsa_platform.training.driver import check_fit

if TYPE_CHECKING:
    from brgsa_platform.search.searcher import Search

SEARCHES = Path("searches")
MLFLOW_PATIENCE = 300.0  # seconds that a trial waits for an MLflow server that is away


def tune(
    store_path: Path | str,
    base: RunConfig,
    spaces: Sequence[str],
    options: SearchOptions = SearchOptions(),
    method: SearchMethod = SearchMethod(),
    *,
    folder: Path | None = None,
    preset: str | None = None,
    go_on: bool = False,
) -> SearchResult:
    """Search `spaces` for the configuration with the best validation AUROC, starting from `base`.

    Summary styles that the store does not hold yet are computed first.

    Args:
        spaces: names, or paths of YAML files.
        options: how the search is run; method: how it finds its points.
        folder: of the search; its name is the search's. Default searches/SPACES.
        preset: name of the base's preset, for MLflow's tag.
        go_on: where the search in this folder has begun in the same way, go on with it: one command for every try.

    Raises:
        UserError: the space does not fit the configuration or the store; search-exists or folder-taken; folder-in-use by
            another process; cluster-too-small; no-trial-completed; endless-search.
    """
    options.check_end(method)
    parameters = tune_spaces.load(spaces)
    store = Store.open(store_path)
    check_space(parameters, base)
    warn_of_doubts(store)
    warm_start.given_points(parameters, options.points)
    _check_comparable(store, method.goals)
    folder = (folder or SEARCHES / default_name(spaces)).absolute()
    spec = SearchSpec(list(spaces), parameters, base, store.path, store.fingerprint, preset, method)
    begun = read_spec(folder) if go_on else None
    if begun is not None:
        check_same(folder.name, begun, spec)
        with held(folder, "tune"):
            return _run(folder, begun, store, options)
    earlier = warm_start.learn(options.warm_from, folder.parent, spec)
    _claim(folder, spec)
    with held(folder, "tune"):
        studies.forget(folder)
        return _run(folder, spec, store, options, earlier)


def resume(folder: Path, options: SearchOptions = SearchOptions(), *, spaces: Sequence[str] = ()) -> SearchResult:
    """Go on with a search whose driver died, or that is to have more trials: finished trials are kept.

    Args:
        spaces: if given, must be the search's.

    Raises:
        UserError: unknown-search in this folder; other-space; begun-already (points or a warm start); store-changed;
            endless-search; folder-in-use by another process.
    """
    folder = folder.absolute()
    name, spec = folder.name, read_spec(folder)
    if spec is None:
        raise UserError(
            f"There is no search {name} in {folder.parent}: name one of the folders there.",
            code="unknown-search",
            field=name,
        )
    options.check_end(spec.method)
    if spaces and list(spaces) != list(spec.spaces):
        raise UserError(
            f"The search {name} is over {spec.space_words()}, not over {' + '.join(spaces)}: leave --space out, or choose "
            "another --name.",
            code="other-space",
            field="--space",
            value=list(spaces),
        )
    if options.points or options.warm_from:
        raise UserError(
            f"--point and --warm-from say how a search begins, and {name} has begun: leave them out, or begin another one.",
            code="begun-already",
            field="--point" if options.points else "--warm-from",
        )
    store = Store.open(spec.store)
    if store.fingerprint != spec.data:
        raise UserError(
            f"{store.path} has changed since the search {name} began: begin another one with another --name.",
            code="store-changed",
            field=store.path,
        )
    with held(folder, "tune"):
        return _run(folder, spec, store, options)


def _claim(folder: Path, spec: SearchSpec) -> None:
    """Make the search's folder, or refuse one that is taken."""
    there = read_spec(folder)
    if there is not None:
        raise UserError(
            f"There is a search {folder.name} in {folder.parent} already, over {there.space_words()}; this one would be over "
            f"{spec.space_words()}: go on with that one with --resume {folder.name}, or choose another --name.",
            code="search-exists",
            field="--name",
            value=folder.name,
        )
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if folder.is_dir() and all(_of_no_search(entry.name) for entry in folder.iterdir()):
            return  # of a search that begins now, or was killed before it had begun
        raise UserError(
            f"{folder} exists and is no search: choose another --name, or remove it.",
            code="folder-taken",
            field="--name",
            value=folder.name,
        ) from None
    except OSError as error:
        raise UserError(
            f"The search folder {folder} cannot be made ({error.strerror}): choose another --out.",
            code="folder-not-made",
            field="--out",
            value=str(folder.parent),
        ) from error


def _of_no_search(name: str) -> bool:
    """Whether a file in a folder without a search is what one leaves that has not begun: a lock, or an unused journal."""
    return is_claim(name) or name.startswith(studies.JOURNAL)


def _run(
    folder: Path,
    spec: SearchSpec,
    store: Store,
    options: SearchOptions,
    earlier: Sequence[warm_start.EarlierTraining] = (),
) -> SearchResult:
    """Begin the search or go on with it, to its end."""
    quiet_environment()  # before Ray is imported, which reads it then
    import ray

    from brgsa_platform.search.searcher import Search

    with ray_session():
        resources = TrialResources.of(spec.base, options, ray.cluster_resources())
        _summarize_missing(store, spec.parameters)
        check_fit(store, spec.base)
        storage = studies.open_storage(folder, spec)
        study = studies.open_study(folder.name, spec, storage)
        method = spec.method
        with tracking.run(
            "tune",
            name=folder.name,
            params={
                "sampler": method.sampler, "pruner": method.pruner, "seed": method.seed, "base": spec.base.to_dict()
            },
            tags=search_tags(spec.preset, store.fingerprint, spec.spaces),
            run_id=spec.parent_run if spec.parent_run and query.exists(spec.parent_run) else None,
            data=lineage.datasets(store, train="training", validation="validation"),
        ) as run:  # fmt: skip
            if not study.get_trials(deepcopy=False):
                warm_start.begin(study, spec, options.points, earlier)
            spec = spec.with_run(run.run_id)
            write_spec(folder, spec)  # from here on the search has begun
            search = Search(spec, study, storage, options.limits)
            try:
                _run_trials(search, folder, resources, options.cache or decode_once(store))
            finally:
                settle(folder, study)
            result = conclude(run, folder, search)
            log_checkpoints(result, options.checkpoints)
            return result


def _run_trials(search: Search, folder: Path, resources: TrialResources, cache: VolumeCache | None) -> None:
    """Run trials until a limit is reached."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's handler would make Ctrl-C wait for the trials
    from ray import tune as ray_tune
    from ray.tune import RunConfig as TuneRunConfig
    from ray.tune import TuneConfig, Tuner

    from brgsa_platform.search.searcher import StudyScheduler, StudySearcher
    from brgsa_platform.search.watch import Watch

    # A failed trial is in the table with its reason; the user has no need of Tune's traceback.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    spec = search.spec
    settings = TrialSettings(
        base=spec.base,
        store=spec.store,
        folder=folder,
        preset=spec.preset,
        space=",".join(spec.spaces),
        parent_run=spec.parent_run,
        tracking_uri=connection.tracking_uri(),
        experiment=connection.experiment_name(),
        patience=MLFLOW_PATIENCE,
        resources=resources,
        cache=cache,
    )
    trainable = ray_tune.with_parameters(run_trial, settings=settings)
    with Watch(search, folder) as watch:
        Tuner(
            ray_tune.with_resources(trainable, placement(resources)),
            tune_config=TuneConfig(
                num_samples=-1,
                max_concurrent_trials=resources.at_once,
                search_alg=StudySearcher(search),
                scheduler=StudyScheduler(search),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
                # The next trial takes over a warm process; one that waits for workers of its own does not let go in time.
                reuse_actors=resources.inside,
            ),
            run_config=TuneRunConfig(
                name="ray", storage_path=str(folder), verbose=0, callbacks=[watch], log_to_file=True
            ),
        ).fit()


def _check_comparable(store: Store, goals: Sequence[str]) -> None:
    """Refuse a store that cannot tell trials apart by their validation AUROC.

    Losses do not serve: those of other temperatures or styles are not on one scale.
    """
    try:
        labels = split_index(store, "validation").labels
    except UserError as error:
        if error.code != "empty-split":
            raise
        raise UserError(
            f"{store.path} has no validation split to compare trials on: prepare it with a --validation-fraction.",
            code="no-validation",
            field=store.path,
        ) from None
    measured = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
    rare = rare_labels(split_index(store, "train"))
    for goal in goals:
        what = "abnormality" if goal == "auroc" else f"{goal} abnormality"
        if not (measured & {"auroc": True, "common": ~rare, "rare": rare}[goal]).any():
            raise UserError(
                f"{store.path} has no {what} that is both present and absent in its validation split, so trials cannot be "
                "compared: add labels, or prepare it with a larger --validation-fraction.",
                code="goal-not-measured",
                field="--goal",
                value=goal,
            )


def _summarize_missing(store: Store, parameters: Sequence[tune_spaces.Parameter]) -> None:
    """Compute the summary styles that the space draws and the store lacks."""
    from brgsa.summaries.styles.style import is_file, load_style
    from brgsa_platform.summaries.summarize import summarize

    wanted = {str(choice) for p in parameters if p.field == "data.style" for choice in p.choices}
    there = {*store.styles(), "report"}
    missing = sorted(style for style in wanted if (load_style(style).key if is_file(style) else style) not in there)
    if missing:
        summarize(store.path, missing)
