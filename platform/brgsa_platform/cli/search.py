"""`brgsa tune` and `brgsa ablate`: several trainings compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brgsa.errors import UserError
from brgsa_platform.cli.options import ConfigFile, Overrides, Preset, StorePath

if TYPE_CHECKING:
    from brgsa_platform.search.result import SearchResult
    from brgsa_platform.search.spec import SearchOptions

DEFAULT_OUT = Path("searches")
ABLATIONS = Path("ablations")
NO_SEARCH = "A search needs --data STORE and --space NAME, or --resume NAME to go on with one."

Data = Annotated[str | None, typer.Option(help="A store that `brgsa prepare` wrote: a folder or an s3:// URL.")]
Spaces = Annotated[
    list[str] | None,
    typer.Option(help="A search space by name, or the path of a YAML file; several combine (docs/spaces.md)."),
]
Trials = Annotated[int | None, typer.Option(help="Trials in all; default 16 where nothing else ends the search.")]
Hours = Annotated[float | None, typer.Option(help="End after this many hours.")]
Epochs = Annotated[int | None, typer.Option(help="End after this many epochs of all trials together.")]
Patience = Annotated[int | None, typer.Option(help="End after this many trials without a better one.")]
Sampler = Annotated[str, typer.Option(help="tpe, gp, cmaes, random, qmc, grid or nsga2.")]
Pruner = Annotated[str, typer.Option(help="asha, median, hyperband or none.")]
Goals = Annotated[list[str] | None, typer.Option(help="auroc (default), common or rare; two for a Pareto set.")]
Resume = Annotated[
    str | None,
    typer.Option(help="Go on with the search of this name; with --data and --space, begin it where there is none."),
]
WarmFrom = Annotated[
    list[str] | None,
    typer.Option(help="Learn from another search, a run in MLflow, or all finished trainings there: mlflow."),
]
Points = Annotated[list[str] | None, typer.Option(help="Begin with a point: field=value,field=value. May be repeated.")]
Name = Annotated[str | None, typer.Option(help="The search's name, also of its folder.")]
Out = Annotated[Path, typer.Option(help="Folder of searches.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampler.")]
Concurrent = Annotated[int | None, typer.Option(help="Trials at a time; default as many as the cluster holds.")]
GpusPerTrial = Annotated[
    float | None, typer.Option(help="GPUs of each training process; a fraction lets trials share one.")
]
Checkpoints = Annotated[str, typer.Option(help="Which trials' checkpoints go to MLflow: all, best or none.")]
Storage = Annotated[str | None, typer.Option(help="Database URL of the study; default a file in its folder.")]
Confirm = Annotated[
    int | None,
    typer.Option(
        help="Train so many of the best configurations and the base anew, and say whether the best is better."
    ),
]
ConfirmSeeds = Annotated[int, typer.Option(help="New seeds on which --confirm trains each.")]


def tune(
    data: Data = None,
    space: Spaces = None,
    trials: Trials = None,
    hours: Hours = None,
    epochs: Epochs = None,
    patience: Patience = None,
    sampler: Sampler = "tpe",
    pruner: Pruner = "none",
    goal: Goals = None,
    resume: Resume = None,
    warm_from: WarmFrom = None,
    point: Points = None,
    preset: Preset = None,
    config: ConfigFile = None,
    name: Name = None,
    out: Out = DEFAULT_OUT,
    seed: Seed = 0,
    concurrent: Concurrent = None,
    gpus_per_trial: GpusPerTrial = None,
    checkpoints: Checkpoints = "all",
    storage: Storage = None,
    confirm: Confirm = None,
    confirm_seeds: ConfirmSeeds = 3,
    settings: Overrides = None,
) -> None:
    """Search with Tune and Optuna; each trial is a child run of the search in MLflow. Killed, it goes on with --resume."""
    from brgsa_platform.search import driver
    from brgsa_platform.search.spaces import base_config
    from brgsa_platform.search.spec import SearchMethod, SearchOptions, default_name
    from brgsa_platform.search.warm_start import parse_points

    options = SearchOptions(
        trials=_or_default(trials, hours, epochs, patience),
        hours=hours,
        epochs=epochs,
        patience=patience,
        concurrent=concurrent,
        gpu_share=gpus_per_trial,
        checkpoints=checkpoints,
        points=parse_points(point or ()),
        warm_from=warm_from or (),
    )
    if resume and not (data and space):
        done = driver.resume(out / resume, options, spaces=space or ())
    elif not data or not space:
        raise UserError(NO_SEARCH, code="no-search")
    else:
        done = driver.tune(
            data,
            base_config(preset, config, settings or []),
            space,
            options,
            SearchMethod(goals=goal or ("auroc",), sampler=sampler, pruner=pruner, seed=seed, storage=storage),
            folder=out / (resume or name or default_name(space)),
            preset=preset,
            go_on=resume is not None,
        )
    _tell(done, options, confirm, confirm_seeds)


def _tell(done: SearchResult, options: SearchOptions, best: int | None, seeds: int) -> None:
    """What the search found, and whether its best is confirmed, where that was asked for."""
    typer.echo(done.summary())
    if best is not None:
        from brgsa_platform.search.repeats.confirm import confirm

        typer.echo(confirm(done, options, best, seeds).summary())


def _or_default(trials: int | None, *others: float | None) -> int | None:
    """The number of trials; that of a search that nothing else would end, where none is given."""
    from brgsa_platform.search.spec import DEFAULT_TRIALS

    return DEFAULT_TRIALS if trials is None and all(limit is None for limit in others) else trials


def ablate(
    data: StorePath,
    preset: Preset = "demo",
    config: ConfigFile = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each arm.")] = 3,
    unseen: Annotated[
        list[str] | None, typer.Option(help="An abnormality that no training text speaks of; may be repeated.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="Of the evaluation, by name or path.")] = "honest",
    resamples: Annotated[int | None, typer.Option(help="Bootstrap resamples, in place of the protocol's.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The ablation's name, also of its folder; default the preset's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of ablations.")] = ABLATIONS,
    concurrent: Annotated[int | None, typer.Option(help="Trainings at a time; default as many as fit.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="GPUs of each training process.")] = None,
    settings: Overrides = None,
) -> None:
    """Train BrgSA with and without summaries and bank on several seeds, and tell what each half earns."""
    from brgsa_platform.config import load_config
    from brgsa_platform.search.repeats.ablation import AblateOptions
    from brgsa_platform.search.repeats.ablation import ablate as run

    options = AblateOptions(seeds, unseen or (), protocol, resamples, concurrent, gpus_per_trial)
    base = load_config(preset, config, settings or [])
    run(data, base, out / (name or Path(preset or "ablation").stem), options, preset=preset).print()
