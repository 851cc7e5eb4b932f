"""The search spaces: those that ship load and fit the configuration; a wrong one is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.tune import drawn_config


@pytest.mark.parametrize("name", tune_spaces.names())
def test_each_space_fits_the_configuration(name: str) -> None:
    base = load_config("demo")
    for parameter in tune_spaces.load([name]):
        assert parameter.why
        for value in parameter.choices or (parameter.low, parameter.high):
            value = int(value) if parameter.kind == "int" else value  # type: ignore[arg-type]
            tree = drawn_config(base, {parameter.field: value}).to_dict()
            for part in parameter.field.split("."):
                tree = tree[part]
            assert tree == value


def test_the_missions_search() -> None:
    found = {p.field: p for p in tune_spaces.load(["cmki"])}
    assert set(found) == {"model.bank.size", "loss.temperature", "data.style"}
    assert (found["model.bank.size"].low, found["model.bank.size"].high, found["model.bank.size"].log) == (
        64,
        8192,
        True,
    )
    assert "positives+negatives" in found["data.style"].choices


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model.bank.size: {kind: int, low: 8, high: 4, why: x}", "empty"),
        ("model.bank.size: {kind: int, low: 4, high: 4, why: x}", "empty"),
        ("model.bank.size: {kind: int, lo: 4, high: 8, why: x}", "did you mean low"),
        ("model.bank.size: {kind: number, low: 4, high: 8, why: x}", "kind"),
        ("model.bank.size: {kind: int, low: 4, high: 8}", "why"),
        ("loss.temperature: {kind: float, low: 0, high: 1, log: true, why: x}", "log scale"),
        ("data.style: {kind: categorical, why: x}", "no choices"),
        ("data.style: 3", "must map"),
        ("{", "not YAML"),
    ],
)
def test_a_wrong_space_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        tune_spaces.load([str(file)])


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="did you mean cmki"):
        tune_spaces.load(["cmkj"])
    with pytest.raises(UserError, match="two of the spaces"):
        tune_spaces.load(["cmki", "cmki-small"])
    with pytest.raises(UserError, match=r"Unknown key model\.bank\.sise"):
        drawn_config(RunConfig(), {"model.bank.sise": 4})
