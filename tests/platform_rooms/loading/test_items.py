"""The items of an epoch, against plain loops over a made-up split's scans and texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading.batches import SplitIndex
from brgsa_platform.loading.items import connected, items_of, training_steps
from brgsa_platform.loading.order import epoch_batches

# Nine volumes of six scans: a report of two scans, a summary of three, and a scan whose reconstructions differ in their report.
SCANS = [0, 0, 1, 2, 2, 3, 4, 5, 5]
REPORTS = ["A.", "A.", "B.", "A.", "A.", "C.", "D.", "E.", "F."]
SUMMARIES = ["a.", "a.", "b.", "a.", "a.", "a.", "d.", "e.", "f."]


class Texts:
    """What `items_of` asks of a store."""

    def texts(self, style: str) -> dict[str, str]:
        return {f"v{row}": text for row, text in enumerate(REPORTS if style == "report" else SUMMARIES)}


def split() -> SplitIndex:
    rows = len(SCANS)
    zeros = np.zeros(rows, dtype=np.int64)
    labels = np.zeros((rows, 0), np.float32)
    return SplitIndex([f"v{row}" for row in range(rows)], np.array(SCANS), zeros, labels, ["s"], zeros, np.arange(rows))


def config(unit: str, distinct: bool, batch_size: int = 2) -> RunConfig:
    data = f"data={{unit: {unit}, distinct_texts: {str(distinct).lower()}}}"
    return load_config("paper-smoke", overrides=[data, f"train.batch_size={batch_size}"])


@pytest.mark.parametrize("unit", ["volume", "scan", "text"])
@pytest.mark.parametrize("distinct", [False, True])
def test_items_and_what_is_kept_apart(unit: str, distinct: bool) -> None:
    store: Any = Texts()
    items = items_of(store, split(), config(unit, distinct))
    named = {"volume": list(range(9)), "scan": SCANS, "text": REPORTS}[unit]
    for row in range(9):
        for other in range(9):
            assert (items.of_rows[row] == items.of_rows[other]) == (named[row] == named[other])
            shared = SCANS[row] == SCANS[other] or named[row] == named[other]
            if distinct:
                shared |= REPORTS[row] == REPORTS[other] or SUMMARIES[row] == SUMMARIES[other]
            # In this split no third volume joins two that share nothing themselves.
            assert (items.apart[items.of_rows[row]] == items.apart[items.of_rows[other]]) == shared
    assert items.drawn == (unit != "volume")


@pytest.mark.parametrize(("unit", "distinct", "most"), [("volume", False, 4), ("scan", False, 3), ("text", True, 3)])
def test_an_epochs_batches(unit: str, distinct: bool, most: int) -> None:
    """A text has one volume an epoch, whichever, and batches of two never hold two of a text or a scan."""
    store: Any = Texts()
    items = items_of(store, split(), config(unit, distinct))
    assert training_steps(split(), items, config(unit, distinct)) == most
    seen = set()
    for epoch in range(60):
        batches = epoch_batches(np.zeros(9, np.int64), items, 2, 0, epoch, 100)
        seen |= set(batches.ravel().tolist())
        assert all(SCANS[one] != SCANS[other] for one, other in batches)
        if unit == "text":
            texts = [REPORTS[row] for row in batches.ravel()]
            assert len(set(texts)) == len(texts)
            assert all(SUMMARIES[one] != SUMMARIES[other] for one, other in batches)
    assert seen == set(range(9))


def test_what_fills_no_batch_is_refused_with_its_number_and_a_mend_that_helps() -> None:
    """Six scans; four volumes without a common scan, report or summary; five without a common scan or report."""
    store: Any = Texts()

    def steps(unit: str, distinct: bool, batch_size: int) -> int:
        given = config(unit, distinct, batch_size)
        return training_steps(split(), items_of(store, split(), given), given)

    with refused("batch-too-large", field="train.batch_size", value=7) as error:
        steps("text", True, 7)
    assert " 6 scans" in str(error.value)
    with refused("too-few-texts", field="data.distinct_texts", value=True) as error:
        steps("text", True, 5)
    assert " 4 groups" in str(error.value)
    assert steps("text", False, 5) == 1
    with refused("too-few-texts", field="data.unit", value="text") as error:
        steps("text", True, 6)
    assert " 4 groups" in str(error.value)
    with refused("too-few-texts", field="data.unit", value="text") as error:
        steps("text", False, 6)
    assert " 5 groups" in str(error.value)
    assert "data.distinct_texts" not in str(error.value)
    assert steps("scan", False, 6) == 1


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25))
def test_rows_are_joined_as_a_search_from_each_finds(rows: list[tuple[int, int]]) -> None:
    found = connected([np.array([first for first, _ in rows]), np.array([second for _, second in rows])])
    for start in range(len(rows)):
        reached, waiting = {start}, [start]
        while waiting:
            one = rows[waiting.pop()]
            near = {i for i, row in enumerate(rows) if row[0] == one[0] or row[1] == one[1]} - reached
            reached |= near
            waiting += near
        assert {row for row in range(len(rows)) if found[row] == found[start]} == reached
