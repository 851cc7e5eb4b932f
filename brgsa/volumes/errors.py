"""The refusal of one volume."""

from __future__ import annotations

from pathlib import Path

from brgsa.errors import UserError


class VolumeError(UserError):
    """A file that cannot be used as a CT volume.

    Attributes:
        path: the file as the caller gave it.
        reason: what is wrong with it and how to mend it, without the file's name; the message is "path: reason".
        code, field, value: as in `UserError`; the field is one of the file's header or of its metadata row.
    """

    def __init__(self, path: Path | str, reason: str, *, code: str = "", field: str = "", value: object = None) -> None:
        super().__init__(f"{path}: {reason}", code=code, field=field, value=value)
        self.path = str(path)
        self.reason = reason
        self.args = (self.path, reason)  # pickle calls the class with these

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
