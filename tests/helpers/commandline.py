"""The `brgsa` command in the test's own process: what the installed command prints and its exit status, without its start."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from brgsa_platform.cli.main import main


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


def brgsa(*words: object) -> Done:
    """Run `brgsa WORD…` here, in the current folder and with this process' environment."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


def quiet(printed: str) -> bool:
    """Whether none of the libraries below has spoken, which is not the user's business."""
    return not any(noise in printed for noise in ("Warning", "WARNING", "INFO", "(pid=", "Traceback"))
