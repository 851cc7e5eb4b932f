"""Random numbers of a run by purpose: each purpose has a stream of its own, a function of the run's seed."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are drawn for. A new purpose gets a new number, so that the others' draws stay the same."""

    SENTENCE_COUNT = 0
    SENTENCE_ORDER = 1
    BANK_SAMPLE = 2
    ITEM_ORDER = 3
    RECONSTRUCTION = 4
    VALIDATION = 5


def stream(purpose: Purpose, *key: int) -> np.random.Generator:
    """The generator of a purpose.

    Args:
        key: what the numbers depend on, the run's seed first.
    """
    # A spawn key keeps the purposes apart from each other, and from `default_rng(key)`, which orders and augments volumes.
    return np.random.default_rng(np.random.SeedSequence(key, spawn_key=(purpose,)))
