"""Search spaces as data: one YAML file a space, and the loader that checks them.

A file maps a configuration field (`section.key`) to how it is drawn: `kind` int or float with `low`, `high` and optionally
`log`; or `kind` categorical with `choices`; each with a short `why`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from brgsa.errors import UserError

KINDS = ("int", "float", "categorical")


@dataclass(frozen=True)
class Parameter:
    """One searched field and how it is drawn."""

    field: str
    kind: str
    why: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()


def names() -> list[str]:
    """The spaces that come with the package."""
    entries = files("tune_spaces").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load(spaces: Sequence[str]) -> list[Parameter]:
    """The parameters of one or several spaces, by name or path of a YAML file.

    Raises:
        UserError: no such space, a field in two of them, or an entry that cannot be drawn; names file and field.
    """
    found: dict[str, Parameter] = {}
    for space in spaces:
        for parameter in _read(space):
            if parameter.field in found:
                raise UserError(f"{parameter.field} stands in two of the spaces {', '.join(spaces)}: take one out.")
            found[parameter.field] = parameter
    if not found:
        raise UserError("No search space was given: name one with --space.")
    return list(found.values())


def _read(space: str) -> list[Parameter]:
    entry = files("tune_spaces") / f"{space}.yaml"
    if entry.is_file():
        text = entry.read_text()
    elif space.endswith((".yaml", ".yml")):
        try:
            text = Path(space).read_text()
        except OSError as error:
            raise UserError(f"The search space {space} cannot be read ({error.strerror}).") from error
    else:
        raise UserError(f"There is no search space {space!r}{_nearest(space, names())}: {', '.join(names())}.")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The search space {space} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(tree, dict) or not all(isinstance(value, dict) for value in tree.values()):
        raise UserError(f"The search space {space} must map each field to its kind and range.")
    return [_parameter(space, field, value) for field, value in tree.items()]


def _parameter(space: str, field: str, value: dict[str, Any]) -> Parameter:
    where = f"{field} in search space {space}"
    known = [f.name for f in fields(Parameter) if f.name != "field"]
    for key in value:
        if key not in known:
            raise UserError(f"Unknown key {key} of {where}{_nearest(key, known)}; known: {', '.join(known)}.")
    kind = value.get("kind")
    if kind not in KINDS:
        raise UserError(f"The kind of {where} is {kind!r}: give one of {', '.join(KINDS)}.")
    if not value.get("why"):
        raise UserError(f"{where} has no `why`: say in a few words where its range comes from.")
    parameter = Parameter(field=field, **{**value, "choices": tuple(value.get("choices", ()))})
    if kind == "categorical":
        if not parameter.choices:
            raise UserError(f"{where} has no choices.")
        return parameter
    low, high = parameter.low, parameter.high
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
        raise UserError(f"The range of {where} is empty: low {low}, high {high}.")
    if parameter.log and low <= 0:
        raise UserError(f"{where} is on a log scale: low must be above 0, not {low}.")
    return parameter


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
