"""Why Ray cannot be joined or started here, each cause with its mend."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from brgsa.errors import UserError
from brgsa_platform.runtime.storage import error_line

SECONDS_TO_ANSWER = 5.0
SOCKET_PATH = 107  # bytes that Linux allows
# Ray's sockets lie in FOLDER/ray/session_2026-11-26_18-13-42_123456_4194304/sockets/plasma_store.
LONGEST_FOLDER = SOCKET_PATH - len("/ray/session_2026-11-26_18-13-42_123456_4194304/sockets/plasma_store")


def check_address(address: str, limit: float = SECONDS_TO_ANSWER) -> None:
    """Check that a Ray cluster answers at an address; Ray itself would try for many minutes.

    Args:
        address: HOST:PORT, ray://HOST:PORT, or "auto": the cluster that runs on this machine; "" and "local" name none.
        limit: seconds for the answer.

    Raises:
        UserError: no Ray answers there ("no-ray"), or it is a dashboard ("dashboard-address").
    """
    if address == "auto":
        note = Path(
            _temporary_folder(), "ray", "ray_current_cluster"
        )  # Ray's own note, which outlives a killed cluster
        address = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    if address in ("", "local"):
        return
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS is {address}, a dashboard: give HOST:6379 or auto on a node of the cluster, ray://HOST:10001 from "
            "elsewhere, or run the verb there with `brgsa submit`.",
            code="dashboard-address",
            field="RAY_ADDRESS",
            value=address,
        )
    try:
        _ask(address.removeprefix("ray://"), limit)
    except (OSError, ValueError) as error:
        raise no_ray(address, error) from error


def _ask(address: str, limit: float) -> None:
    """Ask a gRPC server at HOST:PORT how it is; any answer of its own will do.

    Raises:
        OSError, ValueError: there is none.
    """
    import grpc

    parts = urlsplit(f"//{address}")
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=limit):
        pass
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return  # with certificates that Ray alone knows
    options = [("grpc.enable_http_proxy", 0)]  # as Ray's own
    with grpc.insecure_channel(address, options) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=limit)
        except grpc.RpcError as error:
            silent = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if silent or "http2 header with status" in error.details():  # a web server or a proxy
                raise ConnectionError(
                    "something there accepts the connection and does not answer as Ray does"
                ) from error


def no_ray(address: str, error: Exception) -> UserError:
    """No Ray answers at the address of RAY_ADDRESS."""
    return UserError(
        f"No Ray answers at {address} ({error_line(error)}): start the cluster, correct RAY_ADDRESS (or --ray), or leave it "
        "out to work on this machine alone.",
        code="no-ray",
        field="RAY_ADDRESS",
        value=address,
    )


def check_machine() -> None:
    """Check that Ray can be started on this machine.

    Raises:
        UserError: the folder for temporary files is unfit ("temporary-folder").
    """
    folder = _temporary_folder()
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        raise UserError(
            f"{variable} is {folder}: the path is too long for Ray's sockets. Set RAY_TMPDIR to a folder of at most "
            f"{LONGEST_FOLDER} characters on this machine's own disk.",
            code="temporary-folder",
            field=variable,
            value=folder,
        )
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise UserError(
            f"Ray cannot write to {folder} ({error_line(error)}): make room there, or set RAY_TMPDIR to another folder.",
            code="temporary-folder",
            field=variable,
            value=folder,
        ) from error


def start_refusal(error: Exception, address: str) -> UserError:
    """What a user can do where Ray could not be joined (at an address) or started (without one).

    Its code is "no-ray", "ray-versions" or "ray-start".
    """
    line = error_line(error)
    if "ersion mismatch" in str(error):
        return UserError(
            f"The cluster at {address} runs another version of Ray or Python than this process: use the same image or "
            "environment on both sides.",
            code="ray-versions",
            field="RAY_ADDRESS",
            value=address,
        )
    if address:
        return no_ray(address, error)
    return UserError(
        f"Ray does not start on this machine ({line}): try again when the machine has less to do, and look at the newest "
        f"folder in {Path(_temporary_folder(), 'ray')}, whose logs say why.",
        code="ray-start",
    )


def _temporary_folder() -> str:
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
