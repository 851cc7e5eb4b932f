"""What an epoch is made of: the items of a split, of which an epoch draws one volume each."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from brgsa.errors import UserError
from brgsa_platform.config import RunConfig
from brgsa_platform.loading.batches import SplitIndex
from brgsa_platform.loading.order import Ints, Items, steps_per_epoch
from brgsa_platform.loading.texts import codes_of, written_texts
from brgsa_platform.store.store import REPORT, Store


def items_of(store: Store, rows: SplitIndex, config: RunConfig) -> Items:
    """The items of a split, as `data.unit` and `data.distinct_texts` say.

    Raises:
        UserError: the texts' style has not been computed.
    """
    data = config.data
    if data.unit == "volume" and not data.distinct_texts:
        return Items.volumes(rows.scans)
    styles = [REPORT] if data.unit == "text" or data.distinct_texts else []
    if data.distinct_texts and data.style != REPORT:
        styles.append(data.style)
    texts = [codes_of(written_texts(store, style, rows)) for style in styles]  # hashed only where they are needed
    named = [np.arange(len(rows))] if data.unit == "volume" else [rows.scans] if data.unit == "scan" else texts
    of_rows = _numbers(named[0])
    kept_apart = [of_rows, rows.scans, *(texts if data.distinct_texts else [])]
    apart = np.zeros(of_rows.max() + 1, dtype=np.int64)
    apart[of_rows] = connected(kept_apart)  # all rows of an item have one code, for they share its number
    return Items(of_rows, apart, drawn=data.unit != "volume")


def training_steps(rows: SplitIndex, items: Items, config: RunConfig) -> int:
    """Steps of an epoch.

    Raises:
        UserError: the training split has fewer scans than a batch, or fewer volumes without a common scan or text.
    """
    batch_size, unit = config.train.batch_size, config.data.unit
    if _count(rows.scans) < batch_size:
        return steps_per_epoch(rows.scans, batch_size)  # refuses, and names their number
    groups = _count(items.apart)
    if groups < batch_size:
        too_few_reports = unit == "text" and _count(connected([items.of_rows, rows.scans])) < batch_size
        mends = ["data.unit=scan"] * too_few_reports + ["data.distinct_texts=false"] * config.data.distinct_texts
        raise UserError(
            f"The volumes of the training split make {groups} groups of a common scan or text, of which a batch takes one "
            f"volume each, fewer than train.batch_size={batch_size}: set {' '.join(mends)}, or lower train.batch_size.",
            code="too-few-texts",
            field="data.unit" if too_few_reports else "data.distinct_texts",
            value=unit if too_few_reports else True,
        )
    return steps_per_epoch(items.apart, batch_size)


def _count(codes: Ints) -> int:
    return len(np.unique(codes))


def connected(codes: list[Ints]) -> Ints:
    """(N,) a number of each row: equal for two rows that share one of their codes (N,), or are joined by such rows."""
    rows = len(codes[0])
    edges, nodes = [], rows
    for one in codes:
        numbers = _numbers(one)
        edges.append(nodes + numbers)
        nodes += int(numbers.max()) + 1
    start, end = np.tile(np.arange(rows), len(codes)), np.concatenate(edges)
    graph = sparse.coo_array((np.ones(len(end), dtype=np.int8), (start, end)), shape=(nodes, nodes))
    numbers_of_all: Ints = csgraph.connected_components(graph, directed=False)[1][:rows].astype(np.int64)
    return numbers_of_all


def _numbers(codes: Ints) -> Ints:
    """Codes as numbers from 0, in the codes' order."""
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)
