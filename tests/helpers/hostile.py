"""How many hostile inputs a test draws: a small fixed sample, or as many as BRGSA_HOSTILE says (`make test-cluster`)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

FIXED = 60
INPUTS = int(os.environ.get("BRGSA_HOSTILE", FIXED))


def sample(share: float = 1.0) -> settings:
    """Hypothesis' settings for a share of the inputs: the same ones at each run of the small sample, new ones of the large."""
    return settings(
        max_examples=max(1, round(share * INPUTS)),
        derandomize=INPUTS <= FIXED,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
