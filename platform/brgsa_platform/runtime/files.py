"""Small files that are whole whenever they are there: written aside, brought to the disk, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brgsa.errors import UserError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A hidden path beside `path` for the caller to make a file or a folder at; at the end it is renamed to `path`.

    Contents and names are on the disk before and after the rename, so that what is there is whole even after a power cut.
    Where the block raises, what it wrote is removed and `path` stays as it was. A folder needs `path` to be free.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync_entry(path.parent)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or a folder with all that lies below it, to the disk."""
    if path.is_dir():
        for below in path.iterdir():
            sync(below)
    sync_entry(path)


def sync_entry(path: Path) -> None:
    """Bring one file's bytes, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, mend: str = "remove the run's folder and train again") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        mend: what the user can do where the file is damaged.

    Raises:
        UserError: the file cannot be read, or holds something else ("unreadable-json").
    """
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}): {mend}."
        raise UserError(message, code="unreadable-json", field=str(path)) from error
    return tree


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write a JSON object aside and rename it to `path`.

    Raises:
        TypeError: the tree holds what JSON does not know.
        OSError: the folder cannot be written.
    """
    with written_aside(path) as aside:
        aside.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
