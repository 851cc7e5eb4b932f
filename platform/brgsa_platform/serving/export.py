"""`brgsa export`: both towers of a checkpoint as programs (torch.export) that run without this package, and an example of use.

OUT/vision.pt2    volumes to embeddings
OUT/text.pt2      tokens to embeddings
OUT/tokenizer/    of the texts
OUT/about.json    the volumes' size and spacing, the form of texts, labels
OUT/example.py    scores a volume for some texts
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brgsa import checkpoint as checkpoint_files
from brgsa import files, zeroshot
from brgsa.errors import UserError
from brgsa.model import BrgSA, Embeddings
from brgsa.text import Tokens
from brgsa.volumes import Geometry
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.run_folder import check_free, not_writable

TOLERANCE = 1e-4  # of the programs' outputs, beside the model's
BATCH = torch.export.Dim("batch", min=1)


@dataclass(frozen=True)
class Exported:
    """The folder, and the largest difference between the programs' outputs and the model's."""

    out: Path
    difference: float


class VolumeProgram(nn.Module):
    """Volumes, float (B, 1, X, Y, Z) HU / 1000 in [-1, 1], to embeddings (B, D): plain, and with a bank bridged."""

    def __init__(self, model: BrgSA) -> None:
        super().__init__()
        self.model = model

    def forward(self, volumes: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return _tensors(self.model.embed_volumes(volumes))


class TextProgram(nn.Module):
    """Tokens, int64 (B, L) `ids` and `mask` and (B,) `words` (see `brgsa.text.Tokens`), to embeddings as of volumes."""

    def __init__(self, model: BrgSA) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, words: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return _tensors(self.model.embed_tokens(Tokens(ids, mask, words)))


def export(checkpoint: Path | str, out: Path) -> Exported:
    """Write the towers of a checkpoint, on the CPU, and compare them with the model.

    Args:
        checkpoint: a checkpoint folder, or a run's (its best checkpoint).
        out: a new or an empty folder.

    Raises:
        UserError: the checkpoint cannot be read, the folder is there already or cannot be written, or a program does not give
            what the model gives ("export-differs").
    """
    check_free(out)
    loaded = checkpoint_files.load(run_checkpoints.resolve(checkpoint))
    model = loaded.model
    geometry = Geometry.from_dict(loaded.run["data"]["geometry"])
    size = model.config.vision.evaluated(geometry.shape)
    labels = list(loaded.run["labels"])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with files.written_aside(out) as aside:
            aside.mkdir()
            difference = _programs(model, size, zeroshot.prompts(labels) or ["There is pleural effusion."], aside)
            model.text.tokenizer.save_pretrained(str(aside / "tokenizer"))
            files.write_json(
                aside / "about.json",
                {
                    "size": list(size),
                    "spacing": list(geometry.spacing),
                    "form": model.config.text.form,
                    "max_tokens": model.config.text.max_tokens,
                    "labels": labels,
                },
            )
            shutil.copyfile(str(resources("brgsa_platform") / "serving" / "export_example.py"), aside / "example.py")
    except OSError as error:
        raise not_writable(out, error) from error
    return Exported(out, difference)


@torch.no_grad()
def _programs(model: BrgSA, size: tuple[int, ...], prompts: list[str], folder: Path) -> float:
    """Export and compare on other inputs than the traced ones; gives the largest difference."""
    volumes = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = model.text.tokenize(prompts * 2 if len(prompts) == 1 else prompts)
    length = torch.export.Dim("length", min=2, max=model.config.text.max_tokens)
    traced: list[tuple[str, nn.Module, tuple[Tensor, ...], Any]] = [
        ("vision", VolumeProgram(model), (volumes,), ({0: BATCH},)),
        ("text", TextProgram(model), tuple(tokens), ({0: BATCH, 1: length}, {0: BATCH, 1: length}, {0: BATCH})),
    ]
    largest = 0.0
    for name, module, inputs, dynamic in traced:
        torch.export.save(torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic), folder / f"{name}.pt2")
        program = torch.export.load(folder / f"{name}.pt2").module()
        other = (-volumes[:1],) if name == "vision" else tuple(model.text.tokenize([prompts[0]]))
        for given in (inputs, other):
            pairs = zip(program(*given), module(*given), strict=True)
            largest = max(largest, *(float((ours - theirs).abs().max()) for ours, theirs in pairs))
        if not largest <= TOLERANCE:
            raise UserError(
                f"The exported {name} program differs from the model by {largest:.2g}: nothing was written, use the checkpoint "
                "itself.",
                code="export-differs",
                field=name,
                value=largest,
            )
    return largest


def _tensors(embeddings: Embeddings) -> tuple[Tensor, ...]:
    return (embeddings.plain,) if embeddings.bridged is None else (embeddings.plain, embeddings.bridged)
