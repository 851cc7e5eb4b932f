"""A real Ray head with dashboard and token authentication on this machine, apart from any other Ray."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from patience import until


@dataclass(frozen=True)
class Head:
    """Its dashboard's address, the token that it asks for, and the folder of its logs."""

    address: str
    token: str
    folder: Path
    token_file: Path

    def processes(self) -> list[psutil.Process]:
        """Every process of this Ray, by the folder that stands in its command line or environment."""
        return [process for process, _ in self._processes()]

    def commands(self) -> list[list[str]]:
        """The command line of each of them."""
        return [command for _, command in self._processes()]

    def _processes(self) -> Iterator[tuple[psutil.Process, list[str]]]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if str(self.folder) in " ".join(command) + process.environ().get("RAY_TMPDIR", ""):
                    yield process, command


@contextmanager
def ray_head(token: str, cpus: int = 2, environment: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Starts it, waits until its job server answers, and ends its processes and no other's."""
    folder = Path(tempfile.mkdtemp(prefix="brh", dir="/tmp"))  # Ray's sockets allow 107 bytes of path
    token_file = folder / "token"
    token_file.write_text(token)
    token_file.chmod(0o600)
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    names += ["metrics-export-port", "ray-client-server-port", "runtime-env-agent-port"]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--num-cpus={cpus}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command += ["--disable-usage-stats", f"--object-store-memory={200 * 2**20}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    inherited |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_TMPDIR": str(folder)}
    # The `python` of a job comes from PATH.
    inherited["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    inherited.pop("PYTHONPATH", None)
    log = (folder / "start.log").open("wb")
    head = subprocess.Popen(
        command, env={**inherited, **(environment or {})}, stdout=log, stderr=log, start_new_session=True, cwd=folder
    )
    made = Head(f"http://127.0.0.1:{ports['dashboard-port']}", token, folder, token_file)
    try:
        _wait(made, head)
        yield made
    finally:
        left = [*made.processes(), psutil.Process(head.pid)]
        with contextlib.suppress(psutil.Error):
            left += psutil.Process(head.pid).children(recursive=True)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        head.wait()
        psutil.wait_procs(left, timeout=10)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(head: Head, process: subprocess.Popen[bytes]) -> None:
    asked = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})

    def answers() -> bool:
        try:
            urllib.request.urlopen(asked, timeout=5).close()
            return True
        except (OSError, urllib.error.URLError):
            return False

    try:
        until(answers, 120, process=process, pause=0.3)
    except pytest.fail.Exception as failure:
        pytest.fail(f"the Ray head did not start: {failure}\n{(head.folder / 'start.log').read_text()}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
