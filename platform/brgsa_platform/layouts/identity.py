"""Keyed hashes in the place of patients' identifiers."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path

from brgsa.errors import UserError

VARIABLE = "BRGSA_ID_KEY"
DEFAULT_FILE = Path(".config") / "brgsa" / "id-key"  # below the home folder
SHORTEST = 16  # bytes


def pseudonym(key: bytes, kind: str, *identifiers: str) -> str:
    """What stands for an identifier: HMAC-SHA256, the first 16 hexadecimal digits.

    Whoever has the key can tell which scan a hash belongs to, by hashing identifiers; nobody can read one out of it.

    Args:
        kind: of identifier ("patient", say): one that serves as two kinds gives two hashes.
    """
    message = "\0".join((kind, *identifiers))
    return hmac.new(key, message.encode(), "sha256").hexdigest()[:16]


def identity_key(file: Path | None) -> bytes:
    """The key of `pseudonym`: from the environment variable BRGSA_ID_KEY, else from `file`, else from
    ~/.config/brgsa/id-key, which is written with 32 random bytes when it is first needed, readable by its owner alone.

    With the same key a patient has the same hash in every store. Keep it as the identifiers themselves.

    Raises:
        UserError: the file cannot be read or written, or the key is shorter than 16 bytes.
    """
    told = os.environ.get(VARIABLE)
    if told:
        return _long_enough(told.encode(), f"The environment variable {VARIABLE}")
    try:
        if file is None:
            file = Path.home() / DEFAULT_FILE
            if not file.exists():
                _write(file)
        return _long_enough(file.read_bytes(), f"The key file {file}")
    except OSError as error:
        raise UserError(
            f"The key file {file} cannot be used ({error.strerror or error}): correct --id-key, or set {VARIABLE}."
        ) from error


def _write(file: Path) -> None:
    """A new key. Two runs that start at once end with one and the same: the first to link it."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def _long_enough(key: bytes, what: str) -> bytes:
    if len(key) < SHORTEST:
        raise UserError(f"{what} holds {len(key)} bytes: give a secret of at least {SHORTEST}.")
    return key
