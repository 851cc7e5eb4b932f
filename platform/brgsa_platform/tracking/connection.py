"""The tracking store: where it is, a client of it, and what a user can do where it does not let us in."""

from __future__ import annotations

import functools
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from brgsa.errors import UserError
from brgsa_platform.runtime import addresses, waiting
from brgsa_platform.runtime.addresses import without_credentials
from brgsa_platform.tracking import databases

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "brgsa"
STORE_FOLDER = "mlruns-brgsa"
PATIENCE = "BRGSA_MLFLOW_PATIENCE_S"
SECONDS_TO_ANSWER = 5.0

T = TypeVar("T")


class Unreachable(UserError):
    """The server does not answer now; it may later."""


def tracking_uri() -> str:
    """The tracking store: `MLFLOW_TRACKING_URI`, else SQLite in ./mlruns-brgsa/ of the current folder.

    Raises:
        UserError: see `databases.store_uri`.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return databases.store_uri(given) if given else databases.sqlite_uri(Path(STORE_FOLDER, "mlflow.db"))


def shown_uri() -> str:
    """The tracking store as it may stand on a screen: without a password."""
    return without_credentials(tracking_uri())


def experiment_name() -> str:
    """The MLflow experiment: `MLFLOW_EXPERIMENT_NAME`, else "brgsa"."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or EXPERIMENT


def experiment_id(api: MlflowClient) -> str:
    """The experiment's id; it is made where there is none.

    Raises:
        UserError: it was deleted ("mlflow-experiment-deleted").
    """
    from mlflow.exceptions import MlflowException

    name, file = experiment_name(), sqlite_file(api.tracking_uri)
    experiment = api.get_experiment_by_name(name)
    if experiment is None:
        location = None if file is None else (file.parent / "artifacts").as_uri()
        try:
            return str(api.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process may have made it between the two calls
            experiment = api.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"The MLflow experiment {name} is deleted: restore it with `mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}`, or set MLFLOW_EXPERIMENT_NAME to another name.",
            code="mlflow-experiment-deleted",
            field="MLFLOW_EXPERIMENT_NAME",
            value=name,
        )
    return str(experiment.experiment_id)


def patience() -> float:
    """Seconds to wait for a server that is away: `BRGSA_MLFLOW_PATIENCE_S`, by default 0.

    A search sets it for its trials: a server that is being restarted must not cost an hour's training.

    Raises:
        UserError: the variable holds no number ("bad-variable").
    """
    given = os.environ.get(PATIENCE, "0")
    try:
        return float(given)
    except ValueError as error:
        message = f"{PATIENCE} is {given!r}: set it to a number of seconds."
        raise UserError(message, code="bad-variable", field=PATIENCE, value=given) from error


def client(uri: str | None = None) -> MlflowClient:
    """A client of a tracking store that answers and lets us in; by default of `tracking_uri()`.

    Raises:
        UserError: the server does not answer ("mlflow-away") or does not let us in (see `refusal`), or the database does
            not open (see `databases`).
    """
    uri = uri or tracking_uri()
    check(uri)
    _check_admitted(uri)
    return unchecked_client(uri)


@functools.lru_cache
def unchecked_client(uri: str) -> MlflowClient:
    """A client that asks the store nothing before its first use; one a process for each store."""
    addresses.reach_this_machine_directly()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    for noisy in ("alembic.runtime.migration", "mlflow.store.db.utils"):  # MLflow sets their levels when it is imported
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def is_server(uri: str) -> bool:
    """Whether a tracking store is reached over HTTP."""
    return uri.startswith(("http://", "https://"))


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    return Path(uri.removeprefix(databases.SQLITE)) if uri.startswith(databases.SQLITE) else None


def check(uri: str) -> None:
    """Look whether a server answers, whoever asks, or whether a database opens.

    Raises:
        UserError: it does not ("mlflow-away"), or see `databases`.
    """
    file = sqlite_file(uri)
    if file is not None:
        databases.check_sqlite(file)
    elif is_server(uri):
        _check_answers(uri)
    else:
        databases.check_database(uri)


