"""Cohen's kappa between two readers, with an interval (Cohen 1960; bootstrap over cases)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000


class Kappa(NamedTuple):
    """Agreement beyond chance.

    Attributes:
        value: 1 for full agreement, 0 for that of chance; NaN where both readers gave all cases the same class.
        low, high: 2.5th and 97.5th percentile over the draws.
        agreed: share of equal verdicts.
        verdicts: how many.
    """

    value: float
    low: float
    high: float
    agreed: float
    verdicts: int


def kappa(one: NDArray[np.bool_], other: NDArray[np.bool_], cases: NDArray[np.int64], seed: int = 0) -> Kappa:
    """Kappa of two readers' yes and no.

    Args:
        one, other: verdicts, bool (N,).
        cases: int (N,), equal for verdicts on one report; whole reports are drawn, for their verdicts belong together.
    """
    names, numbers = np.unique(cases, return_inverse=True)
    # Cells of the table of both readers' verdicts, for each case: (C, 4).
    cells = np.zeros((len(names), 4))
    np.add.at(cells, (numbers, 2 * one.astype(int) + other.astype(int)), 1.0)
    drawn = np.random.default_rng(seed).integers(0, len(names), (DRAWS, len(names)))
    values = _kappa(cells[drawn].sum(axis=1))
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, (2.5, 97.5)) if len(values) else (np.nan, np.nan)
    return Kappa(float(_kappa(cells.sum(axis=0))), float(low), float(high), float(np.mean(one == other)), len(one))


def _kappa(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of tables (..., 4) with the counts of no/no, no/yes, yes/no, yes/yes."""
    no_no, no_yes, yes_no, yes_yes = np.moveaxis(cells, -1, 0)
    total = cells.sum(axis=-1)
    observed = (no_no + yes_yes) / total
    chance = ((yes_no + yes_yes) * (no_yes + yes_yes) + (no_no + no_yes) * (no_no + yes_no)) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float64] = np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)
    return result
