"""One searched or fixed field, and how its entry in a space's YAML is read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from brgsa.errors import UserError, nearest

RANGE_KEYS = ("low", "high", "log", "step")
KEYS = {"int": RANGE_KEYS, "float": RANGE_KEYS, "categorical": ("choices",)}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One field of the configuration and how it is drawn.

    Attributes:
        field: dotted name, `section.key`.
        kind: "int", "float", "categorical" or "fixed".
        why: where its range, choices or value come from.
        low, high: the ends of the range of an int or float, both included.
        log: whether it is drawn uniformly in the logarithm.
        step: the distance between values, from `low` on; None where every value can be drawn (for an int: 1).
        choices: the values of a categorical, or the one value of a fixed field. Each is a `scalar`.
        when: field → those of its values under which this one is drawn. All conditions must be met; without any, it is always
            drawn.
        space: the space that it is read from, for messages.
    """

    field: str
    kind: str
    why: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    space: str = ""

    @property
    def where(self) -> str:
        """The field and its space, for messages."""
        return f"{self.field} in search space {self.space}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every choice, or both ends of the range: the values at which a check fails first."""
        return self.choices or (self.low, self.high)

    def takes(self, value: Any) -> bool:
        """Whether the value can be drawn."""
        if self.choices:
            return scalar(value) in self.choices
        if not _is_number(value) or self.low is None or self.high is None:
            return False
        whole = self.kind == "float" or isinstance(value, int)
        return whole and self.low <= value <= self.high and (self.step is None or _divides(self.step, value - self.low))


def scalar(value: Any) -> Any:
    """The value as it is drawn: a list or mapping becomes its JSON text, anything else stays as it is.

    Samplers, their storage, tables and MLflow hold one number or text per field (Optuna's importances fail on a list).
    """
    return json.dumps(value, default=str) if isinstance(value, list | tuple | dict) else value


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What stands in a space's YAML under one field."""

    space: str
    field: str
    keys: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The field and its space, for messages."""
        return f"{self.field} in search space {self.space}"

    def refused(self, code: str, sentence: str, value: object = None) -> UserError:
        """The error that names this field."""
        return UserError(sentence, code=code, field=self.field, value=value)


def read(space: str, name: str, keys: Mapping[str, Any]) -> Parameter:
    """The parameter that an entry of a space's YAML describes.

    Raises:
        UserError: a key is wrong (unknown-key), the reason is missing (no-why), or nothing can be drawn; the error names
            field and space.
    """
    entry = _Entry(space, name, keys)
    kind = _kind(entry)
    known = [*(("kind", *KEYS[kind]) if kind in KEYS else ("value",)), "why", "when"]
    for key in keys:
        if key not in known:
            near = nearest(str(key), known)
            sentence = f"Unknown key {key} of {entry.where}{near}; known here: {', '.join(known)}."
            raise entry.refused("unknown-key", sentence, key)
    why = keys.get("why")
    if not isinstance(why, str) or not why.strip():
        raise entry.refused(
            "no-why", f"{entry.where} has no `why`: say in a few words where its values come from.", why
        )
    if kind == "fixed":
        drawn: dict[str, Any] = {"choices": (scalar(keys["value"]),)}
    else:
        drawn = _choices(entry) if kind == "categorical" else _range(kind, entry)
    return Parameter(field=name, kind=kind, why=why.strip(), when=_when(entry), space=space, **drawn)


def _kind(entry: _Entry) -> str:
    kind, where = entry.keys.get("kind"), entry.where
    if "value" in entry.keys:
        if kind is not None:
            sentence = f"{where} has both a kind and a value: take `value` out to search it, `kind` to fix it."
            raise entry.refused("kind-and-value", sentence, kind)
        return "fixed"
    if not isinstance(kind, str) or kind not in KEYS:
        sentence = f"The kind of {where} is {kind!r}: give one of {', '.join(KEYS)}, or a `value` that is fixed."
        raise entry.refused("unknown-kind", sentence, kind)
    return kind


def _range(kind: str, entry: _Entry) -> dict[str, Any]:
    where = entry.where
    low, high = (_number(kind, key, entry) for key in ("low", "high"))
    if not low < high:
        sentence = f"The range of {where} is empty: low {low}, high {high}; low must be below high."
        raise entry.refused("empty-range", sentence, (low, high))
    log = entry.keys.get("log", False)
    if not isinstance(log, bool):
        raise entry.refused("log-not-boolean", f"log of {where} is {log!r}: give true or false.", log)
    if log and low <= 0:
        raise entry.refused("log-from-zero", f"{where} is on a log scale: low must be above 0, not {low}.", low)
    if entry.keys.get("step") is None:
        return {"low": low, "high": high, "log": log}
    step = _number(kind, "step", entry)
    if log:
        raise entry.refused("step-on-log", f"{where} has a step on a log scale: take `step` or `log` out.", step)
    if step <= 0 or not _divides(step, high - low):
        sentence = f"The step {step} of {where} does not lead from low {low} to high {high}: change one of them."
        raise entry.refused("step-misses-end", sentence, step)
    return {"low": low, "high": high, "step": step}


def _choices(entry: _Entry) -> dict[str, Any]:
    choices = entry.keys.get("choices")
    if not isinstance(choices, list) or not choices:
        raise entry.refused("no-choices", f"{entry.where} has no choices: list them as `choices: [one, another]`.")
    for position, choice in enumerate(choices):
        if choice in choices[:position]:
            raise entry.refused("choice-twice", f"{entry.where} has the choice {choice!r} twice: take one out.", choice)
    return {"choices": tuple(map(scalar, choices))}


def _when(entry: _Entry) -> dict[str, tuple[Any, ...]]:
    when, where = entry.keys.get("when", {}), entry.where
    if not isinstance(when, dict) or ("when" in entry.keys and not when):
        raise entry.refused(
            "when-form", f"when of {where} must map a searched field to its value, or a list of values."
        )
    conditions = {
        field: tuple(map(scalar, values)) if isinstance(values, list) else (scalar(values),)
        for field, values in when.items()
    }
    for field, values in conditions.items():
        if not values:
            sentence = f"{where} is drawn when {field} is one of no values: list some."
            raise entry.refused("when-form", sentence, field)
        if field == entry.field:
            raise entry.refused(
                "condition-circle", f"{where} depends on itself: take {field} out of its `when`.", field
            )
    return conditions


def _number(kind: str, key: str, entry: _Entry) -> float:
    """A finite number, an int for kind int and a float for kind float."""
    value: Any = entry.keys.get(key)
    where = entry.where
    if isinstance(value, str):
        hint = " (YAML reads an exponent only behind a dot: 1.0e-5)" if "e" in value.lower() else ""
        raise entry.refused("not-a-number", f"{key} of {where} is the text {value!r}: give a number{hint}.", value)
    if not _is_number(value) or not math.isfinite(value):
        raise entry.refused("not-a-number", f"{key} of {where} is {value}: give a number.", value)
    if kind == "int" and not isinstance(value, int):
        sentence = f"{key} of {where} is {value}: a field of kind int needs whole numbers."
        raise entry.refused("not-whole", sentence, value)
    number: float = value if kind == "int" else float(value)
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _divides(step: float, distance: float) -> bool:
    # In decimals, where 0.3 is three steps of 0.1; in binary fractions it is not.
    return Decimal(str(round(distance, 12))) % Decimal(str(step)) == 0
