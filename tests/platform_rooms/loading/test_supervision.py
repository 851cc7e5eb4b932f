"""Labels that a training is supervised by: which, of whom, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import NAME, config
from refusals import refused

from brgsa_platform.loading.batches import split_index
from brgsa_platform.loading.supervision import RULE_NAMES, _read, supervised_labels
from brgsa_platform.store.store import REPORT, Store
from brgsa_platform.training.driver import check_fit

pytestmark = pytest.mark.ray


def test_the_stores_labels_are_those_of_the_training_rows(pairs: Path) -> None:
    store = Store.open(pairs)
    found = supervised_labels(store, config())
    rows = split_index(store, "train", "report")
    assert found is not None
    assert (found.names, found.source) == ((NAME,), "store")
    np.testing.assert_array_equal(found.labels[:, 0], rows.labels[:, store.labels.index(NAME)])
    assert found.prompts == ["There is pleural effusion."]
    assert supervised_labels(store, config("loss.supervised=0")) is None


def test_the_rules_find_in_the_reports_what_the_labels_say(pairs: Path) -> None:
    """Names that no report has are not supervised: there would be nothing to tell apart."""
    store = Store.open(pairs)
    by_rules, by_labels = (supervised_labels(store, config(f"loss.labels={source}")) for source in ("rules", "store"))
    assert by_rules is not None
    assert by_labels is not None
    assert (by_rules.names, by_rules.source) == ((NAME,), "rules")
    np.testing.assert_array_equal(by_rules.labels, by_labels.labels)


def test_doubt_is_unknown_and_what_is_not_mentioned_absent() -> None:
    reports = (
        "There is pleural effusion. The heart may be enlarged, cardiomegaly is suspected. No pneumothorax.",
        "See dictated report.",
    )
    told, nothing = _read(reports)
    values = dict(zip(RULE_NAMES, told.tolist(), strict=True))
    assert values[NAME] == 1
    assert values["Pneumothorax"] == 0
    assert values["Emphysema"] == 0
    assert math.isnan(values["Cardiomegaly"])
    assert np.isnan(nothing).all()


def test_a_report_that_is_not_understood_denies_nothing(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its labels by rules are unknown; the store's stay; and where the texts are the reports, an empty one has no row."""
    store, told = Store.open(pairs), split_index(Store.open(pairs), "train").volume_ids
    texts = {**store.texts(REPORT), told[0]: "See dictated report.", told[1]: ""}
    monkeypatch.setattr(store, "texts", lambda style: texts)
    by_rules, by_labels = (supervised_labels(store, config(f"loss.labels={source}")) for source in ("rules", "store"))
    assert by_rules is not None
    assert by_labels is not None
    assert len(by_rules.labels) == len(by_labels.labels) == len(split_index(store, "train", "report")) == 47
    assert np.isnan(by_rules.labels).sum(axis=0).tolist() == [1]
    assert np.isnan(by_rules.labels[0, 0])
    np.testing.assert_array_equal(by_rules.labels[1:], by_labels.labels[1:])


def test_labels_that_are_not_there_are_refused(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(pairs)
    with refused("unknown-label", field="loss.abnormalities", value="Plural effusion"):
        check_fit(store, config("loss.abnormalities=[Plural effusion]"))
    with refused("unknown-label", field="loss.abnormalities", value="Fluid"):
        check_fit(store, config("loss.abnormalities=[Fluid]", "loss.labels=rules"))
    with refused("no-labels", field="loss.labels", value="rules"):  # known to the rules, and in no report
        supervised_labels(store, config("loss.abnormalities=[Emphysema]", "loss.labels=rules"))
    monkeypatch.setattr(store, "labels", ())
    with refused("no-labels", field="loss.labels", value="store"):
        check_fit(store, config())
    check_fit(store, config("loss.supervised=0"))
    check_fit(store, config("loss.labels=rules"))
