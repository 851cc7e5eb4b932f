"""Conditions between parameters: which of them a draw has, in which order they are drawn, and the draws at a space's edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brgsa.errors import UserError, nearest
from tune_spaces.parameter import Parameter


def active(parameter: Parameter, drawn: Mapping[str, Any]) -> bool:
    """Whether a draw has this parameter.

    Args:
        drawn: the values, by field, of the active parameters before this one in the order that `load` gives. A field that
            is not drawn meets no condition.
    """
    return all(field in drawn and drawn[field] in values for field, values in parameter.when.items())


def ordered(parameters: Sequence[Parameter]) -> list[Parameter]:
    """The parameters in their own order, but each after those that its conditions name.

    Raises:
        UserError: a condition names a field that no space has, or a value that the field cannot take; conditions form a
            circle, or exclude each other.
    """
    by_field = {parameter.field: parameter for parameter in parameters}
    done: dict[str, Parameter] = {}

    def visit(parameter: Parameter, below: tuple[str, ...]) -> None:
        """Add the parameter to `done`, after those that it depends on; `below` are the fields that depend on it."""
        if parameter.field in below:
            circle = " → ".join([*below[below.index(parameter.field) :], parameter.field])
            raise UserError(
                f"The conditions of {parameter.where} form a circle ({circle}): take one out.",
                code="condition-circle",
                field=parameter.field,
                value=circle,
            )
        if parameter.field in done:
            return
        for field, values in parameter.when.items():
            _check_condition(parameter, field, values, by_field)
            visit(by_field[field], (*below, parameter.field))
        if not branches(parameter, by_field):
            raise UserError(
                f"{parameter.where} is never drawn: the conditions that it depends on exclude each other.",
                code="never-drawn",
                field=parameter.field,
            )
        done[parameter.field] = parameter

    for parameter in parameters:
        visit(parameter, ())
    return list(done.values())


def _check_condition(
    parameter: Parameter, field: str, values: tuple[Any, ...], by_field: Mapping[str, Parameter]
) -> None:
    parent = by_field.get(field)
    if parent is None:
        raise UserError(
            f"{parameter.where} depends on {field}, which no given space has{nearest(str(field), list(by_field))}: "
            "correct its `when`, or add the space that does.",
            code="condition-unknown-field",
            field=parameter.field,
            value=field,
        )
    if parent.kind == "float":
        raise UserError(
            f"{parameter.where} depends on {field}, a float that is hardly ever drawn twice: make that one categorical.",
            code="condition-on-float",
            field=parameter.field,
            value=field,
        )
    for value in values:
        if not parent.takes(value):
            known = ", ".join(map(str, parent.choices)) or f"{parent.low} to {parent.high}"
            if parent.step is not None:
                known += f" in steps of {parent.step}"
            raise UserError(
                f"{parameter.where} depends on {field} being {value}, but it can be only {known}.",
                code="condition-value",
                field=parameter.field,
                value=value,
            )


def branches(parameter: Parameter, by_field: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """Each way in which a parameter is drawn: the values of all fields that it depends on, directly or indirectly."""
    ways: list[dict[str, Any]] = [{}]
    for field, values in parameter.when.items():
        above = [{**way, field: value} for way in branches(by_field[field], by_field) for value in values]
        ways = [{**way, **more} for way in ways for more in above if _agree(way, more)]
    return ways


def _agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[field] == other[field] for field in one.keys() & other.keys())


def corners(parameters: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    """Draws at the edges of a space, each once: where all of them are valid, so is (nearly) every draw.

    Each parameter takes each of its `ends` in each branch in which it is drawn, once with all others at their first end and
    once with all others at their last. So both ends of any two ranges meet in every combination, and the number of draws
    grows with the sum of the ends, not with their product.

    Args:
        parameters: in the order that `load` gives.
    """
    by_field = {parameter.field: parameter for parameter in parameters}
    seen: list[dict[str, Any]] = []
    for parameter in parameters:
        for way in branches(parameter, by_field):
            for value in parameter.ends:
                for corner in (0, -1):
                    wanted = {**way, parameter.field: value}
                    draw: dict[str, Any] = {}
                    for other in parameters:
                        if active(other, draw):
                            draw[other.field] = wanted.get(other.field, other.ends[corner])
                    if draw not in seen:
                        seen.append(draw)
                        yield draw
