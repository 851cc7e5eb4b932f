"""A Ctrl-C in the middle of Optuna's lock stays a Ctrl-C."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from brgsa_platform.search.journal import JournalLock


def test_ctrl_c_while_the_lock_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the file is gone, so that Optuna's own clean-up finds none."""
    lock, unlink = JournalLock(str(tmp_path / "journal")), os.unlink

    def interrupted(path: Any) -> None:
        unlink(path)
        raise KeyboardInterrupt

    assert lock.acquire()
    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock.release()
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    assert lock.acquire()
    lock.release()


def test_ctrl_c_while_the_lock_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*paths: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "symlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        JournalLock(str(tmp_path / "journal")).acquire()


def test_an_error_stays_one(tmp_path: Path) -> None:
    lock = JournalLock(str(tmp_path / "journal"))
    with pytest.raises(RuntimeError):
        lock.release()
