"""`brgsa ui --server`: MLflow for several machines, with passwords, that can be left running.

Secrets come from files or the environment and are handed on in the environment of the server's processes: no command line,
no address and no line of output holds one.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brgsa.errors import UserError
from brgsa_platform.runtime.addresses import is_loopback
from brgsa_platform.tracking.ui import check_free, run_until_told

if TYPE_CHECKING:
    from sqlalchemy import URL

DATABASE = "MLFLOW_BACKEND_STORE_URI"
PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
ADMIN = "admin"
MLFLOWS_OLD_PASSWORD = "password1234"  # public: older MLflow made its admin with it
SHORTEST_PASSWORD = 12  # MLflow's own limit
SECONDS_TO_CONNECT = 10
# A password check costs a tenth of a second of CPU by design, so each worker remembers the last ones. For as long a user
# may still come in whose password was changed or who was deleted.
SECONDS_TO_REMEMBER_A_LOGIN = 60

# The user's own value wins. MLflow answers with up to 40 threads a process, and one that takes metrics holds two connections:
# a pool of fewer than 80 stops for half a minute when each thread holds one and waits for its second. Connections beyond the
# first ten are closed after use. Each is tried before use, so that a database which was restarted is found again.
SETTINGS = {
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "10",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "80",
    "MLFLOW_SQLALCHEMYSTORE_POOL_RECYCLE": "1800",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes, which serve nothing that is shown here
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# What the server must not inherit: a client's settings, and the switch that turns host and origin checks off.
NOT_INHERITED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE",
)

AUTH_CONFIG = """\
[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = {remember}
"""


@dataclass(frozen=True)
class ServerOptions:
    """How a tracking server is run.

    Attributes:
        host, port: where it listens.
        database_file: a file that holds the database's address; None: `MLFLOW_BACKEND_STORE_URI` holds it.
        password_file: a file that holds the password of the user "admin"; None: `MLFLOW_AUTH_ADMIN_PASSWORD` holds it.
        artifacts: a folder, or an address such as s3://bucket/prefix, that only the server reads and writes.
        allowed_hosts: names that clients call the server by, with a port unless it is `port`; this machine's own
            (localhost) are always among them.
        workers: its number of processes.
        tls_cert, tls_key: PEM files, for https.
    """

    host: str = "127.0.0.1"
    port: int = 5000
    database_file: Path | None = None
    password_file: Path | None = None
    artifacts: str = "mlartifacts"
    allowed_hosts: Sequence[str] = ()
    workers: int = 2
    tls_cert: Path | None = None
    tls_key: Path | None = None


@dataclass(frozen=True)
class Database:
    """Where runs and accounts are kept."""

    url: URL  # without a password
    password: str | None

    @property
    def address(self) -> str:
        """The address as SQLAlchemy and MLflow take it, without a password."""
        return self.url.render_as_string(hide_password=False)  # which would put asterisks where there is none

    @property
    def environment(self) -> dict[str, str]:
        """The variable by which PostgreSQL's driver gets the password."""
        return {} if self.password is None else {"PGPASSWORD": self.password}


def serve(options: ServerOptions) -> int:
    """Run the tracking server until it is told to end; return its exit status.

    Raises:
        UserError: the address is public but no name is allowed ("public-host"), a name is none ("bad-host"), a secret is
            missing, weak or open to others (see `_secret`, "weak-password"), the database is none or lets nobody in
            ("bad-database", "database-refuses"), the artifacts or TLS files cannot be used ("bad-artifacts", "bad-tls"),
            or the port is taken ("cannot-listen").
    """
    names = _names(options.allowed_hosts, options.port)
    if not options.allowed_hosts and not is_loopback(options.host):
        raise UserError(
            f"--host {options.host} can be reached from other machines: name the hosts that clients may call it by, as in "
            "--allowed-hosts mlflow.example.org, or leave --host out.",
            code="public-host",
            field="--allowed-hosts",
            value=options.host,
        )
    password = _admin_password(options.password_file)
    tls = _tls(options.tls_cert, options.tls_key)
    database = find_database(options.database_file)
    command = _command(options, names, _artifacts(options.artifacts), tls)
    check_free(options.host, options.port)
    _try(database)
    environment = {**SETTINGS, **{key: value for key, value in os.environ.items() if key not in NOT_INHERITED}}
    environment |= {DATABASE: database.address, PASSWORD: password, **database.environment}
    environment.setdefault("MLFLOW_FLASK_SERVER_SECRET_KEY", secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="brgsa-server-") as private:  # 0700
        config = Path(private) / "auth.ini"
        config.touch(mode=0o600)
        address = database.address.replace("%", "%%")  # "%" begins an interpolation in an ini file
        config.write_text(
            AUTH_CONFIG.format(database=address, admin=ADMIN, remember=SECONDS_TO_REMEMBER_A_LOGIN), encoding="utf-8"
        )
        environment["MLFLOW_AUTH_CONFIG_PATH"] = str(config)
        scheme = "https" if tls else "http"
        print(f"MLflow serves {scheme}://{options.host}:{options.port} (user {ADMIN}; Ctrl-C ends it).", flush=True)
        return run_until_told(command, environment)


def _command(options: ServerOptions, names: Sequence[str], artifacts: str, tls: Sequence[str]) -> list[str]:
    """MLflow's command line."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", options.host, "--port", str(options.port)]
    command += ["--workers", str(options.workers), "--app-name", "basic-auth"]
    command += ["--serve-artifacts", "--artifacts-destination", artifacts]
    # The server's own pages, too, name an origin when they post.
    origins = [f"{scheme}://{name}" for name in names for scheme in ("https", "http")]
    command += ["--allowed-hosts", ",".join(names), "--cors-allowed-origins", ",".join(origins)]
    # A log line a request fills a disk in a month: where a log is wanted, a proxy before the server keeps it.
    return [*command, "--uvicorn-opts", shlex.join(["--no-access-log", "--timeout-graceful-shutdown", "5", *tls])]


def _names(given: Sequence[str], port: int) -> list[str]:
    """The Host headers that are accepted: the given names, with the port where they have none, and this machine's own."""
    if "*" in given:
        raise UserError(
            "--allowed-hosts * lets every web page reach the server by DNS rebinding: name the hosts.",
            code="bad-host",
            field="--allowed-hosts",
            value="*",
        )
    names = [f"{name}:{port}" for name in ("localhost", "127.0.0.1", "[::1]")]
    for name in given:
        if "/" in name or not name:
            raise UserError(
                f"--allowed-hosts: '{name}' is not a host; write mlflow.example.org, without http://.",
                code="bad-host",
                field="--allowed-hosts",
                value=name,
            )
        names.append(name)
        if ":" not in name.rpartition("]")[2]:  # behind a proxy on 443 or 80 a client names no port
            names.append(f"{name}:{port}")
    return list(dict.fromkeys(names))


def _secret(file: Path | None, variable: str, what: str, option: str) -> str:
    """A secret from a file of the user's own, or from an environment variable.

    Raises:
        UserError: there is none ("missing-secret"), or the file cannot be read ("unreadable-secret"), is open to every user
            of this machine ("open-secret") or is empty ("missing-secret").
    """
    if file is None:
        given = os.environ.get(variable, "").strip()
        if not given:
            raise UserError(
                f"{what} is missing: set {variable}, or write it to a file of your own and name that by {option}.",
                code="missing-secret",
                field=variable,
            )
        return given
    try:
        if file.stat().st_mode & 0o007:
            message = f"{option}: every user of this machine can read {file}: chmod 600 {file}"
            raise UserError(message, code="open-secret", field=option, value=str(file))
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{option}: {file} cannot be read ({error.__class__.__name__})."
        raise UserError(message, code="unreadable-secret", field=option, value=str(file)) from error
    if not text:
        raise UserError(f"{option}: {file} is empty.", code="missing-secret", field=option, value=str(file))
    return text


def _admin_password(file: Path | None) -> str:
    password = _secret(file, PASSWORD, "The admin's password", "--password-file")
    if password == MLFLOWS_OLD_PASSWORD:
        why = "is the one that older MLflow came with, which everybody knows: choose another"
    elif len(password) < SHORTEST_PASSWORD:
        why = f"is too short: {SHORTEST_PASSWORD} characters at least"
    else:
        return password
    raise UserError(f"The admin's password {why}.", code="weak-password", field="--password-file")


def find_database(file: Path | None) -> Database:
    """The database that a file or `MLFLOW_BACKEND_STORE_URI` names; its password may be in `PGPASSWORD` instead.

    Raises:
        UserError: no address is given (see `_secret`), or it is none of PostgreSQL or SQLite ("bad-database").
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    given = _secret(file, DATABASE, "The database's address", "--database-file")
    source = DATABASE if file is None else str(file)
    try:
        url = make_url(given)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        backend = ""
    if backend not in ("postgresql", "sqlite"):
        message = f"{source} holds no address of a database: write postgresql://USER:PASSWORD@HOST/NAME."
        raise UserError(message, code="bad-database", field=source)  # without the text, which may hold a password
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg2")  # SQLAlchemy's own default is another driver
    query = dict(url.query)
    password = url.password or query.pop("password", None) or os.environ.get("PGPASSWORD")
    url = url._replace(password=None).set(query=query)
    return Database(url, str(password) if password else None)


def _try(database: Database) -> None:
    """Connect once: MLflow tells in a hundred lines, after half a minute, that it cannot."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    arguments: dict[str, object] = {}
    if database.url.get_backend_name() == "postgresql":
        arguments = {"connect_timeout": SECONDS_TO_CONNECT, "password": database.password}
    try:
        engine = create_engine(database.url, connect_args=arguments)
        with engine.connect():
            pass
        engine.dispose()
    except ImportError as error:
        message = "The driver of PostgreSQL is missing: pip install 'brgsa-platform[server]'."
        raise UserError(message, code="no-driver") from error
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise UserError(
            f"The database {database.address} lets nobody in ({why}): start it, or correct its address.",
            code="database-refuses",
            value=database.address,
        ) from None


def _artifacts(given: str) -> str:
    """Where artifacts go, as MLflow takes it; a folder is made."""

    def refused(why: str) -> UserError:
        return UserError(f"--artifacts{why}.", code="bad-artifacts", field="--artifacts", value=given)

    if "://" in given:
        if given.startswith("s3://") and importlib.util.find_spec("boto3") is None:
            raise refused(" at S3 needs boto3: pip install boto3")
        return given
    folder = Path(given).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise refused(f": the folder {folder} cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise refused(f": the folder {folder} cannot be written")
    return str(folder)


def _tls(cert: Path | None, key: Path | None) -> list[str]:
    """uvicorn's options for https; none without a certificate."""
    if cert is None and key is None:
        return []
    if cert is None or key is None:
        raise UserError("--tls-cert and --tls-key go together: name both.", code="bad-tls")
    for option, file in (("--tls-cert", cert), ("--tls-key", key)):
        if not os.access(file, os.R_OK):
            message = f"The TLS file {file} cannot be read."
            raise UserError(message, code="bad-tls", field=option, value=str(file))
    return ["--ssl-certfile", str(cert.absolute()), "--ssl-keyfile", str(key.absolute())]
