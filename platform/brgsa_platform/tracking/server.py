"""`brgsa ui --server`: MLflow for several machines, with passwords, that can be left running.

Secrets come from files or the environment and go on in the environment of the server's processes: no command line, no
address and no line of output holds one.
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
# A password check costs a tenth of a second of CPU by design; each worker remembers the last ones for so many seconds, and
# so long may a changed or deleted user still be let in.
SECONDS_TO_REMEMBER_A_LOGIN = 60

# The user's own value wins. MLflow answers with up to 40 threads a process, and one that takes metrics holds two connections:
# a pool of fewer than 80 comes to a stop for half a minute when each thread holds one and waits for its second. Those
# beyond the first ten are closed after use. Each is tried before use, so a database that was restarted is found again.
SETTINGS = {
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "10",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "80",
    "MLFLOW_SQLALCHEMYSTORE_POOL_RECYCLE": "1800",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes, which serve nothing that is shown here
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Of this process, not of its server: a client's settings, and the switch that turns host and origin checks off.
NOT_PASSED_ON = (
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
class Database:
    """Where runs and accounts are kept: an address without its password, and the password."""

    url: URL
    password: str | None

    @property
    def address(self) -> str:
        return self.url.render_as_string(hide_password=False)  # there is none in it

    @property
    def environment(self) -> dict[str, str]:
        return {} if self.password is None else {"PGPASSWORD": self.password}


def serve(
    *,
    database_file: Path | None = None,
    password_file: Path | None = None,
    artifacts: str = "mlartifacts",
    host: str = "127.0.0.1",
    port: int = 5000,
    allowed_hosts: Sequence[str] = (),
    workers: int = 2,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> int:
    """Run the tracking server until it is told to end; return its exit status.

    Args:
        database_file: holds the database's address, as MLFLOW_BACKEND_STORE_URI does where it is None.
        password_file: holds the password of the user "admin", as MLFLOW_AUTH_ADMIN_PASSWORD does where it is None.
        artifacts: a folder, or an address such as s3://bucket/prefix, that only the server reads and writes.
        allowed_hosts: names that clients call the server by, with a port unless it is `port`; this machine's own
            (localhost) are always among them.

    Raises:
        UserError: a secret is missing or weak, the address is public but no name is allowed, the database or the
            artifacts cannot be used, the port is taken.
    """
    names = _names(allowed_hosts, port)
    if not allowed_hosts and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from other machines: name the hosts that clients may call it by, as in "
            "--allowed-hosts mlflow.example.org, or leave --host out."
        )
    password = _admin_password(password_file)
    tls = _tls(tls_cert, tls_key)
    database = find_database(database_file)
    artifacts = _artifacts(artifacts)
    check_free(host, port)
    _try(database)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", str(workers)]
    command += ["--app-name", "basic-auth", "--serve-artifacts", "--artifacts-destination", artifacts]
    command += ["--allowed-hosts", ",".join(names), "--cors-allowed-origins", ",".join(_origins(names))]
    # A line a request would fill a disk in a month: a proxy before it keeps such a log where one is wanted.
    command += ["--uvicorn-opts", shlex.join(["--no-access-log", "--timeout-graceful-shutdown", "5", *tls])]
    environment = {**SETTINGS, **{k: v for k, v in os.environ.items() if k not in NOT_PASSED_ON}}
    environment |= {DATABASE: database.address, PASSWORD: password, **database.environment}
    environment.setdefault("MLFLOW_FLASK_SERVER_SECRET_KEY", secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="brgsa-server-") as private:  # 0700
        config = Path(private) / "auth.ini"
        config.touch(mode=0o600)
        # "%" begins an interpolation in an ini file.
        config.write_text(
            AUTH_CONFIG.format(
                database=database.address.replace("%", "%%"), admin=ADMIN, remember=SECONDS_TO_REMEMBER_A_LOGIN
            )
        )
        environment["MLFLOW_AUTH_CONFIG_PATH"] = str(config)
        scheme = "https" if tls else "http"
        print(f"MLflow serves {scheme}://{host}:{port} (user {ADMIN}; Ctrl-C ends it).", flush=True)
        return run_until_told(command, environment)


def _names(given: Sequence[str], port: int) -> list[str]:
    """Host headers that are taken: as given, with the port where none is said, and this machine's own."""
    if "*" in given:
        raise UserError("--allowed-hosts * lets every web page reach the server by DNS rebinding: name the hosts.")
    names = [f"{name}:{port}" for name in ("localhost", "127.0.0.1", "[::1]")]
    for name in given:
        if "/" in name or not name:
            raise UserError(f"--allowed-hosts: '{name}' is not a host; write mlflow.example.org, without http://.")
        names.append(name)
        if ":" not in name.rpartition("]")[2]:  # behind a proxy on 443 or 80 no port is said
            names.append(f"{name}:{port}")
    return list(dict.fromkeys(names))


