"""`brgsa predict`: one CT in, a ranked table of prompts out. Needs neither a store nor Ray."""

from __future__ import annotations

import bisect
import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from brgsa import checkpoint as checkpoint_files
from brgsa import zeroshot
from brgsa.errors import UserError
from brgsa.volumes import Geometry, read_volume, standardize
from brgsa.volumes.augment import centre_crop
from brgsa_platform.training import run_checkpoints


class Ranked(NamedTuple):
    """A prompt, its score, and the share (0 to 1) of the validation scans that score lower for it, where that is known.

    Raw cosines say little: how a scan stands among others is what can be read.
    """

    prompt: str
    score: float
    percentile: float | None


WARNINGS = {
    "hu:implausible": "Its air is not near -1000 HU, so these may not be Hounsfield units and the scores mean little. A file "
    "of CT-RATE's first release needs its metadata table.",
    "orientation:tilted": "The scan lies askew of the patient's axes, and is not straightened.",
}


@dataclass(frozen=True)
class Prediction:
    """One scan's prompts, ranked: by percentile where every prompt has one, else by score; and what looks odd in it."""

    scan: Path
    rows: list[Ranked]
    warnings: list[str]
    picture: Path | None = None

    def to_json(self) -> str:
        prompts = [row._asdict() for row in self.rows]
        tree = {"scan": str(self.scan), "prompts": prompts, "warnings": self.warnings}
        return json.dumps(tree, indent=1, allow_nan=False)

    def print(self, as_json: bool = False) -> None:
        """On standard output, as a table or as JSON."""
        if as_json:
            print(self.to_json())
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self.scan.name)
        table.add_column("prompt")
        table.add_column("score", justify="right")
        known = any(row.percentile is not None for row in self.rows)
        if known:
            table.add_column("higher than", justify="right")
        for row in self.rows:
            share = "" if row.percentile is None else f"{row.percentile:.0%}"
            table.add_row(row.prompt, f"{row.score:.3f}", *([share] if known else []))
        console = Console(soft_wrap=True)
        console.print(table)
        if known:
            console.print("higher than: share of the training's validation scans with a lower score for that prompt.")
        for warning in self.warnings:
            console.print(f"Caution: {warning}", highlight=False, markup=False)
        if self.picture is not None:
            console.print(f"What the model saw: {self.picture}", highlight=False, markup=False)


def predict(
    checkpoint: Path | str,
    scan_path: Path | str,
    prompts: Sequence[str] | None = None,
    *,
    pairing: str = "mean",
    metadata: Path | str | None = None,
    picture: Path | str | None = None,
    device: str | None = None,
) -> Prediction:
    """Score one CT for some texts.

    Args:
        checkpoint: a checkpoint folder, or a run's (its best checkpoint).
        scan_path: a CT in HU (see `brgsa.volumes.read_volume`).
        prompts: texts to score; default "There is …" for each label of the checkpoint.
        metadata: CT-RATE's metadata table (CSV), for a file whose header lacks spacing or HU rescale.
        picture: PNG file for three planes of what the model sees.
        device: default "cuda" where there is one.

    Raises:
        UserError: the checkpoint, the scan or its metadata cannot be used, a prompt is empty, or the picture cannot be
            written.
    """
    scan_path = Path(scan_path)
    if picture is not None:
        _check_picture(Path(picture))
    loaded = checkpoint_files.load(run_checkpoints.resolve(checkpoint))
    texts = list(prompts) if prompts else zeroshot.prompts(loaded.run["labels"])
    if not texts:
        raise UserError(f"{loaded.path} names no labels to ask for: give a --prompt.")
    if any(not text.strip() for text in texts):
        raise UserError('A prompt is empty: give --prompt a sentence such as "There is pleural effusion."')

    geometry = Geometry.from_dict(loaded.run["data"]["geometry"])
    scan = read_volume(scan_path, None if metadata is None else _metadata_row(Path(metadata), scan_path.name))
    array = standardize(scan, geometry)
    model = loaded.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    seen = np.ascontiguousarray(centre_crop(array, model.config.vision.volume))
    volume = torch.from_numpy(seen).float().div_(1000.0).clamp_(-1.0, 1.0)[None, None]
    scores = zeroshot.scores(model.encode_volumes(volume), model.encode_texts(texts), pairing)[0].tolist()

    # Training keeps its validation scores of the default pairing only.
    reference = loaded.run.get("reference_scores", {}) if pairing == "mean" else {}
    rows = [Ranked(text, score, _percentile(reference, text, score)) for text, score in zip(texts, scores, strict=True)]
    if all(row.percentile is not None for row in rows):
        rows.sort(key=lambda row: (-(row.percentile or 0.0), -row.score))
    else:
        rows.sort(key=lambda row: -row.score)
    if picture is not None:
        from brgsa_platform.runtime import plots as figures

        figures.save(figures.planes_figure([("what the model sees", seen)], geometry.spacing), picture)
    warnings = [WARNINGS[flag] for flag in scan.flags if flag in WARNINGS]
    return Prediction(scan_path, rows, warnings, None if picture is None else Path(picture))


def _percentile(reference: Mapping[str, Sequence[float]], text: str, score: float) -> float | None:
    """Share of the reference scores, which rise, below `score`; of equal ones half."""
    known = reference.get(text)
    if not known:
        return None
    return (bisect.bisect_left(known, score) + bisect.bisect_right(known, score)) / (2 * len(known))


def _metadata_row(table: Path, volume: str) -> dict[str, str]:
    try:
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("VolumeName") == volume:
                    return row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The metadata table {table} cannot be read ({error}): give CT-RATE's CSV.") from error
    raise UserError(f"The metadata table {table} has no row whose VolumeName is {volume}: give the table of this scan.")


def _check_picture(path: Path) -> None:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"The picture {path} cannot be written: its folder {path.parent} is missing or read-only.")
