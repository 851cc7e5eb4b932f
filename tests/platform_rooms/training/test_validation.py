"""What validation measures, and of which volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_runs import NAME, config

from brgsa_platform.loading import batches
from brgsa_platform.loading.batches import split_index
from brgsa_platform.loading.supervision import SupervisedLabels
from brgsa_platform.store.store import REPORT, Store
from brgsa_platform.training import validation as module
from brgsa_platform.training.validation import Validation

pytestmark = pytest.mark.ray


def test_what_is_supervised_under_another_name_is_not_unsupervised(pairs: Path) -> None:
    """A training on "Effusion" says nothing zero-shot of "Pleural effusion", and the other way round."""
    store, settings = Store.open(pairs), config()
    for names, left in (((), False), (("Effusion",), False), ((f"Large {NAME.lower()}",), False), (("Nodule",), True)):
        supervised = SupervisedLabels("rules", names, np.zeros((48, len(names)), np.float32))
        validation = Validation.of(store, settings, supervised)
        assert validation is not None
        measured = validation._aurocs(np.arange(8.0)[:, None])
        assert ("val/auroc_unsupervised" in measured) == left
        assert measured["val/auroc_common"] == measured["val/auroc"]


def test_volumes_without_a_text_have_no_part_in_the_loss(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in training; but in AUROC, and in what counts as rare."""
    store, counted = Store.open(pairs), []
    reports = store.texts(REPORT)
    rows = split_index(store, "validation")
    silent = [*rows.volume_ids[:3], *split_index(store, "train").volume_ids[:10]]
    monkeypatch.setattr(store, "texts", lambda style: {**reports, **dict.fromkeys(silent, "")})
    monkeypatch.setattr(
        module, "rare_labels", lambda index: [counted.append(len(index)), batches.rare_labels(index)][1]
    )
    validation = Validation.of(store, config("data.unit=volume"))
    assert validation is not None
    assert sorted(np.concatenate(validation.batches).tolist()) == [3, 4, 5, 6, 7]
    assert len(validation.rows) == 8
    assert len(split_index(store, "train", REPORT)) == 38
    assert counted == [48]
