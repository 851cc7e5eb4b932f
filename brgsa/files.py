"""Files and folders that are whole whenever they are there (written aside, synced, then renamed), and the JSON in them."""

from __future__ import annotations

import errno
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
    Where the block raises, what it wrote is removed and `path` stays as it was.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    replaced = aside.with_name(f"{aside.name}.replaced")
    try:
        yield aside
        sync(aside)
        if aside.is_dir() and path.exists():
            # A rename takes an instant; a deletion goes file by file, and a kill would leave it half done.
            os.replace(path, replaced)
        os.replace(aside, path)
        sync_entry(path.parent)
    finally:
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)
        for left in (aside, replaced):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)


def read_json(
    path: Path, mend: str = "remove the run's folder and train again", *, code: str = "unreadable-json"
) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        mend: what the user can do where the file is damaged.
        code: of the refusal.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {mend}.", code=code, field=str(path)) from error
    return tree


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write a JSON object aside and rename it to `path`.

    Raises:
        TypeError: the tree holds what JSON does not know.
        OSError: the folder cannot be written.
    """
    with written_aside(path) as aside:
        aside.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


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
    except OSError as error:
        # Some network file systems cannot do it for a folder, and nothing else can be done there.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
