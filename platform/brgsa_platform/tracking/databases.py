"""Tracking stores that are databases: which ones MLflow is given, and whether they open, before MLflow tries for minutes."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from brgsa.errors import UserError
from brgsa_platform.runtime.addresses import without_credentials

SQLITE = "sqlite:///"
SERVERS = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")
SECONDS_TO_UNLOCK = 10.0  # longer than any statement of MLflow's own
MEND = "set MLFLOW_TRACKING_URI to a server (http://HOST:5000) or to a file (sqlite:////FOLDER/mlflow.db)"


def store_uri(given: str) -> str:
    """A tracking store's address as MLflow is given it: an SQLite file by its whole path, all others as they are.

    Raises:
        UserError: it is of a kind that MLflow or this platform does not take ("mlflow-kind"), such as a plain folder, or
            SQLite's path holds what an address cannot hold ("mlflow-path").
    """
    scheme = urlsplit(given).scheme.partition("+")[0]
    if scheme in (*SERVERS, *DATABASES):
        return given
    if not given.startswith(SQLITE) or given in (SQLITE, f"{SQLITE}:memory:"):
        raise UserError(
            f"MLFLOW_TRACKING_URI is {without_credentials(given)!r}, which names no tracking store that is taken here: {MEND}.",
            code="mlflow-kind",
            field="MLFLOW_TRACKING_URI",
            value=without_credentials(given),
        )
    return sqlite_uri(Path(given.removeprefix(SQLITE)))


def sqlite_uri(file: Path) -> str:
    """The address of an SQLite file; a relative path and ~ are resolved.

    Raises:
        UserError: the path holds "?" or a percent sign before two digits, which would name another file ("mlflow-path").
    """
    path = str(file.expanduser().absolute())
    if "?" in path or unquote(path) != path:
        raise UserError(
            f"The MLflow store {path} cannot be addressed, because its path holds ? or %: {MEND} in another folder.",
            code="mlflow-path",
            field="MLFLOW_TRACKING_URI",
            value=path,
        )
    return SQLITE + path


def check_sqlite(file: Path) -> None:
    """Check that an SQLite store's folder can be written, and that its file, if any, is MLflow's and not locked.

    Raises:
        UserError: "mlflow-folder", "mlflow-database" or "mlflow-locked".
    """
    _check_folder(file.parent)
    if not file.exists():
        return
    try:
        address = f"file:{quote(str(file))}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=SECONDS_TO_UNLOCK, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # the lock of a writer
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise unopened(str(file), error) from error
    if tables and not {"experiments", "alembic_version"} <= tables:
        raise UserError(
            f"The MLflow store {file} is the database of another program: {MEND}.",
            code="mlflow-database",
            field="MLFLOW_TRACKING_URI",
            value=str(file),
        )


def check_database(uri: str) -> None:
    """Connect once to a PostgreSQL, MySQL or SQL Server database.

    Raises:
        UserError: it does not answer, or Python has no driver for it ("mlflow-database").
    """
    import sqlalchemy

    waits = {"connect_timeout": int(SECONDS_TO_UNLOCK)} if not uri.startswith("mssql") else {}
    try:
        engine = sqlalchemy.create_engine(uri, connect_args=waits, poolclass=sqlalchemy.NullPool)
        with engine.connect():
            pass
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise unopened(without_credentials(uri), error) from error


def unopened(shown: str, error: BaseException) -> UserError:
    """What a user can do about a database that does not open, or not now."""
    reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    if "database is locked" in reason:
        return UserError(
            f"The MLflow store {shown} is locked by another program: end that program, or start `brgsa ui --server` and "
            "track there.",
            code="mlflow-locked",
            field="MLFLOW_TRACKING_URI",
            value=shown,
        )
    return UserError(
        f"The MLflow store {shown} cannot be opened ({reason}): mend that, or {MEND}.",
        code="mlflow-database",
        field="MLFLOW_TRACKING_URI",
        value=shown,
    )


@contextmanager
def made_by_one(file: Path) -> Iterator[None]:
    """Hold the other processes of this machine off while the block opens a store: two that make its tables break them."""
    descriptor = os.open(file.parent / f".{file.name}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_folder(folder: Path) -> None:
    mend = "set MLFLOW_TRACKING_URI to a place that can be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The MLflow store folder {folder} cannot be made ({error.strerror}): {mend}."
        raise UserError(message, code="mlflow-folder", field=str(folder)) from error
    if not os.access(folder, os.W_OK):
        message = f"The MLflow store folder {folder} cannot be written: {mend}."
        raise UserError(message, code="mlflow-folder", field=str(folder))
