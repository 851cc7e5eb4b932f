"""Answers of language models, kept by the hash of all that they depend on, in a folder on any filesystem.

One file an answer, written whole as soon as it is there: a run that is killed has lost what was under way, nothing else, and
stores that share the folder share its answers. An answer is as confidential as its report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from brgsa.errors import UserError
from brgsa_platform.runtime.storage import Folder, short_error
from brgsa_platform.summaries.backends import Answer

READERS = 16  # files read at a time: an object store answers each after some 30 ms


class AnswerCache:
    """The answers to questions of one kind: one model, instruction and form of answer.

    Args:
        folder: of all caches.
        asked_with: what every answer depends on besides its text: model, instruction, limits.
    """

    def __init__(self, folder: Folder, asked_with: Mapping[str, Any]) -> None:
        self.folder = folder
        digest = hashlib.sha256(json.dumps(asked_with, sort_keys=True).encode())
        self._kind = digest.hexdigest()[:16]

    def key(self, text: str) -> str:
        """The name of a text's answer."""
        return hashlib.sha256(f"{self._kind}\n{text}".encode()).hexdigest()

    def check(self) -> None:
        """Write and remove a file, so that a folder that cannot be written is known before anything is paid.

        Raises:
            UserError: "cache-unwritable".
        """
        try:
            self.folder.write(f"{self._kind}/.probe", "x")
            self.folder.delete(f"{self._kind}/.probe")
        except OSError as error:
            raise self._unwritable(error) from error

    def known(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers that are there, by key. A file that is damaged counts as missing."""
        there = self.folder.sizes(self._kind)
        wanted = [key for key in dict.fromkeys(keys) if f"{key}.json" in there]
        with ThreadPoolExecutor(READERS) as readers:
            found = zip(wanted, readers.map(self._read, wanted), strict=True)
            return {key: answer for key, answer in found if answer is not None}

    def keep(self, key: str, answer: Answer) -> None:
        """Write an answer.

        Raises:
            UserError: it cannot be written ("cache-unwritable"); what was written before stays.
        """
        try:
            self.folder.write(f"{self._kind}/{key}.json", json.dumps(answer._asdict()))
        except OSError as error:
            raise self._unwritable(error) from error

    def _read(self, key: str) -> Answer | None:
        try:
            return Answer(**json.loads(self.folder.read(f"{self._kind}/{key}.json")))
        except (OSError, ValueError, TypeError):
            return None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"Answers cannot be kept in {self.folder} ({short_error(error)}), so no more are asked for: mend that or choose "
            "another --cache, and run it again; what was kept is not paid for twice.",
            code="cache-unwritable",
            field="--cache",
            value=self.folder.url,
        )