def _check_answers(uri: str) -> None:
    addresses.reach_this_machine_directly()
    shown, parts = without_credentials(uri), urlsplit(uri)
    proxy = addresses.proxy_of(uri)
    way = f" through the proxy {proxy} (http_proxy, no_proxy)" if proxy else ""
    # urllib takes no name and password in an address; this page asks for none.
    page = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/") + "/health").geturl()
    try:
        with urllib.request.urlopen(page, timeout=SECONDS_TO_ANSWER, context=_tls()):
            pass
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403, 404):
            raise Unreachable(
                f"The MLflow server at {shown} answers with status {error.code}: check it, or unset "
                "MLFLOW_TRACKING_URI to track in a local file.",
                code="mlflow-away",
                value=shown,
            ) from error
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"The MLflow server at {shown} (MLFLOW_TRACKING_URI) does not answer{way}: start it, correct the "
            "address, or unset MLFLOW_TRACKING_URI to track in a local file.",
            code="mlflow-away",
            value=shown,
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


@functools.lru_cache
def _check_admitted(uri: str) -> None:
    """Ask a question that needs a user's name and password, or a database's tables; what was right once is not asked again."""
    file = sqlite_file(uri)
    with permitted(uri), databases.made_by_one(file) if file else nullcontext():
        unchecked_client(uri).search_experiments(max_results=1)


@contextmanager
def permitted(uri: str) -> Iterator[None]:
    """Turn what the server refuses this user into a UserError; any other failure passes."""
    try:
        yield
    except Exception as error:
        if (refused := refusal(error, uri)) is not None:
            raise refused from error
        raise


def refusal(error: Exception, uri: str) -> UserError | None:
    """What a user can do about a server that refuses them; None for any other failure.

    Its code is "mlflow-login" (name or password), "mlflow-host" (the server does not go by this name),
    "mlflow-permission", "mlflow-locked" or "mlflow-database".
    """
    shown, code = without_credentials(uri), status(error)
    if _is_database_error(error):
        return databases.unopened(shown, error)
    if code == 401:
        return UserError(
            f"The MLflow server at {shown} does not let you in: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to a user of it, or correct them.",
            code="mlflow-login",
            value=shown,
        )
    if code == 403 and "Host header" in str(error):
        return UserError(
            f"The MLflow server at {shown} does not answer to this name: use another in MLFLOW_TRACKING_URI, or start the "
            "server with --allowed-hosts that names it.",
            code="mlflow-host",
            value=shown,
        )
    if code == 403:
        return UserError(
            f"The MLflow server at {shown} lets you in but refuses this: use a user in MLFLOW_TRACKING_USERNAME who may "
            "edit the experiment, or another MLFLOW_EXPERIMENT_NAME.",
            code="mlflow-permission",
            value=shown,
        )
    return None


def _is_database_error(error: Exception) -> bool:
    from sqlalchemy.exc import SQLAlchemyError  # MLflow brings it

    return isinstance(error, SQLAlchemyError) or "database is locked" in str(error)


def patiently(work: Callable[[], T], uri: str, seconds: float) -> T:
    """Do a piece of work that may be repeated, again for so many seconds while a server or its database is away.

    Raises:
        Exception: what `work` raised last; a local store is never away.
    """
    return waiting.patiently(work, lambda error: is_server(uri) and is_away(error), seconds)


def is_away(error: Exception) -> bool:
    """Whether a server failed to answer, or its database did."""
    return isinstance(error, Unreachable) or status(error) >= 500


def status(error: Exception) -> int:
    """The HTTP status of MLflow's errors (a refused connection is its 500) and of requests'; 0 of others."""
    of_mlflow = getattr(error, "get_http_status_code", None)
    if of_mlflow is not None:
        return int(of_mlflow())
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
