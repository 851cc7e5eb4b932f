"""The one exception that means "the user can mend this", and the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """A mistake in input, files or configuration that the user can mend.

    The message is one sentence (two at most) that names the file or field, says what is wrong and how to mend it. The
    command line prints it without a traceback and exits with status 2.
    """


def nearest(name: str, known: Sequence[str]) -> str:
    """`" (did you mean …?)"` with the closest of the known names, to stand behind a wrong one; empty when none is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
