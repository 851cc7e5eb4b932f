"""The one exception that means "the user can fix this", and the name that the user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """A mistake in input, files or configuration that the user can fix.

    The message is one sentence (two at most) that names the file or field, says what is wrong and how to fix it. The
    command line prints it without a traceback and exits with status 2. Programs and tests read the attributes below,
    never the wording. They survive pickling, so a refusal on a worker process arrives whole.

    Attributes:
        code: the kind of mistake in a few words that stay the same, as "volume-too-small"; empty where no program needs it.
        field: what is at fault: a configuration field ("model.vision.volume"), an option, a table's column or a file.
        value: the value at fault, plain (text, number, tuple) so that it can be pickled; None where there is none.
    """

    def __init__(self, message: str, *, code: str = "", field: str = "", value: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.value = value


def nearest(name: str, known: Sequence[str]) -> str:
    """`" (did you mean …?)"` with the known name closest to a wrong one, to put behind it; empty when none is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
