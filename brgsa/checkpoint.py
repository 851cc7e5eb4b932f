"""Checkpoints: folders with safetensors weights, the text tower's files and JSON. Reading one never unpickles code.

model.safetensors   weights
model.json          ModelConfig
text/               tokenizer and text model configuration
run.json            the resolved run configuration, label names, data fingerprint
training.json       progress, history, schedule, scaler   \\  only where a training
optimizer.pt        optimiser state                       /   can be resumed
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brgsa.config import ModelConfig
from brgsa.errors import UserError
from brgsa.files import read_json, write_json, written_aside
from brgsa.model import BrgSA
from brgsa.text import saved_tower

FORMAT = 2
SCALE = "scale."  # of the names of a learned temperature and bias
# What a model of format 1 was, where format 2 has a field for it.
SINCE_FORMAT_1: dict[str, dict[str, Any]] = {
    "vision": {
        "mean": 0.0,
        "std": 1.0,
        "evaluation": "centre",
        "positions": "learned",
        "coordinates": "index",
        "norm_eps": 1e-6,
    },
    "text": {"pool": "words", "form": "written"},
}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, its run's configuration, and its folder."""

    model: BrgSA
    run: dict[str, Any]
    path: Path


def save(
    folder: Path,
    model: BrgSA,
    run: dict[str, Any],
    *,
    training: dict[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | dict[str, Any] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint aside and rename it to `folder`, so that a folder of that name is always whole.

    Args:
        run: contents of run.json.
        training, optimizer: training.json, and an optimiser or its state, for a checkpoint from which a training is resumed.
        weights: the model's state, where the model itself holds a part of it.

    Returns:
        The folder.

    Raises:
        OSError: the disk is full, say; an older checkpoint at `folder` is then unchanged.
    """
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(folder) as aside:
        aside.mkdir()
        state = model.state_dict() if weights is None else weights
        contiguous = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(contiguous, str(aside / "model.safetensors"))
        write_json(aside / "model.json", {"format": FORMAT, **model.config.to_dict()})
        write_json(aside / "run.json", run)
        model.text.save(aside / "text")
        if training is not None:
            write_json(aside / "training.json", training)
        if optimizer is not None:
            of_optimizer = optimizer if isinstance(optimizer, dict) else optimizer.state_dict()
            torch.save(of_optimizer, aside / "optimizer.pt")
    return folder


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        UserError: the folder is no checkpoint, is damaged, or its weights are of another configuration.
    """
    path = Path(path)
    config = read_model_config(path)
    run = _read(path / "run.json")
    model = BrgSA(config, text=saved_tower(config.text, path / "text"))
    load_weights(model, path)
    return Checkpoint(model.eval(), run, path)


def weights_digest(path: Path) -> str:
    """Hash (16 hexadecimal digits) of a checkpoint folder's weights, which tells whether something was made with them."""
    with (path / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def phantom_warning(run: Mapping[str, Any]) -> str:
    """What a checkpoint says where it is used on real scans and was trained on synthetic ones; empty for any other.

    Args:
        run: contents of its run.json.
    """
    if not run.get("data", {}).get("phantom"):
        return ""
    return "The checkpoint was trained on synthetic CT (brgsa phantom): on other scans its scores mean nothing."


def is_supervised(run: Mapping[str, Any], text: str) -> bool:
    """Whether a checkpoint was trained on labels of what a text names, so that its score for the text is not zero-shot.

    So it is, too, where the text is the general name of an abnormality with labels: "Calcification" of "Arterial wall
    calcification".

    Args:
        run: contents of its run.json.
        text: an abnormality, or a prompt that names one.
    """
    return any(_holds(text, name) or _holds(name, text) for name in run.get("supervised", []))


def _holds(text: str, words: str) -> bool:
    return re.search(rf"\b{re.escape(words.lower())}\b", text.lower()) is not None


def read_model_config(path: Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder.

    Raises:
        UserError: the folder is no checkpoint, or its model.json is damaged or of another version.
    """
    file = path / "model.json"
    if not file.is_file():
        raise UserError(
            f"{path} is not a checkpoint (it has no model.json): give a folder that `brgsa train` wrote.",
            code="not-a-checkpoint",
            field=str(path),
        )
    tree = _read(file)
    version = tree.pop("format", None)
    if version not in (1, FORMAT):
        raise UserError(
            f"{file} has format {version}, this version reads 1 and {FORMAT}: train again or update.",
            code="checkpoint-format",
            field=str(file),
            value=version,
        )
    try:
        if version == 1:
            tree |= {section: {**fields, **tree[section]} for section, fields in SINCE_FORMAT_1.items()}
        return ModelConfig.from_dict(tree)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} is not a model configuration ({error}): the checkpoint is damaged, use another.",
            code="checkpoint-damaged",
            field=str(file),
        ) from error


def load_weights(model: BrgSA, path: Path) -> None:
    """Load `model.safetensors` of a checkpoint folder into a model of the same configuration.

    A learned temperature or bias that the file lacks keeps its value; one that the model has no use for is left out.

    Raises:
        UserError: the file is damaged, or holds weights of another configuration; the first that differs is named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / "model.safetensors"
    try:
        weights = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ weights.keys()):
        if name.startswith(SCALE):
            weights.pop(name, None)
            if name in expected:
                weights[name] = expected[name]
    for name in sorted(expected.keys() | weights.keys()):
        have = tuple(weights[name].shape) if name in weights else "nothing"
        want = tuple(expected[name].shape) if name in expected else "nothing"
        if have != want:
            raise UserError(
                f"{file} is of another configuration: {name} is {have} there and {want} in this model; use the "
                "configuration in the checkpoint's run.json.",
                code="checkpoint-mismatch",
                field=name,
                value=have,
            )
    model.load_state_dict(weights)


def load_training(path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore the optimiser's state from a checkpoint folder, and return what training.json holds.

    Raises:
        UserError: one of the two files is missing, damaged, or of another optimiser.
    """
    file = path / "optimizer.pt"
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
            saved["fused"] = group.get("fused")  # the device decides, and this one may be another
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
        raise UserError(
            f"{file} cannot be read: the training cannot go on from {path}.",
            code="checkpoint-damaged",
            field=str(file),
        ) from error
    return _read(path / "training.json")


def _damaged(file: Path, reason: object) -> UserError:
    return UserError(
        f"{file} cannot be read ({reason}): the checkpoint is damaged, use another.",
        code="checkpoint-damaged",
        field=str(file),
    )


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, "the checkpoint is damaged, use another", code="checkpoint-damaged")
