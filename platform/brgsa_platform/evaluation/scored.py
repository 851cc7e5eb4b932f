"""Scores and labels of volumes, whoever made the scores, measured under a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brgsa import metrics
from brgsa.errors import UserError
from brgsa.metrics.units import Units, mean_of, smallest_of
from brgsa.protocols import Protocol
from brgsa_platform.evaluation.calibration.fit import calibrate
from brgsa_platform.evaluation.result import EvaluationResult, Observations, tabulate

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """N volumes with scores and labels for P abnormalities.

    Attributes:
        names: of the abnormalities.
        volume_ids: N of them.
        labels: float (N, P): 1 present, 0 absent, NaN unknown.
        scores: float64 (N, P).
        scans, patients: (N,) codes of each volume's scan and patient.
        voxels: (N, 2) area of a voxel in the plane and distance of slices, in mm² and mm; None where they are not known.
    """

    names: list[str]
    volume_ids: list[str]
    labels: NDArray[Any]
    scores: Floats
    scans: Codes
    patients: Codes
    voxels: Floats | None = None

    def for_names(self, names: Sequence[str]) -> Scored:
        """The same volumes with these abnormalities in this order; one that is not scored has unknown labels."""
        labels, scores = (
            np.full((len(self.volume_ids), len(names)), np.nan),
            np.zeros((len(self.volume_ids), len(names))),
        )
        for i, name in enumerate(names):
            if name in self.names:
                labels[:, i], scores[:, i] = (part[:, self.names.index(name)] for part in (self.labels, self.scores))
        return replace(self, names=list(names), labels=labels, scores=scores)

    def units(self, unit: str) -> Units:
        """The observations that a protocol's unit makes of them.

        Raises:
            UserError: no-spacing, where the smallest voxel is asked for and not known.
        """
        labels = np.asarray(self.labels, dtype=np.float64)
        if unit == "volume":
            return Units(labels, self.scores, np.arange(len(labels)), 0)
        if unit != "smallest-voxel":
            return mean_of(labels, self.scores, self.scans if unit == "scan" else self.patients)
        if self.voxels is None:
            raise UserError(
                "The protocol takes of each scan the volume of the smallest voxel, and no file tells the voxels' sizes: give "
                "--metadata with the columns XYSpacing and ZSpacing, or another protocol.",
                code="no-spacing",
                field="unit",
                value=unit,
            )
        return smallest_of(labels, self.scores, self.scans, self.voxels)


@dataclass(frozen=True)
class Setting:
    """What an evaluation of scores needs beside them.

    Attributes:
        protocol: how is measured.
        fitting: the volumes of the validation split, for thresholds; None where there are none.
        prevalence: (P,) share of the training scans with each abnormality; None where it is not known.
        rare: names of the rare abnormalities; None for those that prevalence tells.
        notes: sentences to put before the others.
        about: what the table says of itself.
    """

    protocol: Protocol
    fitting: Scored | None = None
    prevalence: Floats | None = None
    rare: Sequence[str] | None = None
    notes: Sequence[str] = ()
    about: dict[str, Any] = field(default_factory=dict)


def measure(scored: Scored, setting: Setting) -> EvaluationResult:
    """The table of these scores under the setting's protocol.

    Raises:
        UserError: see `Scored.units`.
    """
    protocol = setting.protocol
    units = scored.units(protocol.unit)
    notes = list(setting.notes)
    if units.contradicting:
        notes.append(
            f"{units.contradicting} volumes have another label than a volume of the same {protocol.unit}, where one counts."
        )
    fitted = setting.fitting.units(protocol.unit) if setting.fitting and protocol.threshold == "validation" else None
    thresholds, source, more = _thresholds(units, fitted, protocol)
    groups = _drawn_as_one(scored, units, protocol)
    result = tabulate(
        scored.names,
        units.labels,
        units.scores,
        protocol,
        thresholds=thresholds,
        groups=groups,
        prevalence=setting.prevalence,
        rare=setting.rare,
    )
    drawn = protocol.bootstrap
    about = {
        **setting.about,
        "volumes": len(scored.volume_ids),
        "scans": len(np.unique(scored.scans)),
        "patients": len(np.unique(scored.patients)),
        "observations": len(units.labels),
        "protocol": protocol.name,
        "threshold_source": source,
        "cluster": drawn.unit,
        "resamples": drawn.resamples,
        "seed": drawn.seed,
        "protocol_settings": protocol.to_dict(),
    }
    return replace(
        result,
        about=about,
        observed=Observations([scored.volume_ids[i] for i in units.first], units.labels, units.scores, groups),
        calibration=None if fitted is None else calibrate(fitted, units, result.columns()),
        notes=[*notes, *more, *result.notes],
    )


def _drawn_as_one(scored: Scored, units: Units, protocol: Protocol) -> Codes | None:
    """(U,) what the bootstrap draws as one; None draws single observations."""
    groups = {"volume": None, "scan": scored.scans, "patient": scored.patients}[protocol.bootstrap.unit]
    if groups is None or protocol.unit == "patient":
        return None
    return groups[units.first]


def _thresholds(units: Units, fitted: Units | None, protocol: Protocol) -> tuple[Floats, str, list[str]]:
    """(P,) the threshold of each abnormality, NaN where none can be chosen; in words whose they are; what to say of it."""
    if protocol.threshold == "test":
        return _corners(units), f"fitted on the labels under test (protocol {protocol.name})", []
    if fitted is None:
        note = "There are no validation scores to choose thresholds on, so there are no figures at one."
        return np.full(units.labels.shape[1], np.nan), "none", [note]
    return _corners(fitted), "chosen on the validation split", []


def _corners(units: Units) -> Floats:
    columns = range(units.labels.shape[1])
    return np.array([metrics.corner_threshold(units.labels[:, i], units.scores[:, i]) for i in columns])
