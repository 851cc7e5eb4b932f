"""A refusal: one sentence for the user; a code, a field and a value for programs; all of it survives a process border."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import cloudpickle
import pytest
from refusals import refused

from brgsa.errors import UserError, nearest
from brgsa.volumes import VolumeError

REFUSALS = [
    UserError("bank.size must be at least 1, not 0.", code="too-small", field="bank.size", value=0),
    UserError("There is no search space 'x'."),
    VolumeError("a.nii", "its spacing cannot be.", code="spacing-impossible", field="pixdim", value=(0.0, 2.0, 4.0)),
]


@pytest.mark.parametrize("error", REFUSALS, ids=["all", "message", "volume"])
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), cloudpickle.loads, copy.copy])
def test_a_refusal_arrives_whole(error: UserError, again: Any) -> None:
    other = again(cloudpickle.dumps(error) if again is cloudpickle.loads else error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)


def test_the_message_alone_is_the_text() -> None:
    assert [str(error) for error in REFUSALS] == [
        "bank.size must be at least 1, not 0.",
        "There is no search space 'x'.",
        "a.nii: its spacing cannot be.",
    ]
    with refused("too-small", field="bank.size", value=0):
        raise REFUSALS[0]


def test_the_nearest_name() -> None:
    assert nearest("bank.sise", ["bank.size", "bank.init"]) == " (did you mean bank.size?)"
    assert nearest("bank.size", ["loss.temperature"]) == ""
