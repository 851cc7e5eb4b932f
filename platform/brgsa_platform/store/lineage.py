"""A store's splits, as runs in MLflow name the data that they work on."""

from __future__ import annotations

from collections import Counter

from brgsa_platform.store.store import Store
from brgsa_platform.tracking.lineage import Dataset


def datasets(store: Store, **contexts: str) -> list[Dataset]:
    """The splits of a store that hold volumes.

    Args:
        contexts: split → what the run does with it.
    """
    counts = Counter(store.index(["split"])["split"].to_pylist())
    return [
        Dataset(store.path, store.fingerprint, split, counts[split], context)
        for split, context in contexts.items()
        if counts[split]
    ]
