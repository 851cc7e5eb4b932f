"""`brgsa demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller: fewer scans, trials and resamples.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of phantom, training and search.")] = 0,
) -> None:
    """The whole way on synthetic CT: phantom, prepare, summarize, train, tune, evaluate; one table side by side."""
    from brgsa_platform.demo import demo as run

    run(out, quick=quick, seed=seed)
