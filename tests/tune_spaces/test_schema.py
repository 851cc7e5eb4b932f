"""The JSON Schema of search spaces: accepts what the loader accepts, completes the configuration's fields, is not stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform.search.spaces import field_names
from tune_spaces.schema import schema

FOLDER = Path(tune_spaces.__file__).parent
SCHEMA = json.loads((FOLDER / "schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def test_the_shipped_schema_is_up_to_date() -> None:
    assert schema(field_names()) == SCHEMA, "run: python -m brgsa_platform.search.spaces > tune_spaces/schema.json"


def test_its_names_are_the_configurations() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert list(SCHEMA["properties"]) == field_names()
    assert {"model.bank.size", "loss.temperature", "data.style", "optim.betas", "train.epochs"} <= set(field_names())


@pytest.mark.parametrize("name", tune_spaces.names())
def test_it_accepts_every_shipped_space_and_each_says_where_it_is(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=./schema.json\n")
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "model.bank.sise: {value: 3, why: x}",
        "model.bank.size: 3",
        "model.bank.size: {value: 3}",
        "model.bank.size: {value: 3, why: ''}",
        "model.bank.size: {value: 3, kind: int, why: x}",
        "model.bank.size: {kind: integer, low: 1, high: 2, why: x}",
        "model.bank.size: {kind: int, low: 1, why: x}",
        "model.bank.size: {kind: int, low: 1, high: 2.5, why: x}",
        "model.bank.size: {kind: int, lo: 1, high: 2, why: x}",
        "model.bank.size: {kind: int, low: 1, high: 3, step: 0, why: x}",
        "model.bank.size: {kind: int, low: 1, high: 3, choices: [1], why: x}",
        "model.bank.size: {kind: int, low: 0, high: 3, log: true, why: x}",
        "model.bank.size: {kind: int, low: 1, high: 3, log: true, step: 1, why: x}",
        "optim.lr: {kind: float, low: 1e-5, high: 1.0, why: x}",  # YAML reads 1e-5 as text
        "data.style: {kind: categorical, why: x}",
        "data.style: {kind: categorical, choices: [], why: x}",
        "data.style: {kind: categorical, choices: findings, why: x}",
        "data.style: {kind: categorical, choices: [a, a], why: x}",
        "data.style: {value: a, why: x, when: {}}",
        "data.style: {value: a, why: x, when: {optim.nme: adam}}",
        "data.style: {value: a, why: x, when: {optim.name: []}}",
        "data.style: {value: a, why: x, when: {optim.name: {a: b}}}",
        "{}",
    ],
)
def test_it_refuses_what_the_loader_or_the_configuration_refuses(text: str) -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(text))


@pytest.mark.parametrize("kind", ["int", "float", "categorical"])
def test_an_editor_finds_keys_with_descriptions(kind: str) -> None:
    forms = SCHEMA["definitions"]["entry"]["oneOf"]
    form = next(form for form in forms if form["properties"].get("kind", {}).get("const") == kind)
    described = {key for key, value in form["properties"].items() if "description" in value}
    assert described >= set(form["properties"]) - {"when"}
    assert SCHEMA["definitions"]["when"]["description"]


numbers = st.integers(-3, 9) | st.floats(-2, 9, allow_subnormal=False).map(lambda x: round(x, 2))
scalars = st.none() | st.booleans() | numbers | st.sampled_from(["a", "b"])
anything = scalars | st.lists(scalars, max_size=3)
conditions = st.dictionaries(st.just("optim.name"), st.sampled_from(["a", ["a"], ["a", "b"], "c"]), min_size=1)


def entry(optional: dict[str, st.SearchStrategy[Any]] | None = None, **required: Any) -> st.SearchStrategy[Any]:
    """Entries that are right in their keys and often in their values."""
    forms = {key: value if isinstance(value, st.SearchStrategy) else st.just(value) for key, value in required.items()}
    return st.fixed_dictionaries(
        {"why": st.just("because"), **forms}, optional={"when": conditions, **(optional or {})}
    )


entries = st.one_of(
    entry({"log": st.booleans()}, kind="int", low=st.integers(-1, 4), high=st.integers(2, 9)),
    entry(kind="int", low=st.integers(-1, 2), high=st.integers(3, 9), step=st.integers(0, 2)),
    entry({"log": st.booleans(), "step": numbers}, kind="float", low=numbers, high=numbers),
    entry(kind="categorical", choices=st.lists(anything, max_size=3)),
    entry(value=anything),
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=entries)
def test_whatever_the_loader_takes_the_schema_takes(tmp_path: Path, drawn: dict[str, Any]) -> None:
    tree = {"optim.name": {"kind": "categorical", "choices": ["a", "b"], "why": "x"}, "data.style": drawn}
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(tree))
    try:
        tune_spaces.load([str(file)])
    except UserError:
        return
    VALIDATOR.validate(tree)
