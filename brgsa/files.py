"""Files and folders that are whole whenever they are there: written aside, brought to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
