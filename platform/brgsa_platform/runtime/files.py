"""Small files that are whole whenever they are there: written aside, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brgsa.errors import UserError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes its place at the end, and is removed where writing fails."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a run's folder.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove the run's folder and train again.") from error
    return tree


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write a JSON object aside and rename it to `path`."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
