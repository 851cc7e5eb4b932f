"""The `brgsa` command within the test's process, where it is not the process that is tested."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from brgsa_platform.cli.main import main


def brgsa(*arguments: object, cwd: Path, **environment: str) -> CompletedProcess[str]:
    """Run a verb as the command does: its exit status and what it prints. A Ray that runs in this process serves it."""
    words = [str(argument) for argument in arguments]
    status = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["brgsa", *words])
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return CompletedProcess(words, status, out.getvalue(), err.getvalue())
