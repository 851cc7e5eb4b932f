"""Whether the tracking store is there and lets us in, and what a user can do where it does not."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from brgsa.errors import UserError
from brgsa_platform.runtime import waiting
from brgsa_platform.runtime.addresses import without_credentials

T = TypeVar("T")


class Unreachable(UserError):
    """The server does not answer now; it may later."""


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def check(uri: str) -> None:
    """Raise UserError where the server does not answer or the SQLite folder cannot be written."""
    if uri.startswith("sqlite:///"):
        _check_folder(Path(uri.removeprefix("sqlite:///")).parent)
    elif is_server(uri):
        _check_server(uri)


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The MLflow store folder {folder} cannot be made ({error.strerror}): set MLFLOW_TRACKING_URI to a "
            "place that can be written."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"The MLflow store folder {folder} cannot be written: set MLFLOW_TRACKING_URI elsewhere.")


def _check_server(uri: str) -> None:
    shown = without_credentials(uri)
    parts = urlsplit(uri)
    # urllib takes no name and password in an address; this page asks for none.
    page = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/") + "/health").geturl()
    try:
        with urllib.request.urlopen(page, timeout=5, context=_tls()):
            pass
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403, 404):
            raise Unreachable(
                f"The MLflow server at {shown} answers with status {error.code}: check it, or unset "
                "MLFLOW_TRACKING_URI to track in a local file."
            ) from error
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"The MLflow server at {shown} (MLFLOW_TRACKING_URI) does not answer: start it, correct the address, "
            "or unset MLFLOW_TRACKING_URI to track in a local file."
        ) from error


def _tls() -> ssl.SSLContext:
    """The certificates that MLflow's own client goes by."""
    authority = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or os.environ.get("REQUESTS_CA_BUNDLE")
    context = ssl.create_default_context()
    if authority:
        folder = Path(authority).is_dir()
        context.load_verify_locations(None if folder else authority, authority if folder else None)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def refusal(error: Exception, uri: str) -> UserError | None:
    """What a user can do about a server that answered "not you" (401, 403); None for any other failure."""
    shown = without_credentials(uri)
    code = status(error)
    if code == 401:
        return UserError(
            f"The MLflow server at {shown} does not let you in: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to a user of it, or correct them."
        )
    if code == 403 and "Host header" in str(error):
        return UserError(
            f"The MLflow server at {shown} does not answer to this name: use another in MLFLOW_TRACKING_URI, or start the "
            "server with --allowed-hosts that names it."
        )
    if code == 403:
        return UserError(
            f"The MLflow server at {shown} lets you in but refuses this: use a user in MLFLOW_TRACKING_USERNAME who may "
            "edit the experiment, or another MLFLOW_EXPERIMENT_NAME."
        )
    return None


def patiently(work: Callable[[], T], uri: str, seconds: float) -> T:
    """Do it, and again for as many seconds while a server is away or its database is; any other failure is raised."""

    def is_away(error: Exception) -> bool:
        return is_server(uri) and (isinstance(error, Unreachable) or status(error) >= 500)

    return waiting.patiently(work, is_away, seconds)


def status(error: Exception) -> int:
    """The HTTP status of MLflow's errors (a refused connection is its 500) and of requests'; 0 of others."""
    of_mlflow = getattr(error, "get_http_status_code", None)
    if of_mlflow is not None:
        return int(of_mlflow())
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
