"""Points that a search begins with, as the command line gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from brgsa.errors import UserError


def parse_points(texts: Sequence[str]) -> list[dict[str, Any]]:
    """`["loss.temperature=0.1,data.style=findings"]` to a mapping of field to value for each text; values are YAML.

    Raises:
        UserError: point-form where a part is not field=value.
    """
    return [_point(text) for text in texts]


def _point(text: str) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for part in text.split(","):
        field, equals, value = part.partition("=")
        if not equals or not field.strip():
            raise _refused(text, f"{part!r} in --point {text!r} is not of the form field=value.")
        try:
            point[field.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise _refused(text, f"The value of {part!r} in --point is not YAML: quote it.") from error
    return point


def _refused(text: str, sentence: str) -> UserError:
    return UserError(sentence, code="point-form", field="--point", value=text)
