"""`brgsa ui`: MLflow's web pages on the tracking store of this folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from brgsa.errors import UserError
from brgsa_platform.tracking import connection

SECONDS_TO_END = 10.0


def ui(host: str = "127.0.0.1", port: int = 5000) -> int:
    """Serve MLflow on the tracking store until interrupted; return the server's exit status.

    Where MLFLOW_TRACKING_URI names a server (http, https), there is nothing to start: its address is printed.

    Raises:
        UserError: the port is taken or the host is not this machine's ("cannot-listen"), or the store cannot be made (see
            `connection.client`).
    """
    store = connection.tracking_uri()
    if connection.is_server(store):
        print(f"The runs are tracked by a server already: {connection.shown_uri()}")
        return 0
    check_free(host, port)
    connection.client()  # makes the folder of the default store, which the server does not
    print(
        f"MLflow shows {connection.shown_uri()} (Ctrl-C ends it) at http://{host}:{port}{runs_page()}",
        flush=True,
    )
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    # MLflow's job runner is seven more processes and serves nothing that is shown here. The store's address goes by the
    # environment: it may hold a password, which no process list may show.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ, "MLFLOW_BACKEND_STORE_URI": store}
    return run_until_told(command, environment)


def runs_page() -> str:
    """The address, from the server's root, of the page with the experiment's runs; the root is a page about language models."""
    return f"/#/experiments/{connection.experiment_id(connection.client())}/runs?workflowType=machine_learning"


def run_until_told(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a server until it ends by itself, or until Ctrl-C or SIGTERM; leave none of its processes behind.

    Returns:
        The server's exit status; 0 where it was told to end.
    """
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # by default this process dies and leaves the server behind
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and all that it started, which are a session of their own."""
    try:
        server.terminate()
        server.wait(timeout=SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def check_free(host: str, port: int) -> None:
    """Raise UserError ("cannot-listen") where a server could not listen."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            message = f"Cannot serve at {host}:{port} ({error}): choose another --port or --host."
            raise UserError(message, code="cannot-listen", value=(host, port)) from error
