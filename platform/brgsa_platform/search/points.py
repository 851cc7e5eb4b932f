"""Points that a search begins with, as the command line gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from brgsa.errors import UserError


def parse_points(texts: Sequence[str]) -> list[dict[str, Any]]:
    """`["loss.temperature=0.1,data.style=findings"]` to one mapping of field to value a text; values are YAML.

    Raises:
        UserError: a part is not of the form field=value.
    """
    points = []
    for text in texts:
        point: dict[str, Any] = {}
        for part in text.split(","):
            field, equals, value = part.partition("=")
            if not equals or not field.strip():
                raise UserError(f"{part!r} in --point {text!r} is not of the form field=value.")
            try:
                point[field.strip()] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise UserError(f"The value of {part!r} in --point is not YAML: quote it.") from error
        points.append(point)
    return points
