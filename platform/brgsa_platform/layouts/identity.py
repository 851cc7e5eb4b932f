"""Keyed hashes in place of patients' identifiers."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path

from brgsa.errors import UserError

VARIABLE = "BRGSA_ID_KEY"
DEFAULT_FILE = Path(".config") / "brgsa" / "id-key"  # below the home folder
MIN_BYTES = 16  # of a key


def pseudonym(key: bytes, kind: str, *identifiers: str) -> str:
    """The hash that replaces identifiers: the first 16 hexadecimal digits of their HMAC-SHA256.

    Who has the key and an identifier can tell which hash belongs to it; nobody can read the identifier out of the hash.

    Args:
        key: see `identity_key`.
        kind: of identifier, such as "patient"; the same identifier gives another hash as another kind.
    """
    message = "\0".join((kind, *identifiers))
    return hmac.new(key, message.encode(), "sha256").hexdigest()[:16]


def identity_key(file: Path | None) -> bytes:
    """The key of `pseudonym`.

    It comes from the environment variable BRGSA_ID_KEY, else from `file`, else from ~/.config/brgsa/id-key. The last is made
    with 32 random bytes when it is first needed, and only its owner can read it. With the same key a patient has the same
    hash in every store. Protect it as you protect the identifiers.

    Raises:
        UserError: the file cannot be read or written ("id-key-unusable"), or the key is shorter than 16 bytes
            ("id-key-short"; `value` is its length).
    """
    if given := os.environ.get(VARIABLE):
        return _long_enough(given.encode(), f"The environment variable {VARIABLE}", VARIABLE)
    try:
        if file is None:
            file = Path.home() / DEFAULT_FILE
            if not file.exists():
                _write(file)
        return _long_enough(file.read_bytes(), f"The key file {file}", str(file))
    except OSError as error:
        raise UserError(
            f"The key file {file} cannot be used ({error.strerror or error}): correct --id-key, or set {VARIABLE}.",
            code="id-key-unusable",
            field=str(file),
        ) from error


def _write(file: Path) -> None:
    """Write a new key. Of two runs that start at once the first to link its file wins, and both use that key."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def _long_enough(key: bytes, origin: str, field: str) -> bytes:
    if len(key) < MIN_BYTES:
        raise UserError(
            f"{origin} holds {len(key)} bytes: give a secret of at least {MIN_BYTES}.",
            code="id-key-short",
            field=field,
            value=len(key),
        )
    return key
