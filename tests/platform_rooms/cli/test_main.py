"""What the command does about errors: one line, and an exit status that says whose fault it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from commandline import brgsa

from brgsa.errors import UserError
from brgsa_platform.cli import main as command


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `brgsa store info` raise an error."""
    from brgsa_platform.store import info

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(info, "info", fail)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("The store is gone: correct the path."), 2, "brgsa: The store is gone: correct the path."),
        (KeyboardInterrupt(), 130, "brgsa: interrupted;"),
        (typer.Abort(), 130, "brgsa: interrupted;"),
        (
            RuntimeError("Traceback of a task\n  line\nthe end of it\n"),
            1,
            "brgsa: failed: RuntimeError: the end of it (",
        ),
        (
            RuntimeError("the table is locked\n(Background on this error at: https://sqlalche.me/e/20/e3q8)"),
            1,
            "brgsa: failed: RuntimeError: the table is locked (",
        ),
        (
            RuntimeError("no answer from http://host:5000"),
            1,
            "brgsa: failed: RuntimeError: no answer from http://host:5000 (",
        ),
        (
            RuntimeError("Traceback\nOSError: s3://b/a is gone"),
            1,
            "brgsa: failed: RuntimeError: OSError: s3://b/a is gone (",
        ),
        (ValueError(), 1, "brgsa: failed: ValueError:"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRGSA_DEBUG", raising=False)
    fail_with(monkeypatch, error)
    done = brgsa("store", "info", "anywhere")
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith(line)
    assert done.err.count("\n") == 1


def test_a_failure_is_raised_whole_for_a_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRGSA_DEBUG", "1")
    fail_with(monkeypatch, RuntimeError("x"))
    with pytest.raises(RuntimeError, match="x"):
        brgsa("store", "info", "anywhere")


def test_a_wrong_command_line_is_status_2() -> None:
    for words in (["tran"], ["train"], ["train", "--dta", "x"], ["prepare", "x", "--layout", "nifti", "--out", "y"]):
        done = brgsa(*words)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith("Usage: brgsa")


def test_help_names_every_verb_and_ends_well() -> None:
    done = brgsa("--help")
    assert done.status == 0
    assert all(f"  {name} " in done.out for name in typer.main.get_command(command.app).commands)  # type: ignore[attr-defined]


def test_an_option_of_the_server_needs_the_server(tmp_path: Path) -> None:
    assert brgsa("ui", "--database-file", tmp_path / "x").status == 2
