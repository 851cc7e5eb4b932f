"""What a search is, as its folder keeps it, and how it goes about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tune_spaces
from brgsa_platform.runtime.files import read_json

if TYPE_CHECKING:
    from brgsa_platform.search.searcher import Limits

CHECKPOINTS = ("all", "best", "none")
GOALS = {"auroc": "val/auroc", "common": "val/auroc_common", "rare": "val/auroc_rare"}
SEARCH_FILE = "search.json"


@dataclass(frozen=True)
class SearchSpec:
    """What makes a search what it is: kept in its folder, and the same when it is resumed.

    Attributes:
        spaces: names or paths, as given; `parameters` what they held.
        data: the store's fingerprint.
    """

    spaces: list[str]
    parameters: list[dict[str, Any]]
    base: dict[str, Any]
    store: str
    data: str
    preset: str | None
    goals: list[str]
    sampler: str
    pruner: str
    seed: int
    storage: str | None = None
    parent_run: str = ""

    def space(self) -> list[tune_spaces.Parameter]:
        return [
            tune_spaces.Parameter(
                **{**p, "choices": tuple(p["choices"]), "when": {k: tuple(v) for k, v in p["when"].items()}}
            )
            for p in self.parameters
        ]

    def over(self) -> str:
        """The space in words."""
        return f"{' + '.join(self.spaces)} ({', '.join(p['field'] for p in self.parameters)})"


@dataclass(frozen=True)
class SearchOptions:
    """How a search goes about it; what may change when it is resumed.

    Attributes:
        trials: in all; None: no limit. hours: of wall clock, this time. epochs: of all trials together. patience: trials
            without a better one after which the search ends.
        concurrent: trials at a time; None: as many as the cluster holds.
        gpu_share: GPUs of each training process; None: one where the cluster has any.
        checkpoints: which trials' best checkpoints MLflow gets a copy of: all, best (that of the best trial) or none.
        points: fields' values to begin with, before anything is drawn.
        warm_from: searches of the same folder or runs in MLflow that the sampler learns from; see `warm_start.learn`.
    """

    trials: int | None = 16
    hours: float | None = None
    epochs: int | None = None
    patience: int | None = None
    concurrent: int | None = None
    gpu_share: float | None = None
    checkpoints: str = "all"
    points: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    warm_from: Sequence[str] = field(default_factory=tuple)

    def limits(self) -> Limits:
        from brgsa_platform.search.searcher import Limits

        return Limits(self.trials, None if self.hours is None else 3600 * self.hours, self.epochs, self.patience)


def read_spec(folder: Path) -> SearchSpec | None:
    """What a folder's search is, None where there is none."""
    file = folder / SEARCH_FILE
    if not file.is_file():
        return None
    return SearchSpec(**read_json(file))


def trial_name(number: int) -> str:
    """Name of a trial's MLflow run and folder; sorts as the trials were started."""
    return f"trial-{number:04d}"
