"""What a user may say of an evaluation, and may change of a protocol without writing one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from brgsa import zeroshot
from brgsa.errors import UserError, nearest
from brgsa.protocols import DEFAULT, Protocol, load_protocol


@dataclass(frozen=True)
class EvaluateOptions:
    """How volumes are scored, and how the scores are measured.

    Attributes:
        protocol: name of one of `brgsa.protocols`, path of a YAML file, or the protocol itself.
        pairing: which embeddings are compared, see `brgsa.zeroshot`.
        resamples: bootstrap resamples, in place of the protocol's.
        labels: abnormalities to score; default all that the store has labels for.
        rare: names of the rare ones; default those present in less than 3 % of the store's training scans.
        batch_size: volumes encoded at a time.
        device: default "cuda" where there is one.
        workers: processes that encode; 1 is this one. The figures are the same.
        save_embeddings: whether v, v', t and t' are kept beside the tables.
        compare: another checkpoint, a run, or a file of scores, to stand beside this one.
        embeddings: folder with the embeddings that an earlier evaluation of this checkpoint kept; no volume is then encoded.
    """

    protocol: str | Path | Protocol = DEFAULT
    pairing: str = "mean"
    resamples: int | None = None
    labels: Sequence[str] | None = None
    rare: Sequence[str] | None = None
    batch_size: int = 16
    device: str | None = None
    workers: int = 1
    save_embeddings: bool = False
    embeddings: Path | None = None
    compare: Path | None = None

    @cached_property
    def chosen(self) -> Protocol:
        """The protocol with these resamples.

        Raises:
            UserError: see `with_resamples`.
        """
        return with_resamples(self.protocol, self.resamples)

    def check(self) -> None:
        """Refuse values that no checkpoint and no store could serve.

        Raises:
            UserError: names the option and what it may be.
        """
        if self.pairing not in zeroshot.PAIRINGS:
            raise UserError(
                f"Unknown pairing {self.pairing!r}{nearest(self.pairing, zeroshot.PAIRINGS)}: choose one of "
                f"{', '.join(zeroshot.PAIRINGS)}.",
                code="unknown-pairing",
                field="pairing",
                value=self.pairing,
            )
        for option, number in (("batch_size", self.batch_size), ("workers", self.workers)):
            if number < 1:
                raise UserError(
                    f"{option} must be at least 1, not {number}.", code="below-one", field=option, value=number
                )
        _ = self.chosen


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
