"""`brgsa ui --server` as a user starts it, on a database of the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from postgres import Postgres, free_port

PASSWORD = "the-admin-s-password"  # of the tests only


@dataclass
class TrackingServer:
    folder: Path
    database: Postgres
    workers: int = 1
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def client_environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }

    def start(self) -> None:
        files = {"database": self.database.url, "password": PASSWORD}
        for name, text in files.items():
            (self.folder / name).touch(mode=0o600)
            (self.folder / name).write_text(text)
        command = [sys.executable, "-m", "brgsa_platform.cli", "ui", "--server", "--port", str(self.port)]
        command += ["--database-file", str(self.folder / "database"), "--password-file", str(self.folder / "password")]
        command += ["--artifacts", str(self.artifacts), "--workers", str(self.workers)]
        command += ["--allowed-hosts", "mlflow.example"]
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.folder)
        end = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(self.url + "/health", timeout=2).close()
                return
            except OSError:
                assert self.process.poll() is None, self.output.read_text()
                assert time.monotonic() < end, "the server did not answer"
                time.sleep(0.2)

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Spent by the server and by its connections' database processes since each began."""
        mine = [*self.processes(), *self.database.processes()]
        return sum(sum(process.cpu_times()[:2]) for process in mine)

    def stop(self) -> None:
        """SIGTERM, and nothing that it started is left."""
        if self.process is None or self.process.poll() is not None:
            return
        started = self.processes()
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(timeout=60) == 0
        finally:
            left = psutil.wait_procs(started, timeout=5)[1]
            for process in left:
                process.kill()
        assert not left
