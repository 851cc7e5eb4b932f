"""Published figures that may stand beside a run: those of the same abnormalities under the same protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from brgsa.labels import LABEL_SETS
from brgsa.protocols import SHIPPED, Protocol, load_protocol
from brgsa_platform.reports.runs import Evaluated

FILE = Path(__file__).parent / "published.yaml"


@dataclass(frozen=True)
class Published:
    """A published macro AUROC.

    Attributes:
        labels: name of the label set, one of `brgsa.labels.LABEL_SETS`.
        protocols: under which it stands.
        low, high: 95 % interval; NaN where none is published.
        source: where it is published.
    """

    model: str
    labels: str
    protocols: tuple[str, ...]
    auroc: float
    source: str
    low: float = math.nan
    high: float = math.nan


def all_published() -> list[Published]:
    """The rows of published.yaml."""
    rows = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [Published(**{**row, "protocols": tuple(row["protocols"])}) for row in rows]


def published_beside(run: Evaluated) -> list[Published]:
    """The published rows of the abnormalities that a run measured, all of them and no other, and of its protocol."""
    if run.protocol.name not in SHIPPED or not _as_shipped(run.protocol):
        return []
    names = {row.name for row in run.measured}
    return [
        row for row in all_published() if run.protocol.name in row.protocols and names == set(LABEL_SETS[row.labels])
    ]


def _as_shipped(protocol: Protocol) -> bool:
    """Whether a protocol is the one of its name, whatever the number of resamples."""
    own = load_protocol(protocol.name)
    return replace(protocol, bootstrap=replace(protocol.bootstrap, resamples=own.bootstrap.resamples)) == own
