"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in input, files or configuration that the user can mend.

    The message is one sentence (two at most) that names the file or field, says what is wrong and how to mend it. The
    command line prints it without a traceback and exits with status 2.
    """
