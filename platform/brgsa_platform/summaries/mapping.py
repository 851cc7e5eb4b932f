"""Rows worked on by Ray Data's tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import set_data_context

REPORTS_PER_TASK = 64


def mapped(
    rows: Sequence[dict[str, Any]], work: Callable[..., dict[str, Any]], arguments: dict[str, Any], what: str
) -> Iterator[dict[str, Any]]:
    """Batches of what `work` makes of batches of rows, in any order.

    Args:
        work: takes a batch (column → array) and `arguments` by name.
        what: a few words for the progress bar.
    """
    import ray

    if not rows:
        return
    set_data_context()
    blocks = -(-len(rows) // REPORTS_PER_TASK)
    dataset = ray.data.from_items(list(rows), override_num_blocks=blocks)
    dataset = dataset.map_batches(work, fn_kwargs=arguments, batch_size=REPORTS_PER_TASK)
    with progress(len(rows), what) as advance:
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            yield batch
            advance(len(next(iter(batch.values()))))
