"""Small JSON files that are whole whenever they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa.files import sync, sync_entry, written_aside

__all__ = ["read_json", "sync", "sync_entry", "write_json", "written_aside"]


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
