"""`brgsa ui`: MLflow's pages for one person, or with `--server` a tracking server for many."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from brgsa.errors import UserError

FOR_SERVER = "With --server"


def ui(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    server: Annotated[
        bool, typer.Option("--server", help="Serve other machines: with passwords, a database and artifacts by HTTP.")
    ] = False,
    database_file: Annotated[
        Path | None,
        typer.Option(
            help=f"{FOR_SERVER}: file that holds postgresql://USER:PASSWORD@HOST/NAME [default: MLFLOW_BACKEND_STORE_URI]."
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(help=f"{FOR_SERVER}: file that holds the admin's password [default: MLFLOW_AUTH_ADMIN_PASSWORD]."),
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help=f"{FOR_SERVER}: folder or s3:// URL for artifacts [default: mlartifacts].")
    ] = None,
    allowed_hosts: Annotated[
        str | None, typer.Option(help=f"{FOR_SERVER}: names that clients may call it by, separated by commas.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help=f"{FOR_SERVER}: number of processes [default: 2].", min=1)] = None,
    tls_cert: Annotated[Path | None, typer.Option(help=f"{FOR_SERVER}: certificate (PEM), for https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help=f"{FOR_SERVER}: the certificate's key (PEM).")] = None,
) -> None:
    """Serve the MLflow UI on the tracking store; with --server, run a tracking server that can be left running."""
    options: dict[str, Any] = {
        "database_file": database_file,
        "password_file": password_file,
        "artifacts": artifacts,
        "allowed_hosts": allowed_hosts and [name.strip() for name in allowed_hosts.split(",")],
        "workers": workers,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if server:
        from brgsa_platform.tracking.server import ServerOptions, serve

        sys.exit(serve(ServerOptions(host=host, port=port, **given)))
    if given:
        option = next(iter(given)).replace("_", "-")
        raise UserError(
            f"--{option} is for a tracking server: give --server too.", code="needs-server", field=f"--{option}"
        )
    from brgsa_platform.tracking.ui import ui as run

    sys.exit(run(host, port))
