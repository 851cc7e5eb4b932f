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

    With MLFLOW_TRACKING_URI at a server (http, https) there is nothing to start: its address is printed.

    Raises UserError when the port is taken, the host is not this machine's, or the store cannot be made.
    """
    store = connection.tracking_uri()
    if store.startswith(("http://", "https://")):
        print(f"The runs are tracked by a server already: {connection.shown_uri()}")
        return 0
    check_free(host, port)
    connection.client()  # makes the folder of the default store, which the server does not
    print(
        f"MLflow shows {connection.shown_uri()} (Ctrl-C ends it) at http://{host}:{port}{runs_page()}",
        flush=True,
    )
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    # MLflow's job runner, seven more processes, serves nothing that is shown here. The store's address, which may hold a
    # password, stands in no process list.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ, "MLFLOW_BACKEND_STORE_URI": store}
    return run_until_told(command, environment)


def runs_page() -> str:
    """The address, from the server's root, of the page with the experiment's runs; the root is a page about language models."""
    return f"/#/experiments/{connection.experiment_id(connection.client())}/runs?workflowType=machine_learning"


def run_until_told(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a server until it ends by itself, or until Ctrl-C or SIGTERM (status 0); leave none of its processes behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, or the server would be left behind
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and whatever it started: they are a session of their own."""
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
    """Raise UserError where a server could not listen."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"Cannot serve at {host}:{port} ({error}): choose another --port or --host.") from error
