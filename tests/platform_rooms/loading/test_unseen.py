"""Texts that say nothing of some abnormalities."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from brgsa.errors import UserError
from brgsa_platform.config import DataSection, load_config
from brgsa_platform.loading.unseen import training_view
from brgsa_platform.store.store import Store

pytestmark = pytest.mark.ray


def test_no_text_names_what_is_unseen_and_nothing_else_is_missing(pairs: Path) -> None:
    store = Store.open(pairs)
    seen = training_view(store, DataSection(style="report", unseen=("Pleural effusion",)))
    before, after = store.texts("report"), seen.texts("report")
    assert before.keys() == after.keys()
    assert sum("pleural effusion" in text for text in before.values()) == len(before)
    for volume, text in after.items():
        assert text == before[volume].partition("effusion. ")[2]
        assert text.startswith("The heart is of size")
    assert (seen.fingerprint, seen.labels, seen.shards()) == (store.fingerprint, store.labels, store.shards())
    assert training_view(store, DataSection()) is store


def test_an_abnormality_that_the_reader_does_not_know_is_refused(pairs: Path) -> None:
    with refused("unknown-abnormality", field="data.unseen", value="Pleural efusion"):
        training_view(Store.open(pairs), DataSection(unseen=("Pleural efusion",)))


def test_no_label_may_tell_of_what_is_unseen() -> None:
    unseen = 'data.unseen=["Cardiomegaly"]'
    for more in (["loss.supervised=1"], ["loss.supervised=1", 'loss.abnormalities=["Cardiomegaly","Emphysema"]']):
        with pytest.raises(UserError):
            load_config("demo", overrides=[unseen, *more])
    config = load_config("demo", overrides=[unseen, "loss.supervised=1", 'loss.abnormalities=["Emphysema"]'])
    assert config.data.unseen == ("Cardiomegaly",)
