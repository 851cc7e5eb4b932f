"""`brgsa report`: what evaluations found, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Runs, checkpoints or --out folders after `brgsa evaluate`; the first beside each other."),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file; a report that is there is replaced.")],
    texts: Annotated[
        bool,
        typer.Option("--texts", help="Show report texts and volume ids in the examples: keep the file to yourself."),
    ] = False,
    heatmaps: Annotated[int, typer.Option(help="Heat maps of hits and misses, of each run; 0 for none.")] = 4,
) -> None:
    """Write one HTML file that a browser opens without a network: tables, curves, pictures, and what they rest on."""
    from brgsa_platform.reports.report import report as run
    from brgsa_platform.runtime.console import byte_size

    made = run(runs, out, texts=texts, maps=heatmaps)
    for line in made.said:
        typer.echo(line)
    typer.echo(f"Written: {made.path} ({byte_size(made.path.stat().st_size)})")
