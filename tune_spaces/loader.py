"""Loads search spaces by name: from their YAML files to the parameters of a search."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from brgsa.errors import UserError, nearest
from tune_spaces.conditions import ordered
from tune_spaces.parameter import Parameter, read

MERGE = "tag:yaml.org,2002:merge"


def names() -> list[str]:
    """The names of the spaces that come with the package."""
    entries = files("tune_spaces").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load(spaces: Sequence[str]) -> list[Parameter]:
    """The parameters of one or several spaces, by name or path of a YAML file.

    They have the files' order, but each comes after those that its `when` names: one walk through the list, which asks
    `active` of each, makes a draw.

    Raises:
        UserError: there is no such space, two spaces have the same field, an entry cannot be drawn, or a condition cannot be
            met; the error names file and field.
    """
    by_field: dict[str, Parameter] = {}
    for space in spaces:
        for field, entry in _entries(space).items():
            parameter = read(space, field, entry)
            if field in by_field:
                raise _twice(by_field[field], parameter)
            by_field[field] = parameter
    if not by_field:
        raise _refused("no-spaces", "", "No search space was given: name one with --space.")
    return ordered(list(by_field.values()))


def _twice(one: Parameter, other: Parameter) -> UserError:
    code = "field-twice"
    sentence = f"{one.field} is in two of the spaces, {one.space} and {other.space}: take one out."
    if (one.kind == "fixed") != (other.kind == "fixed"):
        fixed, searched = (one, other) if one.kind == "fixed" else (other, one)
        code = "fixed-and-searched"
        sentence = f"{one.field} is fixed in search space {fixed.space} and searched in {searched.space}: take one out."
    return UserError(sentence, code=code, field=one.field)


def _refused(code: str, space: str, sentence: str) -> UserError:
    return UserError(sentence, code=code, field="--space", value=space)


def _entries(space: str) -> dict[str, dict[str, Any]]:
    """A space's YAML: field → its entry."""
    try:
        tree = yaml.load(_text(space), Loader=_NoDuplicates)
    except yaml.YAMLError as error:
        sentence = f"The search space {space} is not YAML: {' '.join(str(error).split())}."
        raise _refused("not-yaml", space, sentence) from error
    if not isinstance(tree, dict) or not all(isinstance(k, str) and isinstance(v, dict) for k, v in tree.items()):
        sentence = f"The search space {space} must map each field (section.key) to its kind and range."
        raise _refused("space-form", space, sentence)
    return tree


def _text(space: str) -> str:
    entry = files("tune_spaces") / f"{space}.yaml"
    if entry.is_file():
        return entry.read_text(encoding="utf-8")
    if not space.endswith((".yaml", ".yml")):
        sentence = f"There is no search space {space!r}{nearest(space, names())}: {', '.join(names())}."
        raise _refused("unknown-space", space, sentence)
    try:
        return Path(space).read_text(encoding="utf-8")
    except OSError as error:
        raise _refused(
            "unreadable-space", space, f"The search space {space} cannot be read ({error.strerror})."
        ) from error
    except UnicodeDecodeError as error:
        raise _refused("not-utf8", space, f"The search space {space} is not text in UTF-8: save it as such.") from error


class _NoDuplicates(yaml.SafeLoader):
    """YAML whose mappings must name each key once; SafeLoader silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping's keys and values.

        Raises:
            YAMLError: a key occurs twice.
        """
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f"{key} occurs twice, take one out")
        return super().construct_mapping(node, deep)
