"""calibration.json beside a checkpoint: how its scores become probabilities, as an evaluation fitted it on validation volumes.

weights      hash of the weights whose scores were fitted
pairing      of the scores; protocol, data: by whose prompts and on which store they were made
prompts      text → abnormality, temperature and bias of sigmoid(score / temperature + bias), and how many of these volumes
             have the abnormality (positives) or lack it (negatives)
unfitted     text → why it has no fit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brgsa import files
from brgsa.checkpoint import weights_digest
from brgsa.errors import UserError
from brgsa.metrics.calibration import Temperature
from brgsa.protocols import Protocol
from brgsa.protocols.prompts import prompts

FILE = "calibration.json"
FORMAT = 1
FEWEST = 5  # validation volumes with the abnormality, and without it
NEVER_FITTED = "no calibration was fitted for this checkpoint (brgsa evaluate does, on the validation split)"
NOT_FITTED = "no calibration was fitted for this prompt"


@dataclass(frozen=True)
class Fit:
    """One prompt's scaling (see `brgsa.metrics.calibration.Temperature`), and the validation volumes that it was fitted on."""

    abnormality: str
    temperature: float
    bias: float
    positives: int
    negatives: int

    def __call__(self, score: float) -> float:
        """The probability that a score stands for, where the abnormality is as frequent as in the validation split."""
        return float(Temperature(self.temperature, self.bias)(score))


@dataclass(frozen=True)
class Probabilities:
    """The fits that hold for a checkpoint's scores.

    Attributes:
        fits: by prompt.
        unfitted: prompt → why it has none.
        why_not: why any other prompt has none.
    """

    fits: Mapping[str, Fit]
    unfitted: Mapping[str, str]
    why_not: str

    @classmethod
    def of(cls, checkpoint: Path, pairing: str) -> Probabilities:
        """Those beside a checkpoint, where they were fitted to its weights and this pairing.

        Raises:
            UserError: the file is damaged ("calibration-damaged").
        """
        path = checkpoint / FILE
        if not path.is_file():
            return cls({}, {}, NEVER_FITTED)
        mend = "remove it, or evaluate the checkpoint again"
        tree = files.read_json(path, mend, code="calibration-damaged")
        try:
            if tree["format"] != FORMAT:
                raise ValueError(f"format {tree['format']}")
            fits = {str(text): Fit(**row) for text, row in tree["prompts"].items()}
            made_for, unfitted = (tree["weights"], tree["pairing"]), dict(tree["unfitted"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} holds no calibration of this version ({error}): {mend}.",
                code="calibration-damaged",
                field=str(path),
            ) from error
        if made_for[0] != weights_digest(checkpoint):
            return cls({}, {}, f"the calibration in {FILE} was fitted to another checkpoint's scores")
        if made_for[1] != pairing:
            return cls({}, {}, f"the calibration in {FILE} was fitted to scores of the pairing {made_for[1]}")
        return cls(fits, unfitted, NOT_FITTED)

    def __call__(self, text: str, score: float) -> tuple[float | None, str]:
        """A prompt's probability, and where it has none, why."""
        fit = self.fits.get(text)
        return (fit(score), "") if fit else (None, self.unfitted.get(text, self.why_not))


def keep(
    folder: Path,
    about: Mapping[str, Any],
    protocol: Protocol,
    names: Sequence[str],
    scales: Mapping[int, Temperature],
    labels: NDArray[np.floating],
) -> Path | None:
    """Write the fits of an evaluation, for those who score one volume for one prompt, as `brgsa predict` does.

    A prompt has a fit where at least five validation volumes have and five lack the abnormality, and where the probability
    rises with the score.

    Args:
        about: the file's weights, pairing, protocol and data.
        names: the P abnormalities.
        scales: of them by position, fitted on the validation split.
        labels: (N, P) of its volumes.

    Returns:
        The file; None where the protocol's scores are of several volumes or prompts, and nothing is written.
    """
    asked = protocol.prompts
    if protocol.unit != "volume" or len(asked.templates) != 1 or asked.contrast or asked.synonyms:
        return None
    fits: dict[str, Fit] = {}
    unfitted: dict[str, str] = {}
    for i, (name, text) in enumerate(zip(names, prompts(names, asked.templates[0]), strict=True)):
        positives, negatives = (int((labels[:, i] == value).sum()) for value in (1, 0))
        scale = scales.get(i)
        if name in protocol.max_of:
            unfitted[text] = "its calibration was fitted to the larger of several scores"
        elif scale is None or min(positives, negatives) < FEWEST:
            unfitted[text] = (
                f"fewer than {FEWEST} validation volumes have the abnormality or lack it, or none under test"
            )
        elif scale.temperature <= 0:
            unfitted[text] = "its scores do not rise with the abnormality in the validation split"
        else:
            fits[text] = Fit(name, scale.temperature, scale.bias, positives, negatives)
    tree = {
        "format": FORMAT,
        **about,
        "prompts": {text: asdict(fit) for text, fit in fits.items()},
        "unfitted": unfitted,
    }
    files.write_json(folder / FILE, tree)
    return folder / FILE
