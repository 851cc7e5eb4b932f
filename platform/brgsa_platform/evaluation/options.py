"""What a user may change of a protocol without writing one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from brgsa.errors import UserError
from brgsa.protocols import Protocol, load_protocol


def with_resamples(protocol: str | Path | Protocol, resamples: int | None) -> Protocol:
    """A protocol, with another number of resamples where one is given.

    Raises:
        UserError: below-one; and see `load_protocol`.
    """
    chosen = load_protocol(protocol)
    if resamples is None:
        return chosen
    if resamples < 1:
        raise UserError(
            f"resamples must be at least 1, not {resamples}.", code="below-one", field="resamples", value=resamples
        )
    return replace(chosen, bootstrap=replace(chosen.bootstrap, resamples=resamples))
