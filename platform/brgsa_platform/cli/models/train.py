"""The verb that trains a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brgsa_platform.cli.options import ConfigFile, Overrides, Preset, StorePath


def train(
    data: StorePath,
    preset: Preset = None,
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/PRESET-HASH.")] = None,
    settings: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option(help="Say what it needs and takes, and whether it fits; start nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the dry run as JSON.")] = False,
    mfu: Annotated[float, typer.Option(help="Share of the card's matrix rate, for the dry run's hours.")] = 0.4,
) -> None:
    """Train with Ray Train on batches from Ray Data. Killed, it goes on from its last checkpoint when started again."""
    from brgsa_platform.config import load_config

    resolved = load_config(preset, config, settings or [])
    if dry_run:
        from brgsa_platform.planning.dry_run import dry_run as plan

        planned = plan(data, resolved, mfu)
        typer.echo(planned.to_json() if json else planned.to_text())
        return
    from brgsa_platform.training.driver import train as run

    done = run(data, resolved, out=out, preset=preset)
    score = f", validation AUROC {done.best['val/auroc']:.3f}" if "val/auroc" in done.best else ""
    typer.echo(
        f"{done.out}: best epoch {done.best['epoch']} of {len(done.history)}{score}. "
        f"Next: brgsa evaluate {_short(done.out)} --data {data}"
    )


def _short(path: Path) -> Path:
    """The path as it is written from the current folder, where it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
