"""The folders of an archive, each once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def folders_below(root: Path) -> Iterator[Path]:
    """A folder and those below it, sorted, without hidden ones; links to folders are followed, each folder once.

    A folder that cannot be read is among them: whoever reads it gets the error.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [Path(root)]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                below = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        except OSError:
            below = []
        yield folder
        waiting += [folder / name for name in reversed(below)]
