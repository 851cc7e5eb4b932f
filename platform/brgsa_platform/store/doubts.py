"""What is doubtful in a store, and what was refused: the table at the end of `brgsa prepare` and in `brgsa store info`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass

from brgsa.volumes.quality_flags import QUALITY_FLAGS, flag_name
from brgsa_platform.runtime.console import print_line, print_table, table
from brgsa_platform.store.store import Store

WARN_FROM = 0.05  # share of the volumes that carry one doubt
_REASONS = 12  # of refusal that are shown
_NUMBERS = re.compile(r"\d+(?:[.,×x]\d+)*")


@dataclass(frozen=True)
class Count:
    """Volumes with something in common.

    Attributes:
        what: a flag, or a stage and reason of refusal.
        volumes: how many.
        share: of the store's volumes, refused ones included for refusals.
        example: id of one of them.
        doubt: whether it casts doubt on a volume.
    """

    what: str
    volumes: int
    share: float
    example: str
    doubt: bool = False


@dataclass(frozen=True)
class Doubts:
    """Flags and refusals of a store, the most frequent first."""

    flags: list[Count]
    refused: list[Count]

    @property
    def by_flag(self) -> dict[str, int]:
        """Flag, without its numbers → volumes that carry it, the most frequent first."""
        return {count.what: count.volumes for count in self.flags}

    def print(self) -> None:
        """Print the tables that have rows, and the warning."""
        for title, counts in (("flag", self.flags), ("refused", self.refused[:_REASONS])):
            if counts:
                rows = [
                    [f"{c.what} (doubt)" if c.doubt else c.what, f"{c.volumes:,}", f"{c.share:.1%}", c.example]
                    for c in counts
                ]
                print_table(table((title, "volumes", "share", "for example"), rows, right=(1, 2)))
        if len(self.refused) > _REASONS:
            print_line(f"and {len(self.refused) - _REASONS} other reasons")
        if self.warning():
            print_line(self.warning())

    def warning(self) -> str:
        """One line on the doubts that more than 5 % of the volumes share; empty where there are none."""
        common = [count for count in self.flags if count.doubt and count.share > WARN_FROM]
        if not common:
            return ""
        named = ", ".join(f"{count.what} {count.share:.0%}" for count in common)
        return f"Warning: many volumes of this store are doubtful ({named} of them); `brgsa store info` says which."


def doubts(store: Store) -> Doubts:
    """Count the flags of a store's volumes and the reasons of its quarantine.

    Raises:
        UserError: the index is damaged; see `Store.index`.
    """
    quarantine = store.quarantine().to_pylist()
    reasons: dict[str, list[str]] = {}
    for row in quarantine:
        reasons.setdefault(f"{row['stage']}: {_common(row['reason'], row['source'])}", []).append(row["volume_id"])
    flags = _flags(store)
    return Doubts(flags, _counts(reasons, len(store.index(["volume_id"])) + len(quarantine)))


def doubt_warning(store: Store) -> str:
    """The warning of a store, in one line; empty where there is none."""
    return Doubts(_flags(store), []).warning()


def warn_of_doubts(store: Store) -> None:
    """Repeat a store's warning on standard error, where it has one."""
    if line := doubt_warning(store):
        print(f"brgsa: {line}", file=sys.stderr, flush=True)


def _flags(store: Store) -> list[Count]:
    rows = store.index(["volume_id", "flags"]).to_pylist()
    flags: dict[str, list[str]] = {}
    for row in rows:
        for flag in row["flags"]:
            flags.setdefault(flag_name(flag), []).append(row["volume_id"])
    return _counts(flags, len(rows))


def _common(reason: str, source: str) -> str:
    """A reason without the file's name and its own numbers, so that volumes of one fault are counted together."""
    return _NUMBERS.sub("…", reason.removeprefix(f"{source}: "))


def _counts(volumes: dict[str, list[str]], of: int) -> list[Count]:
    frequent = Counter({what: len(ids) for what, ids in volumes.items()}).most_common()
    return [Count(what, n, n / of, min(volumes[what]), what in QUALITY_FLAGS) for what, n in frequent]
