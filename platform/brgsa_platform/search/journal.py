"""The file in a search's folder that keeps its study, where no database does: Optuna's journal, safe from Ctrl-C."""

from __future__ import annotations

from pathlib import Path

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock


def journal(path: Path) -> JournalFileBackend:
    """The journal in a file."""
    return JournalFileBackend(str(path), lock_obj=JournalLock(str(path)))


class JournalLock(JournalFileSymlinkLock):
    """Optuna's lock, which keeps a Ctrl-C.

    Interrupted, Optuna's removes its file. Where that is gone already, or not there yet, the error took the place of the
    Ctrl-C, and a search that was interrupted ended as one that failed.
    """

    def release(self) -> None:
        """See Optuna's, which also calls it where it is interrupted while it waits.

        Raises:
            KeyboardInterrupt: an error comes from one.
            RuntimeError: another has the lock, or nobody.
        """
        try:
            super().release()
        except (OSError, RuntimeError) as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, KeyboardInterrupt):
                    raise cause from None
                cause = cause.__context__
            raise
