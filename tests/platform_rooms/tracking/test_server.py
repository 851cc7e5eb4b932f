"""`brgsa ui --server`: a real server on a real PostgreSQL; what goes through it, and what it keeps out."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import http.server
import json
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import postgres as database_helper
import pytest
import tracking_server as server_helper
from postgres import Postgres, free_port, postgres
from refusals import refused
from tracking_server import TrackingServer

from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection, query
from brgsa_platform.tracking.server import ServerOptions, find_database, serve

pytestmark = pytest.mark.slow

ADMIN = f"admin:{server_helper.PASSWORD}"
# A worker whose every look into the server's folder fails, as on another machine.
WORKER = """
import sys
from pathlib import Path
folder = sys.argv[1]

def refuse(event, arguments):
    if event in ("open", "os.mkdir", "os.listdir", "os.scandir", "sqlite3.connect"):
        if str(arguments[0]).startswith(folder):
            raise PermissionError(f"a worker looked at {arguments[0]}")

sys.addaudithook(refuse)
from matplotlib.figure import Figure
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection

made = Path("checkpoint-1")
made.mkdir()
(made / "model.safetensors").write_bytes(b"weights")
with tracking.run("train", name="far away", params={"a": {"b": 1}}) as run:
    worker = tracking.attach(run.run_id, connection.tracking_uri())
    for step in range(40):
        if step == 20:
            print(run.run_id, flush=True)
            input()  # meanwhile the database goes away
        if step == 21:
            print("missed", flush=True)
            input()
        worker.log_metrics({"loss": 1 / (1 + step), "rate": step}, step=step, at_once=step == 20)
    worker.close()
    run.log_table("tables/cells.json", {"name": ["a", "b"], "auroc": [0.5, 0.75]})
    run.log_figure(Figure(), "figures/empty.png")
    run.log_artifact(made / "model.safetensors", "files")
    tracking.log_checkpoint(run.run_id, made)
"""


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as started:
        yield started


@pytest.fixture(scope="module")
def server(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    made = TrackingServer(tmp_path_factory.mktemp("server"), database)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def known(server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> TrackingServer:
    """The server, as this process's tracking store."""
    connection._check_admitted.cache_clear()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, server.client_environment[name])
    return server


def ask(
    server: TrackingServer,
    method: str,
    path: str,
    body: bytes | dict[str, Any] | None = None,
    user: str | None = ADMIN,
    **headers: str,
) -> tuple[int, bytes]:
    """One request, its path sent as it is."""
    if user is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    if isinstance(body, dict):
        body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as wire:
        wire.putrequest(method, path, skip_host="Host" in headers)
        for name, value in {**headers, "Content-Length": str(len(body or b""))}.items():
            wire.putheader(name, value)
        wire.endheaders(body)
        answer = wire.getresponse()
        return answer.status, answer.read()


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
CREATE = "/api/2.0/mlflow/experiments/create"


def test_a_worker_without_the_server_s_files_logs_all_while_the_database_restarts(
    known: TrackingServer, database: Postgres, tmp_path: Path
) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(known.folder)],
        cwd=tmp_path,
        env=known.client_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    run_id = worker.stdout.readline().strip()
    assert run_id
    database.stop()
    worker.stdin.write("\n")
    worker.stdin.flush()
    assert worker.stdout.readline() == "missed\n"
    database.start()
    worker.stdin.write("\n")
    worker.stdin.flush()
    assert worker.wait(timeout=120) == 0

    assert query.metric_history(run_id, "rate") == [(step, float(step)) for step in range(40)]
    assert len(query.metric_history(run_id, "loss")) == 40
    (record,) = query.find(f"attributes.run_id = '{run_id}'")
    assert (record.status, record.params) == ("FINISHED", {"a.b": "1"})
    assert json.loads(record.tags[tracking.TABLES_TAG]) == [{"path": "tables/cells.json", "type": "table"}]
    experiment = connection.client().get_experiment_by_name(connection.experiment_name())
    assert experiment is not None
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    files = {path.name for path in known.artifacts.rglob("*") if path.is_file()}
    assert files >= {"cells.json", "empty.png", "model.safetensors"}
    assert not list(tmp_path.rglob("mlruns*")), "nothing is kept beside the worker"


@pytest.mark.parametrize("user", [None, "admin:wrong"])
def test_nobody_comes_in_without_a_password(server: TrackingServer, user: str | None) -> None:
    assert ask(server, "GET", SEARCH, user=user)[0] == 401
    assert ask(server, "PUT", "/api/2.0/mlflow-artifacts/artifacts/0/x", b"{}", user)[0] == 401


def test_a_wrong_password_is_told_before_any_work(known: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-wrong-password")
    with refused("mlflow-login", value=known.url) as caught, tracking.run("train"):
        pytest.fail("the work began")
    assert "a-wrong-password" not in str(caught.value)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with refused("mlflow-login"):
        connection.client()


def test_a_user_who_may_only_read_is_told_so(known: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "the admin's own")
    with tracking.run("prepare"):
        pass
    user = {"username": "reader", "password": "the-reader-s-password"}
    assert ask(known, "POST", "/api/2.0/mlflow/users/create", user)[0] == 200
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user["username"])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", user["password"])
    assert query.find()
    with refused("mlflow-permission"), tracking.run("train"):
        pytest.fail("the work began")


