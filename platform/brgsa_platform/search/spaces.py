"""Search spaces against the run configuration: every field there, every draw valid, before a cluster starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tune_spaces
from brgsa.errors import UserError, nearest
from brgsa_platform.config import RunConfig, flatten, load_config, merge, read_preset
from tune_spaces.schema import schema


def field_names() -> list[str]:
    """Every field that a search can draw, as `section.key`, in the configuration's order."""
    return list(flatten(RunConfig().to_dict()))


def base_config(preset: str | None, file: Path | None, overrides: Sequence[str]) -> RunConfig:
    """The configuration over which a search draws: a training's, but the best epoch is that of the highest AUROC.

    Trials are compared by it, so it must be that of the checkpoint that is kept. A file or an override may say otherwise.

    Raises:
        UserError: see `load_config`.
    """
    below = {} if preset is None else read_preset(preset)
    return load_config(file=file, overrides=overrides, base=merge(below, {"train": {"select": "auroc"}}))


def drawn_config(base: RunConfig, drawn: Mapping[str, Any], where: str = "the search space") -> RunConfig:
    """The base configuration with a trial's values in it: the one place where drawn values are parsed.

    Args:
        drawn: value by field (`section.key`); a list or mapping as the JSON text that `tune_spaces.scalar` makes of it.
        where: names the source of the values in messages.

    Raises:
        UserError: unknown field or impossible value.
    """
    tree = base.to_dict()
    for field, value in drawn.items():
        branch = _structure(value)
        for part in reversed(field.split(".")):
            branch = {part: branch}
        tree = merge(tree, branch)
    return RunConfig.from_tree(tree, where)


def check_space(parameters: Sequence[tune_spaces.Parameter], base: RunConfig) -> None:
    """Every field must be one of the configuration's, and every corner of the space a configuration over `base`.

    Args:
        parameters: as `tune_spaces.load` gives them.

    Raises:
        UserError: unknown-field, or the configuration's own refusal; names field and space, and the fewest values that
            do not go together.
    """
    known = field_names()
    for parameter in parameters:
        if parameter.field not in known:
            raise UserError(
                f"{parameter.where} is no field of the configuration{nearest(parameter.field, known)}: correct its name.",
                code="unknown-field",
                field=parameter.field,
            )
    for drawn in tune_spaces.corners(parameters):
        if _refusal(base, drawn) is not None:
            wrong = _fewest_refused(base, drawn)
            spaces = " + ".join(dict.fromkeys(p.space for p in parameters if p.field in wrong))
            values = ", ".join(f"{field}={value}" for field, value in wrong.items())
            drawn_config(base, wrong, f"search space {spaces} at {values}")


def _structure(value: Any) -> Any:
    """The inverse of `tune_spaces.scalar`."""
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith(("[", "{")) else value
    except ValueError:
        return value  # a text that only begins like JSON; the configuration accepts or refuses it


def _refusal(base: RunConfig, drawn: Mapping[str, Any]) -> str | None:
    """Why the configuration refuses a draw; None where it accepts it."""
    try:
        drawn_config(base, drawn)
    except UserError as error:
        return str(error)
    return None


def _fewest_refused(base: RunConfig, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The fewest values of a refused draw that are refused for the same reason."""
    reason, wrong = _refusal(base, drawn), dict(drawn)
    for field in drawn:
        fewer = {other: value for other, value in wrong.items() if other != field}
        if _refusal(base, fewer) == reason:
            wrong = fewer
    return wrong


if __name__ == "__main__":  # python -m brgsa_platform.search.spaces > tune_spaces/schema.json
    print(json.dumps(schema(field_names()), indent=2, ensure_ascii=False))
