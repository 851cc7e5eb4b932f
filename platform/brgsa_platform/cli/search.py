"""`brgsa tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brgsa.errors import UserError
from brgsa_platform.cli.options import ConfigFile, Overrides, Preset


def tune(
    data: Annotated[
        str | None, typer.Option(help="A store that `brgsa prepare` wrote: a folder or an s3:// URL.")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(help="A search space by name, or the path of a YAML file; several combine (docs/spaces.md)."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials in all; default 16 where nothing else ends the search.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="End after this many hours.")] = None,
    epochs: Annotated[int | None, typer.Option(help="End after this many epochs of all trials together.")] = None,
    patience: Annotated[int | None, typer.Option(help="End after this many trials without a better one.")] = None,
    sampler: Annotated[str, typer.Option(help="tpe, gp, cmaes, random, qmc, grid or nsga2.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="asha, median, hyperband or none.")] = "none",
    goal: Annotated[
        list[str] | None, typer.Option(help="auroc (default), common or rare; two for a Pareto set.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with the search of this name; with --data and --space, begin it where there is none."),
    ] = None,
    warm_from: Annotated[
        list[str] | None,
        typer.Option(help="Learn from another search, a run in MLflow, or all finished trainings there: mlflow."),
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="Begin with a point: field=value,field=value. May be repeated.")
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    name: Annotated[str | None, typer.Option(help="The search's name, also of its folder.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of searches.")] = Path("searches"),
    seed: Annotated[int, typer.Option(help="Seed of the sampler.")] = 0,
    concurrent: Annotated[
        int | None, typer.Option(help="Trials at a time; default as many as the cluster holds.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="GPUs of each training process; a fraction lets trials share one.")
    ] = None,
    checkpoints: Annotated[
        str, typer.Option(help="Which trials' checkpoints go to MLflow: all, best or none.")
    ] = "all",
    storage: Annotated[
        str | None, typer.Option(help="Database URL of the study; default a file in its folder.")
    ] = None,
    settings: Overrides = None,
) -> None:
    """Search with Tune and Optuna; each trial is a child run of the search in MLflow. Killed, it goes on with --resume."""
    from brgsa_platform.config import load_config
    from brgsa_platform.search.driver import resume as go_on
    from brgsa_platform.search.driver import tune as run
    from brgsa_platform.search.points import parse_points
    from brgsa_platform.search.spec import DEFAULT_TRIALS, SearchMethod, SearchOptions, default_name

    endless = all(limit is None for limit in (trials, hours, epochs, patience))
    options = SearchOptions(
        trials=DEFAULT_TRIALS if endless else trials,
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
        typer.echo(go_on(out / resume, options, spaces=space or ()).summary())
        return
    if not data or not space:
        raise UserError(
            "A search needs --data STORE and --space NAME, or --resume NAME to go on with one.",
            code="incomplete-search",
        )
    done = run(
        data,
        load_config(preset, config, settings or []),
        space,
        options,
        SearchMethod(goals=goal or ("auroc",), sampler=sampler, pruner=pruner, seed=seed, storage=storage),
        folder=out / (resume or name or default_name(space)),
        preset=preset,
        go_on=resume is not None,
    )
    typer.echo(done.summary())
