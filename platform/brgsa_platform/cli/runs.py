"""`brgsa runs …`: the runs of the tracking store, shown in a terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer

app = typer.Typer(help="Past runs: list, show, compare, and the best run.", no_args_is_help=True, rich_markup_mode=None)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the beginning of it, or its name.")]
Search = Annotated[str | None, typer.Option(help="Only the trials of this search (id or name).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_command(
    search: Search = None,
    verb: Annotated[str | None, typer.Option(help="Only runs of this verb: train, tune, trial, evaluate …")] = None,
    limit: Annotated[int, typer.Option(help="Number of runs at most.", min=1)] = 20,
    json: Json = False,
) -> None:
    """Runs, newest first; a search and its trials are one line."""
    from brgsa_platform.tracking import runs
    from brgsa_platform.tracking import tables as runs_tables

    records = runs.list_runs(search, verb, limit)
    if json:
        _print_json(records)
    else:
        runs_tables.print_list(records, f"No runs in {runs.experiment_and_store()}.")


@app.command("show")
def show_command(run: RunArgument, json: Json = False) -> None:
    """One run: what differs from its preset first, then metrics (last, best), tags and artifacts."""
    from brgsa_platform.tracking import runs
    from brgsa_platform.tracking import tables as runs_tables

    record = runs.show_run(run)
    _print_json(record) if json else runs_tables.print_run(record)


@app.command("compare")
def compare_command(
    run: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Ids, beginnings of ids, or names.")],
    json: Json = False,
) -> None:
    """Parameters that differ and metrics, side by side."""
    from brgsa_platform.tracking import runs
    from brgsa_platform.tracking import tables as runs_tables

    comparison = runs.compare_runs(run)
    _print_json(comparison) if json else runs_tables.print_comparison(comparison)


@app.command("best")
def best_command(
    metric: Annotated[str, typer.Option(help="The largest value is the best; of a loss the smallest.")] = "best/auroc",
    search: Search = None,
    json: Json = False,
) -> None:
    """The best training or trial, and the command that evaluates it."""
    from brgsa_platform.tracking import runs
    from brgsa_platform.tracking import tables as runs_tables

    best = runs.best_run(metric, search)
    _print_json(best) if json else runs_tables.print_best(best)


def _print_json(tree: Any) -> None:
    import json

    typer.echo(json.dumps(tree, indent=1))
