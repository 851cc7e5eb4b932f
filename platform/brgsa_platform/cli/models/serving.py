"""Verbs that give a model to others: register it in MLflow, serve a page."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from brgsa_platform.cli.models.scans import Checkpoint, TrustGeometry

Host = Annotated[str, typer.Option(help="Address to listen at; the default is seen by this machine alone.")]


def register(
    checkpoint: Checkpoint,
    name: Annotated[str, typer.Option(help="Of the registered model.")] = "brgsa",
) -> None:
    """Register a checkpoint in MLflow, with its model card: the next version of a model, and its champion."""
    from brgsa_platform.serving.register import register as run
    from brgsa_platform.tracking import connection

    made = run(checkpoint, name)
    of = "" if made.run_id is None else f", of the run {made.run_id[:8]}"
    typer.echo(f"{made.name}: version {made.number} is the champion{of}.")
    # MLflow's own command does not know our default.
    store = (
        "" if os.environ.get("MLFLOW_TRACKING_URI") else f"MLFLOW_TRACKING_URI={shlex.quote(connection.shown_uri())} "
    )
    typer.echo(f"Next: {store}mlflow models serve --env-manager local --model-uri {made.uri}")


def serve(
    checkpoint: Checkpoint,
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 8000,
    host: Host = "127.0.0.1",
    max_mb: Annotated[int, typer.Option(help="Largest upload, in megabytes.", min=1)] = 1000,
    trust_geometry: TrustGeometry = False,
) -> None:
    """Serve a page: drop a CT, look at its slices, ask for prompts, see where they are supported."""
    from brgsa_platform.serving.page.serve import serve as run

    run(checkpoint, host, port, max_mb, trust_geometry=trust_geometry)
