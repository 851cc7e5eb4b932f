"""Verbs of weights that change hands: take others' in, give ours out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """Whose checkpoint it is."""

    REFERENCE = "brgsa-reference"


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="The checkpoint, a file.")],
    out: Annotated[Path, typer.Option(help="A new folder, for evaluate and predict.")],
    tokenizer: Annotated[str, typer.Option(help="Folder or hub name of the text tower's tokenizer.")],
    format: Annotated[Format, typer.Option(help="Whose checkpoint it is.")] = Format.REFERENCE,
    volume: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            help="Voxels x y z that its position table is made for; default: as many patches along each axis."
        ),
    ] = None,
) -> None:
    """Take in the paper's published checkpoint: tensors only, none of the file's code runs."""
    from brgsa_platform.serving.import_checkpoint import import_reference

    report = import_reference(file, out, tokenizer, volume=volume)
    typer.echo(str(report))
    typer.echo(f"{out}: next, brgsa evaluate {out} --data STORE, or brgsa predict {out} SCAN")


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder (its best checkpoint).")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
) -> None:
    """Write both towers as programs (torch.export) that need torch alone, with an example of use."""
    from brgsa_platform.serving.export import export as run

    done = run(checkpoint, out)
    typer.echo(
        f"{done.out}: vision.pt2 and text.pt2 give the model's embeddings to {done.difference:.1g}; example.py shows their use."
    )
