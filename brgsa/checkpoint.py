"""Checkpoints: a folder with safetensors weights, the text tower's files and JSON; nothing in it is unpickled.

model.safetensors   weights
model.json          ModelConfig
text/               tokenizer and text model configuration
run.json            the resolved run configuration, label names, data fingerprint
training.json       epoch, metrics   \\  only in a checkpoint that a
optimizer.pt        optimiser state  /   training can go on from
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brgsa.config import ModelConfig
from brgsa.errors import UserError
from brgsa.model import BrgSA
from brgsa.text import saved_tower

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, its run's configuration and where it lies."""

    model: BrgSA
    run: dict[str, Any]
    path: Path


def save(
    folder: Path,
    model: BrgSA,
    run: dict[str, Any],
    *,
    training: dict[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Path:
    """Write a checkpoint aside and rename it to `folder`, so that a folder of that name is always whole."""
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    replaced = aside.with_name(f"{aside.name}.replaced")
    aside.mkdir()
    try:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, str(aside / "model.safetensors"))
        _write_json(aside / "model.json", {"format": FORMAT, **model.config.to_dict()})
        _write_json(aside / "run.json", run)
        model.text.save(aside / "text")
        if training is not None:
            _write_json(aside / "training.json", training)
        if optimizer is not None:
            torch.save(optimizer.state_dict(), aside / "optimizer.pt")
        if folder.exists():
            # Moved away at once rather than deleted bit by bit, which a kill would leave half done.
            os.replace(folder, replaced)
        os.replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            os.replace(replaced, folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        UserError: the folder is no checkpoint, is damaged, or its weights belong to another configuration.
    """
    path = Path(path)
    config = read_model_config(path)
    run = _read_json(path / "run.json")
    model = BrgSA(config, text=saved_tower(config.text, path / "text"))
    load_weights(model, path)
    return Checkpoint(model.eval(), run, path)


def read_model_config(path: Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder."""
    if not (path / "model.json").is_file():
        raise UserError(f"{path} is not a checkpoint (it has no model.json): give a folder that `brgsa train` wrote.")
    tree = _read_json(path / "model.json")
    found = tree.pop("format", None)
    if found != FORMAT:
        raise UserError(
            f"{path / 'model.json'} has format {found}, this version reads {FORMAT}: train again or update."
        )
    try:
        return ModelConfig.from_dict(tree)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path / 'model.json'} is not a model configuration ({error}).") from error


def load_weights(model: BrgSA, path: Path) -> None:
    """Load `model.safetensors` of a checkpoint folder into a model of the same configuration.

    Raises:
        UserError: damaged file, or weights of another configuration; names the first that does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / "model.safetensors"
    try:
        weights = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}): the checkpoint is damaged, use another.") from error
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        have = tuple(weights[name].shape) if name in weights else "nothing"
        want = tuple(expected[name].shape) if name in expected else "nothing"
        if have != want:
            raise UserError(
                f"{file} is of another configuration: {name} is {have} there and {want} in this model; use the "
                "configuration that stands in the checkpoint's run.json."
            )
    model.load_state_dict(weights)


def load_training(path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore the optimiser from a checkpoint folder and give back `training.json`."""
    try:
        state = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state)
    except (
        OSError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise UserError(f"{path / 'optimizer.pt'} cannot be read: the training cannot go on from {path}.") from error
    return _read_json(path / "training.json")


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, default=str) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): the checkpoint is damaged, use another.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no JSON object: the checkpoint is damaged, use another.")
    return tree
