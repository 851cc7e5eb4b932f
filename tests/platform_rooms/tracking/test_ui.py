"""`brgsa ui`: what it refuses, and that it serves the tracking store until it is told to end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from postgres import free_port
from refusals import refused

from brgsa_platform.tracking.ui import ui

pytestmark = pytest.mark.slow

# A server with a child, neither of which ends when it is asked to.
STUBBORN = """
import sys
from brgsa_platform.tracking import ui
ui.SECONDS_TO_END = 0.5
child = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); "
server = child + "import subprocess; subprocess.run([sys.executable, '-c', sys.argv[1]])"
sys.exit(ui.run_until_told([sys.executable, "-c", server, child + "time.sleep(600)"], {}))
"""


def test_a_taken_port_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with refused("cannot-listen", value=("127.0.0.1", port)):
            ui(port=port)
    with refused("cannot-listen"):
        ui(port=70000)
    with refused("cannot-listen"):
        ui(host="192.0.2.7")  # no address of this machine


def test_a_server_s_address_is_printed_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow.example:5000/path")
    assert ui() == 0
    shown = capsys.readouterr().out
    assert "http://mlflow.example:5000/path" in shown
    assert "secret" not in shown


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_told_to_end_leaves_no_process_behind(tmp_path: Path, ending: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        family = [psutil.Process(int(process.stdout.readline())) for _ in range(2)]
        process.send_signal(ending)
        assert process.wait(timeout=60) == 0
        assert not psutil.wait_procs(family, timeout=10)[1]
    finally:
        process.kill()


def test_the_status_of_a_server_that_ends_by_itself_is_handed_on() -> None:
    command = "import sys; from brgsa_platform.tracking.ui import run_until_told; "
    command += "sys.exit(run_until_told([sys.executable, '-c', 'raise SystemExit(3)'], {}))"
    assert subprocess.run([sys.executable, "-c", command], timeout=120, check=False).returncode == 3


def test_serves_a_new_store_until_told_to_end(tmp_path: Path) -> None:
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", f"from brgsa_platform.tracking.ui import ui; ui(port={port})"]
    server = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        by_name = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=brgsa"
        with urllib.request.urlopen(by_name, timeout=30) as answer:  # it serves the folder's store, not one of its own
            assert answer.status == 200
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        assert len(family) > 1
        assert not any("sqlite:" in word for process in family for word in process.cmdline())  # it may hold a password
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()  # nothing to do, unless the test has failed
    assert (tmp_path / "mlruns-brgsa" / "mlflow.db").is_file()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))  # nothing was left behind
