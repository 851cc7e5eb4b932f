"""Conditions in search spaces: order, what a draw holds, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import tune_spaces
from brgsa.errors import UserError
from tune_spaces import Parameter, active, corners, load
from tune_spaces.conditions import ordered

ROOMY = ["cmki", "losses", "optim", "augment", "towers"]


def space(folder: Path, **entries: dict[str, Any]) -> list[Parameter]:
    """A space of fields with short names, its reasons filled in."""
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({field: {"why": "x", **entry} for field, entry in entries.items()}, sort_keys=False))
    return load([str(file)])


def choice(*choices: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "categorical", "choices": list(choices), **more}


def draw(parameters: Sequence[Parameter], pick: random.Random) -> dict[str, Any]:
    """A draw as a sampler makes it, walking through the list once."""
    drawn: dict[str, Any] = {}
    for parameter in parameters:
        if active(parameter, drawn):
            drawn[parameter.field] = pick.choice(parameter.ends)
    return drawn


def test_a_condition_comes_after_what_it_names(tmp_path: Path) -> None:
    parameters = space(
        tmp_path, c=choice(1, 2, when={"b": "on"}), b=choice("on", "off", when={"a": [1, 2]}), a=choice(1, 2, 3)
    )
    assert [p.field for p in parameters] == ["a", "b", "c"]
    assert parameters[2].when == {"b": ("on",)}


def test_without_conditions_the_files_order_stands(tmp_path: Path) -> None:
    assert [p.field for p in space(tmp_path, z=choice(1), a=choice(1), m=choice(1))] == ["z", "a", "m"]


def test_active(tmp_path: Path) -> None:
    a, b, c = space(
        tmp_path,
        a=choice("x", "y", [1, 2]),
        b={"kind": "int", "low": 1, "high": 3, "when": {"a": ["x", [1, 2]]}},
        c={"value": 7, "when": {"b": 2, "a": "x"}},
    )
    assert active(a, {})
    assert active(b, {"a": "x"})
    assert active(b, {"a": "[1, 2]"})
    assert not active(b, {"a": "y"})
    assert not active(b, {})
    assert active(c, {"a": "x", "b": 2})
    assert not active(c, {"a": "x", "b": 3})
    assert not active(c, {"a": "x"})
    assert not active(c, {"b": 2})


WHOLE = {"kind": "int", "low": 1, "high": 4}
EVEN = {"kind": "int", "low": 0, "high": 4, "step": 2}


@pytest.mark.parametrize(
    ("entries", "code", "field", "value"),
    [
        ({"b": choice(1, when={"a": "x"})}, "condition-unknown-field", "b", "a"),
        ({"a": choice(1, 2), "b": choice(1, when={"a": 3})}, "condition-value", "b", 3),
        ({"a": choice(1, 2), "b": choice(1, when={"a": [1, 3]})}, "condition-value", "b", 3),
        ({"a": {"value": 1}, "b": choice(1, when={"a": 2})}, "condition-value", "b", 2),
        ({"a": WHOLE, "b": choice(1, when={"a": 5})}, "condition-value", "b", 5),
        ({"a": WHOLE, "b": choice(1, when={"a": "x"})}, "condition-value", "b", "x"),
        ({"a": WHOLE, "b": choice(1, when={"a": 1.5})}, "condition-value", "b", 1.5),
        ({"a": EVEN, "b": choice(1, when={"a": 3})}, "condition-value", "b", 3),
        (
            {"a": {"kind": "float", "low": 0, "high": 4}, "b": choice(1, when={"a": 2.0})},
            "condition-on-float",
            "b",
            "a",
        ),
        ({"a": choice(1, when={"a": 1})}, "condition-circle", "a", "a"),
        ({"a": choice(1, when={"b": 1}), "b": choice(1, when={"a": 1})}, "condition-circle", "a", "a → b → a"),
        (
            {"d": choice(1, when={"a": 1}), **{f: choice(1, when={g: 1}) for f, g in ("ab", "bc", "ca")}},
            "condition-circle",
            "a",
            "a → b → c → a",
        ),
        (
            {"a": choice(1, 2), "b": choice(1, when={"a": 1}), "c": choice(1, when={"a": 2, "b": 1})},
            "never-drawn",
            "c",
            None,
        ),
        ({"a": choice(1), "b": choice(1, when={})}, "when-form", "b", None),
        ({"a": choice(1), "b": choice(1, when="a")}, "when-form", "b", None),
        ({"a": choice(1), "b": choice(1, when={"a": []})}, "when-form", "b", "a"),
    ],
)
def test_a_condition_that_cannot_be(
    tmp_path: Path, entries: dict[str, Any], code: str, field: str, value: object
) -> None:
    with pytest.raises(UserError) as refusal:
        space(tmp_path, **entries)
    assert (refusal.value.code, refusal.value.field, refusal.value.value) == (code, field, value)
    assert "space.yaml" in str(refusal.value)


def test_a_condition_on_a_field_of_another_space(tmp_path: Path) -> None:
    file = tmp_path / "late.yaml"
    file.write_text("data.noise: {kind: float, low: 0, high: 9, when: {model.vision.name: vit3d}, why: x}")
    fields = [p.field for p in load([str(file), "towers"])]
    assert fields.index("model.vision.name") < fields.index("data.noise")
    with pytest.raises(UserError) as refusal:
        load([str(file)])
    assert (refusal.value.code, refusal.value.value) == ("condition-unknown-field", "model.vision.name")


def test_corners_reach_both_ends_of_a_child_in_every_branch(tmp_path: Path) -> None:
    parameters = space(
        tmp_path,
        a=choice(1, 2, 3),
        child={"kind": "int", "low": 5, "high": 9, "when": {"a": [2, 3]}},
        grandchild=choice("p", "q", when={"child": 7}),
        other={"kind": "float", "low": 0.0, "high": 1.0},
    )
    drawn = list(corners(parameters))
    reached = {(d["a"], d.get("child"), d.get("grandchild")) for d in drawn}
    assert {(1, None, None), *((a, c, None) for a in (2, 3) for c in (5, 9))} <= reached
    assert {(a, 7, g) for a in (2, 3) for g in ("p", "q")} <= reached
    assert {(d["a"], d["other"]) for d in drawn} == {(a, o) for a in (1, 2, 3) for o in (0.0, 1.0)}
    assert len(drawn) == len({repr(d) for d in drawn})


@st.composite
def spaces(make: st.DrawFn) -> list[Parameter]:
    """Up to 7 parameters, each hanging on up to two earlier ones, in a shuffled order."""
    parameters: list[Parameter] = []
    for i in range(make(st.integers(1, 7))):
        parents = (
            make(st.lists(st.sampled_from(parameters), max_size=2, unique_by=lambda p: p.field)) if parameters else []
        )
        conditions = {
            p.field: tuple(make(st.lists(st.sampled_from(p.choices), min_size=1, unique=True))) for p in parents
        }
        parameters.append(
            Parameter(f"f{i}", "categorical", "x", choices=tuple(range(make(st.integers(1, 3)))), when=conditions)
        )
    return make(st.permutations(parameters))


def every_draw(parameters: Sequence[Parameter]) -> list[dict[str, Any]]:
    """All draws by brute force; `spaces` names its parameters so that each hangs on earlier names only."""
    draws: list[dict[str, Any]] = [{}]
    for parameter in sorted(parameters, key=lambda p: p.field):
        values = parameter.choices
        draws = [
            more
            for d in draws
            for more in ([{**d, parameter.field: v} for v in values] if active(parameter, d) else [d])
        ]
    return draws


@settings(deadline=None)
@given(spaces(), st.randoms(use_true_random=False))
def test_every_draw_holds_what_its_conditions_say(unordered: list[Parameter], pick: random.Random) -> None:
    if {field for drawn in every_draw(unordered) for field in drawn} < {p.field for p in unordered}:
        with pytest.raises(UserError, match="exclude each other"):
            ordered(unordered)
        return
    parameters = ordered(unordered)
    assert sorted(p.field for p in parameters) == sorted(p.field for p in unordered)
    everywhere = [draw(parameters, pick), *corners(parameters)]
    assert all(drawn in every_draw(unordered) for drawn in everywhere)
    for drawn in everywhere:
        for parameter in parameters:
            # Seen from the finished draw: a parameter is there exactly when it is active.
            assert (parameter.field in drawn) == active(parameter, drawn)
            assert parameter.field not in drawn or parameter.takes(drawn[parameter.field])
    for parameter in parameters:
        reached = {drawn[parameter.field] for drawn in everywhere[1:] if parameter.field in drawn}
        assert reached == set(parameter.choices)


@settings(deadline=None, max_examples=25)
@given(st.permutations(ROOMY))
def test_combining_spaces_gives_the_same_parameters_in_any_order(names: list[str]) -> None:
    by_field = {p.field: p for p in load(names)}
    assert by_field == {p.field: p for p in load(ROOMY)}
    before: set[str] = set()
    for field, parameter in by_field.items():
        assert set(parameter.when) <= before
        before.add(field)


def test_the_shipped_conditions_leave_out_what_does_not_apply() -> None:
    parameters = load(["optim"])
    for schedule, has in (("cosine", "optim.warmup_steps"), ("plateau", "optim.patience"), ("constant", None)):
        drawn = next(d for d in corners(parameters) if d["optim.schedule"] == schedule)
        assert set(drawn) & {"optim.warmup_steps", "optim.patience"} == ({has} if has else set())


def test_the_package_says_what_it_offers() -> None:
    assert all(hasattr(tune_spaces, name) for name in tune_spaces.__all__)
