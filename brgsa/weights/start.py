"""A new model whose towers start from the weights that its configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brgsa import checkpoint
from brgsa.errors import UserError
from brgsa.model import BrgSA
from brgsa.vision import Grid
from brgsa.weights.fitting import Fitted
from brgsa.weights.reading import Weights, read_weights
from brgsa.weights.text import start_text
from brgsa.weights.vision import start_vision


def start_towers(model: BrgSA, vision: Path | None, text: Path | None) -> dict[str, Fitted]:
    """Start the towers from files, or from checkpoint folders of ours.

    Returns:
        What became of each file, by tower.

    Raises:
        UserError: see `read_weights`, `start_vision` and `start_text`; its field is the tensor or the file.
    """
    told = {}
    if vision is not None:
        weights, grid = _of_tower(vision, "vision."), None
        if (vision / "model.json").is_file():
            grid = _checked_grid(model, vision)
        told["vision"] = start_vision(model.vision, model.config.vision, weights, grid)
    if text is not None:
        told["text"] = start_text(model.text, _of_tower(text, "text."))
    return told


def _of_tower(path: Path, prefix: str) -> Weights:
    """The weights of a file; of one of our checkpoints those of one tower."""
    weights = read_weights(path)
    return weights.without_prefix(prefix) if (path / "model.json").is_file() else weights


def _checked_grid(model: BrgSA, folder: Path) -> Grid | None:
    """The grid of a checkpoint's position table; its heads and its patch, which no weight shows, must be the model's."""
    theirs, ours = checkpoint.read_model_config(folder).vision, model.config.vision
    _must_be_ours(folder, "name", theirs.name, ours.name, "weights-of-another-architecture")
    if ours.name != "vit3d":
        return None
    _must_be_ours(folder, "heads", theirs.heads, ours.heads, "weights-mismatch")
    _must_be_ours(folder, "patch", tuple(theirs.patch), tuple(ours.patch), "weights-mismatch")
    nx, ny, nz = (n // p for n, p in zip(theirs.volume, theirs.patch, strict=True))
    return nx, ny, nz


def _must_be_ours(folder: Path, field: str, theirs: Any, ours: Any, code: str) -> None:
    if theirs != ours:
        raise UserError(
            f"{folder} has model.vision.{field}={theirs} and here it is {ours}: make them the same.",
            code=code,
            field=f"model.vision.{field}",
            value=theirs,
        )
