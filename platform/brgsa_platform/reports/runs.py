"""Evaluations as their files tell them, found by the names that users give: a run, a checkpoint, a folder, a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brgsa.errors import UserError
from brgsa.files import read_json
from brgsa.metrics import Interval
from brgsa.metrics.calibration import Reliability
from brgsa.metrics.units import Units
from brgsa.protocols import Protocol
from brgsa_platform.evaluation.outputs import file_names
from brgsa_platform.evaluation.result import GROUPS, METRICS, UNSUPERVISED, Abnormality
from brgsa_platform.evaluation.scored import Scored
from brgsa_platform.evaluation.volume_files import SavedAlignment, read_alignment, read_saved
from brgsa_platform.training import run_checkpoints

FILES = "evaluation-*.json"
FIRST = "evaluation-test.json"  # of a folder's, where there are several


@dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Attributes:
        name: of the model, distinct among those of a report.
        file: its evaluation-….json.
        told: what that holds.
        abnormalities: one row each, in label order.
        means: group → number of abnormalities, and figure → interval.
        protocol: how it was measured.
        scored: scores and labels by volume; None where they are not beside the table.
        alignment: where volumes and texts lie; None where that was not measured, or is not there.
    """

    name: str
    file: Path
    told: dict[str, Any]
    abnormalities: list[Abnormality]
    means: dict[str, tuple[int, dict[str, Interval]]]
    protocol: Protocol
    scored: Scored | None
    alignment: SavedAlignment | None

    @property
    def measured(self) -> list[Abnormality]:
        """The abnormalities that have figures."""
        return [row for row in self.abnormalities if row.measured]

    @property
    def macro(self) -> Interval:
        """The mean AUROC over all measured abnormalities."""
        return self.means["macro"][1]["auroc"]

    @property
    def title(self) -> str:
        """The model and the split."""
        return f"{self.name} on {self.told['split']}" if self.told.get("split") else self.name

    @cached_property
    def units(self) -> Units | None:
        """The observations that the protocol makes of the volumes; None without scores by volume."""
        return None if self.scored is None else self.scored.units(self.protocol.unit)

    @property
    def reliability(self) -> dict[str, Reliability]:
        """Scaling → reliability over all abnormalities; empty where none was measured."""
        found = (self.told.get("calibration") or {}).get("reliability") or {}
        return {
            scaling: Reliability(**{part: _floats(found[scaling][part]) for part in Reliability._fields})
            for scaling in found
        }

    @property
    def origin(self) -> Mapping[str, Any]:
        """What made it, see `evaluation.outputs.origin`; empty for an evaluation of an earlier version."""
        return self.told.get("origin") or {}


def read_runs(paths: Sequence[Path]) -> list[Evaluated]:
    """The evaluations that these paths name, with names that tell them apart.

    Raises:
        UserError: see `find` and `read_run`; same-run where two paths name one evaluation.
    """
    files = [find(path) for path in paths]
    for number, file in enumerate(files):
        if file.resolve() in [other.resolve() for other in files[:number]]:
            raise UserError(
                f"{file} is named twice: a report compares different evaluations.",
                code="same-run",
                field="RUN",
                value=str(paths[number]),
            )
    runs = [read_run(file) for file in files]
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else replace(run, name=f"{run.name} ({number})")
        for number, run in enumerate(runs, 1)
    ]


def find(path: Path) -> Path:
    """The evaluation's table of a run or checkpoint (which holds it beside the weights), of a folder, or the file itself.

    Raises:
        UserError: no-evaluation, or several-evaluations of which none is of the split test.
    """
    if path.is_file() and path.match(FILES):
        return path
    files = sorted(path.glob(FILES))
    if not files and path.is_dir():
        try:
            files = sorted(run_checkpoints.resolve(path).glob(FILES))
        except UserError as error:
            if error.code == "best-not-a-checkpoint":
                raise
    if not files:
        raise UserError(
            f"{path} holds no evaluation: give a run or checkpoint after `brgsa evaluate`, or the folder of its --out.",
            code="no-evaluation",
            field="RUN",
            value=str(path),
        )
    chosen = [file for file in files if len(files) == 1 or file.name == FIRST]
    if not chosen:
        raise UserError(
            f"{files[0].parent} holds several evaluations: give one of {', '.join(file.name for file in files)}.",
            code="several-evaluations",
            field="RUN",
            value=str(path),
        )
    return chosen[0]


def read_run(file: Path) -> Evaluated:
    """An evaluation from its table and what lies beside it.

    Raises:
        UserError: a file is damaged ("unreadable-evaluation"), or the table is none of `brgsa evaluate` ("not-an-evaluation").
    """
    told = read_json(file, "evaluate again", code="unreadable-evaluation")
    try:
        rows = [_abnormality(name, row) for name, row in told["abnormalities"].items()]
        groups = [group for group in (*GROUPS, UNSUPERVISED) if group in told]
        means = {group: (int(told[group]["abnormalities"]), _figures(told[group])) for group in groups}
        settings = {key: value for key, value in told["protocol_settings"].items() if key != "name"}
        protocol = Protocol.from_dict(settings, str(told["protocol"]), file)
        names = str(told["checkpoint"]), means["macro"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{file} is no table of `brgsa evaluate`, or of an earlier version: evaluate again.",
            code="not-an-evaluation",
            field=str(file),
        ) from error
    beside = {
        kind: Path(path)
        for kind, path in file_names(file.parent, file.stem.removeprefix("evaluation-"), aligned=True).items()
    }
    scored = read_saved(beside["scores"], beside["labels"]) if _are_there(beside, "scores", "labels") else None
    alignment = read_alignment(beside["alignment"]) if _are_there(beside, "alignment") else None
    return Evaluated(names[0], file, told, rows, means, protocol, scored, alignment)


def _are_there(beside: Mapping[str, Path], *kinds: str) -> bool:
    return all(beside[kind].is_file() for kind in kinds)


def _abnormality(name: str, row: Mapping[str, Any]) -> Abnormality:
    return Abnormality(
        name=name,
        rare=row["group"] == "rare",
        positives=int(row["positives"]),
        negatives=int(row["negatives"]),
        threshold=_float(row["threshold"]),
        figures=_figures(row),
        prevalence=_float(row["prevalence"]),
        supervised=bool(row["supervised"]),
    )


def _figures(row: Mapping[str, Any]) -> dict[str, Interval]:
    return {metric: Interval(*(_float(row[metric][part]) for part in Interval._fields)) for metric in METRICS}


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([_float(value) for value in values])
