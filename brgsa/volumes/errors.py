"""The refusal of one volume."""

from __future__ import annotations

from pathlib import Path

from brgsa.errors import UserError


class VolumeError(UserError):
    """A file that cannot be used as a CT volume.

    Attributes:
        path: the file as it was given.
        reason: what is wrong with it and how to mend it, without the file's name; the message is "path: reason".
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
