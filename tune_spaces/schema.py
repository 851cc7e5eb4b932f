"""The JSON Schema of a space file, by which an editor completes and checks it (`schema.json` is its output).

It describes the structure. Rules that compare values (low below high, conditions that can be met) are checked by `load` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WHY = {"type": "string", "minLength": 1, "description": "Where the values come from: a paper, a measurement."}
LOG = {"type": "boolean", "default": False, "description": "Draw uniformly in the logarithm; low above 0, no step."}


def schema(fields: Sequence[str]) -> dict[str, Any]:
    """The schema of spaces over these fields of a configuration (`section.key`), in draft 7, which editors support best."""
    entry = {"$ref": "#/definitions/entry"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "brgsa search space",
        "description": "Fields of the run configuration and how a search draws them (docs/spaces.md).",
        "type": "object",
        "minProperties": 1,
        "properties": dict.fromkeys(fields, entry),
        "additionalProperties": False,
        "definitions": {
            "entry": {"oneOf": [_range("int", "integer"), _range("float", "number"), _categorical(), _fixed()]},
            "when": {
                "description": "Drawn only when each of these searched fields has this value, or one of these values.",
                "type": "object",
                "minProperties": 1,
                "properties": {
                    field: {"not": {"anyOf": [{"type": "object"}, {"type": "array", "maxItems": 0}]}}
                    for field in fields
                },
                "additionalProperties": False,
            },
        },
    }


def _range(kind: str, number: str) -> dict[str, Any]:
    form = _form(
        {
            "kind": {"const": kind, "description": f"A{'n' if kind == 'int' else ''} {kind} between low and high."},
            "low": {"type": number, "description": "Smallest value, included."},
            "high": {"type": number, "description": "Largest value, included."},
            "log": LOG,
            "step": {
                "type": number,
                "exclusiveMinimum": 0,
                "description": "Distance of the values from low on; it must lead to high.",
            },
        },
        ["kind", "low", "high"],
    )
    on_a_log_scale = {"properties": {"log": {"const": True}}, "required": ["log"]}
    above_zero = {"properties": {"low": {"exclusiveMinimum": 0}, "step": False}}
    return {**form, "if": on_a_log_scale, "then": above_zero}


def _categorical() -> dict[str, Any]:
    return _form(
        {
            "kind": {"const": "categorical", "description": "One of the choices."},
            "choices": {"type": "array", "minItems": 1, "uniqueItems": True, "description": "The values."},
        },
        ["kind", "choices"],
    )


def _fixed() -> dict[str, Any]:
    return _form({"value": {"description": "The one value that every trial has."}}, ["value"])


def _form(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**properties, "why": WHY, "when": {"$ref": "#/definitions/when"}},
        "required": [*required, "why"],
        "additionalProperties": False,
    }