def _origins(names: Sequence[str]) -> list[str]:
    """The server's own pages say where they come from too when they post."""
    return [f"{scheme}://{name}" for name in names for scheme in ("https", "http")]


def _secret(file: Path | None, variable: str, what: str, option: str) -> str:
    if file is None:
        found = os.environ.get(variable, "")
        if not found:
            raise UserError(
                f"{what} is missing: set {variable}, or write it to a file of your own and name that by {option}."
            )
        return found.strip()
    try:
        if file.stat().st_mode & 0o007:
            raise UserError(f"{option}: every user of this machine can read {file}: chmod 600 {file}")
        found = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}: {file} cannot be read ({error.__class__.__name__}).") from error
    if not found:
        raise UserError(f"{option}: {file} is empty.")
    return found


def _admin_password(file: Path | None) -> str:
    found = _secret(file, PASSWORD, "The admin's password", "--password-file")
    if found == MLFLOWS_OLD_PASSWORD:
        raise UserError(
            "The admin's password is the one that older MLflow came with, which everybody knows: choose another."
        )
    if len(found) < SHORTEST_PASSWORD:
        raise UserError(f"The admin's password is too short: {SHORTEST_PASSWORD} characters at least.")
    return found


def find_database(file: Path | None) -> Database:
    """The database that a file or MLFLOW_BACKEND_STORE_URI names; the password may be in PGPASSWORD instead."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    given = _secret(file, DATABASE, "The database's address", "--database-file")
    source = DATABASE if file is None else str(file)
    try:
        url = make_url(given)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        backend = ""
    if backend not in ("postgresql", "sqlite"):  # what was given may hold a password: it is not repeated
        raise UserError(f"{source} holds no address of a database: write postgresql://USER:PASSWORD@HOST/NAME.")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg2")  # SQLAlchemy's own default is another driver
    query = dict(url.query)
    password = url.password or query.pop("password", None) or os.environ.get("PGPASSWORD")
    url = url._replace(password=None).set(query=query)
    return Database(url, str(password) if password else None)


def _try(database: Database) -> None:
    """Connect once: MLflow would say the same in a hundred lines, after half a minute."""
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
        raise UserError("The driver of PostgreSQL is missing: pip install 'brgsa-platform[server]'.") from error
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise UserError(
            f"The database {database.address} lets nobody in ({why}): start it, or correct its address."
        ) from None


def _artifacts(given: str) -> str:
    if "://" in given:
        if given.startswith("s3://") and importlib.util.find_spec("boto3") is None:
            raise UserError("--artifacts at S3 needs boto3: pip install boto3.")
        return given
    folder = Path(given).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"--artifacts: the folder {folder} cannot be made ({error.strerror}).") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--artifacts: the folder {folder} cannot be written.")
    return str(folder)


def _tls(cert: Path | None, key: Path | None) -> list[str]:
    if cert is None and key is None:
        return []
    if cert is None or key is None:
        raise UserError("--tls-cert and --tls-key go together: name both.")
    for file in (cert, key):
        if not os.access(file, os.R_OK):
            raise UserError(f"The TLS file {file} cannot be read.")
    return ["--ssl-certfile", str(cert.absolute()), "--ssl-keyfile", str(key.absolute())]