@pytest.mark.parametrize("host", ["localhost:{port}", "mlflow.example", "mlflow.example:{port}"])
def test_the_hosts_that_are_answered_may_post_from_their_own_pages(server: TrackingServer, host: str) -> None:
    host = host.format(port=server.port)
    assert ask(server, "GET", SEARCH, Host=host)[0] == 200
    status, _ = ask(server, "POST", CREATE, {"name": f"from {host}"}, Host=host, Origin=f"https://{host}")
    assert status == 200


def test_any_other_host_or_page_is_refused(server: TrackingServer) -> None:
    assert ask(server, "GET", SEARCH, Host="evil.example")[0] == 403
    assert ask(server, "POST", CREATE, {"name": "forged"}, Origin="https://evil.example")[0] == 403


def test_a_server_that_does_not_know_its_name_says_what_to_do() -> None:
    class Refused(Exception):
        def get_http_status_code(self) -> int:
            return 403

    told = connection.refusal(Refused("Response body: 'Invalid Host header'"), "http://user:secret@mlflow.example")
    assert told is not None
    assert (told.code, told.value) == ("mlflow-host", "http://mlflow.example")


def test_https_goes_by_the_certificates_that_mlflow_goes_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost"], cwd=tmp_path, check=True, capture_output=True
    )
    (tmp_path / "health").touch()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        served.socket = context.wrap_socket(served.socket, server_side=True)
        threading.Thread(target=served.serve_forever, daemon=True).start()
        url = f"https://localhost:{served.server_port}"
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH", raising=False)
        with refused("mlflow-away", value=url):
            connection.check(url)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "cert.pem"))
        connection.check(url)
        served.shutdown()


def test_no_secret_is_in_a_process_list_or_in_the_output(server: TrackingServer) -> None:
    assert ask(server, "GET", "/", user="admin:wrong")[0] == 401
    shown = [" ".join(process.cmdline()) for process in server.processes()]
    assert len(shown) > 2
    shown.append(server.output.read_text())
    for text in shown:
        assert server_helper.PASSWORD not in text
        assert database_helper.PASSWORD not in text
    for process in server.processes():
        config = process.environ().get("MLFLOW_AUTH_CONFIG_PATH")
        if config is not None:
            assert Path(config).stat().st_mode & 0o077 == 0
            assert database_helper.PASSWORD not in Path(config).read_text()


def secret_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    made = folder / f"file-{time.monotonic_ns()}"
    made.write_text(text)
    made.chmod(mode)
    return made


GOOD = "a-password-that-is-long"


@pytest.mark.parametrize(
    ("password", "code"),
    [("", "missing-secret"), ("password1234", "weak-password"), ("short", "weak-password")],
)
def test_a_weak_password_is_refused(tmp_path: Path, password: str, code: str) -> None:
    with refused(code, field="--password-file"):
        serve(ServerOptions(password_file=secret_file(tmp_path, password)))


def test_a_missing_password_or_one_that_everybody_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    with refused("missing-secret", field="MLFLOW_AUTH_ADMIN_PASSWORD"):
        serve(ServerOptions())
    open_file = secret_file(tmp_path, GOOD, 0o644)
    with refused("open-secret", value=str(open_file)):
        serve(ServerOptions(password_file=open_file))
    with refused("unreadable-secret", value=str(tmp_path / "gone")):
        serve(ServerOptions(password_file=tmp_path / "gone"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "mlflow.example"])
def test_a_public_address_needs_allowed_hosts(host: str) -> None:
    with refused("public-host", value=host):
        serve(ServerOptions(host=host))


@pytest.mark.parametrize("name", ["*", "http://mlflow.example", ""])
def test_a_host_that_is_none_is_refused(name: str) -> None:
    with refused("bad-host", value=name):
        serve(ServerOptions(allowed_hosts=[name]))


def test_a_database_that_lets_nobody_in_is_told_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    password = secret_file(tmp_path, GOOD)
    with refused("missing-secret", field="MLFLOW_BACKEND_STORE_URI"):
        serve(ServerOptions(password_file=password))
    for address, code in (
        ("secret-nonsense", "bad-database"),
        ("mysql://u:secret@127.0.0.1/x", "bad-database"),
        ("postgresql://u:secret@127.0.0.1:1/x", "database-refuses"),
    ):
        with refused(code) as caught:
            serve(ServerOptions(password_file=password, database_file=secret_file(tmp_path, address)))
        assert "secret" not in str(caught.value)


def test_half_of_a_certificate_is_refused(tmp_path: Path) -> None:
    password = secret_file(tmp_path, GOOD)
    with refused("bad-tls"):
        serve(ServerOptions(password_file=password, tls_cert=password))
    with refused("bad-tls", field="--tls-key"):
        serve(ServerOptions(password_file=password, tls_cert=password, tls_key=tmp_path / "gone"))


@pytest.mark.parametrize("address", ["postgresql://u:p%40ss@h/x", "postgresql://u@h/x?password=p%40ss"])
def test_the_address_that_goes_on_has_no_password(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", address)
    database = find_database(None)
    assert database.address == "postgresql+psycopg2://u@h/x"
    assert database.environment == {"PGPASSWORD": "p@ss"}


def test_a_wrong_database_password_is_told_in_one_line(database: Postgres, tmp_path: Path) -> None:
    address = database.url.replace(database_helper.PASSWORD, "another-secret")
    options = ServerOptions(
        password_file=secret_file(tmp_path, GOOD),
        database_file=secret_file(tmp_path, address),
        artifacts=str(tmp_path / "artifacts"),
        port=free_port(),
    )
    with refused("database-refuses") as caught:
        serve(options)
    assert "another-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_server_ends_with_all_its_processes(server: TrackingServer) -> None:
    server.stop()
    assert server.process is not None
    assert server.process.returncode == 0
