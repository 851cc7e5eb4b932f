"""A real PostgreSQL of this machine's packages, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

PASSWORD = "the-database-s-password"  # of the tests only


def _program(name: str) -> str | None:
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else shutil.which(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Postgres:
    folder: Path
    port: int
    user: dict[str, Any]  # PostgreSQL refuses to run as root

    @property
    def url(self) -> str:
        return f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def processes(self) -> list[psutil.Process]:
        top = psutil.Process(int((self.folder / "data" / "postmaster.pid").read_text().split()[0]))
        return [top, *top.children()]

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
        self._control("start", "-o", options, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        self._control("stop", "-m", "fast")

    def _control(self, *arguments: str) -> None:
        command = [str(_program("pg_ctl")), "-D", str(self.folder / "data"), "-w", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self.user)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A started PostgreSQL with the user mlflow and a password; the test skips where it is not installed."""
    initdb = _program("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="brgsa-postgres-"))  # pytest's own folders let no other user through
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres", "postgres")
    password = folder / "password"
    password.write_text(PASSWORD)
    if user:
        shutil.chown(password, "postgres")
    try:
        command = [initdb, "-D", str(folder / "data"), "-U", "mlflow", "-A", "scram-sha-256", "--no-sync"]
        subprocess.run([*command, f"--pwfile={password}"], check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
        database = Postgres(folder, free_port(), user)
        database.start()
        try:
            yield database
        finally:
            database._control("stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder)
