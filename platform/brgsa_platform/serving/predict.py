"""`brgsa predict`: one CT in, a ranked table of prompts out. Needs neither a store nor Ray."""

from __future__ import annotations

import bisect
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
from brgsa.model import default_device
from brgsa.phantom import is_phantom
from brgsa.text import as_read
from brgsa.volumes import Geometry, SeveralSeries, Volume, quality_warnings, read_volume, standardize
from brgsa.volumes.augment import centre_crop
from brgsa_platform.layouts import METADATA_COLUMNS, file_name, read_table
from brgsa_platform.runtime import console
from brgsa_platform.training import run_checkpoints

SHARE = "higher than"  # head of the percentiles' column
SUPERVISED = " (supervised)"  # mark of a prompt


@dataclass(frozen=True)
class ScanOptions:
    """How a scan is read.

    Attributes:
        metadata: CT-RATE's metadata table (CSV), for a file whose header lacks spacing or HU rescale.
        series: SeriesInstanceUID, for a DICOM folder that holds several CT series.
        trust_geometry: take a geometry that contradicts itself or that no chest has, with a caution.
    """

    metadata: Path | str | None = None
    series: str | None = None
    trust_geometry: bool = False


class RankedPrompt(NamedTuple):
    """A prompt, its score, and the share (0 to 1) of the validation scans that score lower for it, where that is known.

    Raw cosines say little: what can be read is how a scan stands among others. A prompt is supervised where it names an
    abnormality on whose labels the model was trained; its score is then not zero-shot.
    """

    prompt: str
    score: float
    percentile: float | None
    supervised: bool = False


@dataclass(frozen=True)
class Prediction:
    """One scan's prompts, ranked by percentile where every prompt has one, else by score.

    Attributes:
        warnings: what looks odd in the scan.
        picture: a PNG of what the model saw.
    """

    scan: Path
    rows: list[RankedPrompt]
    warnings: list[str]
    picture: Path | None = None

    def to_json(self) -> str:
        """A JSON object with scan, prompts and warnings; an unknown percentile is null."""
        prompts = [row._asdict() for row in self.rows]
        tree = {"scan": str(self.scan), "prompts": prompts, "warnings": self.warnings}
        return json.dumps(tree, indent=1, allow_nan=False)

    def print(self, as_json: bool = False) -> None:
        """Print a table, or JSON, on standard output."""
        if as_json:
            print(self.to_json())
            return
        ranked = any(row.percentile is not None for row in self.rows)
        heads = ["prompt", "score", *([SHARE] if ranked else [])]
        cells = [
            [
                row.prompt + SUPERVISED * row.supervised,
                f"{row.score:.3f}",
                "" if row.percentile is None else f"{row.percentile:.0%}",
            ][: len(heads)]
            for row in self.rows
        ]
        console.print_table(console.table(heads, cells, title=self.scan.name, right=(1, 2), unbroken=(1, 2)))
        if ranked:
            console.print_line(f"{SHARE}: share of the training's validation scans with a lower score for that prompt.")
        if any(row.supervised for row in self.rows):
            console.print_line(
                f"{SUPERVISED.strip()}: the model was trained on labels of that abnormality: not zero-shot."
            )
        for warning in self.warnings:
            console.print_line(f"Caution: {warning}")
        if self.picture is not None:
            console.print_line(f"What the model saw: {self.picture}")


def predict(
    checkpoint: Path | str,
    scan_path: Path | str,
    prompts: Sequence[str] | None = None,
    options: ScanOptions = ScanOptions(),
    *,
    pairing: str = "mean",
    picture: Path | str | None = None,
    device: str | None = None,
) -> Prediction:
    """Score one CT for some texts.

    Args:
        checkpoint: a checkpoint folder, or a run's (its best checkpoint).
        scan_path: a CT in HU (see `brgsa.volumes.read_volume`); for DICOM also a study's folder, or one above it.
        prompts: texts to score; default "There is …" for each label of the checkpoint.
        pairing: which embeddings are compared, see `brgsa.zeroshot`.
        picture: PNG file for three planes of what the model sees.
        device: default "cuda" where there is one.

    Raises:
        UserError: the checkpoint, the scan or its metadata cannot be used, a prompt is empty, or the picture cannot be
            written.
    """
    scan_path, picture = Path(scan_path), None if picture is None else Path(picture)
    if picture is not None:
        _check_picture(picture)
    loaded = checkpoint_files.load(run_checkpoints.resolve(checkpoint))
    texts = _texts(loaded, prompts)
    geometry = Geometry.from_dict(loaded.run["data"]["geometry"])
    scan = _read(scan_path, options)
    model = loaded.model.to(device or default_device())
    crop = model.config.vision.evaluated(geometry.shape)
    seen = np.ascontiguousarray(centre_crop(standardize(scan, geometry), crop))
    # Not the training's fused step: on a GPU it is compiled first, which takes longer than one volume.
    volume = torch.from_numpy(seen).float().div_(1000.0).clamp_(-1.0, 1.0)[None, None]
    scores = zeroshot.scores(model.encode_volumes(volume), model.encode_texts(texts), pairing)[0].tolist()

    # Training keeps its validation scores of the default pairing only.
    reference = loaded.run.get("reference_scores", {}) if pairing == "mean" else {}
    rows = [
        RankedPrompt(text, score, _percentile(reference, text, score), checkpoint_files.is_supervised(loaded.run, text))
        for text, score in zip(texts, scores, strict=True)
    ]
    if picture is not None:
        from brgsa_platform.runtime import plots

        plots.save(plots.planes_figure([("what the model sees", seen)], geometry.spacing), picture)
    warnings = quality_warnings(scan.flags)
    if not is_phantom(scan_path):
        warnings += filter(None, [checkpoint_files.phantom_warning(loaded.run)])
    return Prediction(scan_path, _ranked(rows), warnings, picture)


def _read(path: Path, options: ScanOptions) -> Volume:
    row = None if options.metadata is None else _metadata_row(Path(options.metadata), path.name)
    try:
        return read_volume(path, row, options.series, trust_geometry=options.trust_geometry)
    except SeveralSeries as error:
        lines = "".join(f"\n  {choice}" for choice in error.choices)
        raise UserError(
            f"{error} Choose with --series:{lines}", code=error.code, field="--series", value=error.value
        ) from error


def _texts(loaded: checkpoint_files.Checkpoint, prompts: Sequence[str] | None) -> list[str]:
    """The texts to score."""
    texts = list(prompts) if prompts else zeroshot.prompts(loaded.run["labels"])
    if not texts:
        raise UserError(
            f"{loaded.path} names no labels to ask for: give a --prompt.", code="no-prompts", field="--prompt"
        )
    for text, read in zip(texts, as_read(texts, loaded.model.text.form), strict=True):
        if not read.strip():
            raise UserError(
                'A prompt is empty: give --prompt a sentence such as "There is pleural effusion."',
                code="empty-prompt",
                field="--prompt",
                value=text,
            )
    return texts


def _ranked(rows: Sequence[RankedPrompt]) -> list[RankedPrompt]:
    if all(row.percentile is not None for row in rows):
        return sorted(rows, key=lambda row: (-(row.percentile or 0.0), -row.score))
    return sorted(rows, key=lambda row: -row.score)


def _percentile(reference: Mapping[str, Sequence[float]], text: str, score: float) -> float | None:
    """Share of the reference scores, which rise, below `score`; of equal ones half."""
    known = reference.get(text)
    if not known:
        return None
    return (bisect.bisect_left(known, score) + bisect.bisect_right(known, score)) / (2 * len(known))


def _metadata_row(file: Path, volume: str) -> dict[str, str]:
    """The row of a volume in CT-RATE's metadata table; see `layouts.read_table` for how a table may be written."""
    table = read_table(file)
    table.require("VolumeName")
    rows = [row for row in table.rows if file_name(table.cell(row, "VolumeName")) == file_name(volume)]
    found = [{name: table.cell(row, name) for name in METADATA_COLUMNS} for row in rows]
    if not found:
        raise UserError(
            f"The metadata table {file} has no row whose VolumeName is {volume}: give the table of this scan.",
            code="metadata-without-scan",
            field=str(file),
            value=volume,
        )
    if any(row != found[0] for row in found):
        raise UserError(
            f"The metadata table {file} has rows of different values whose VolumeName is {volume}: keep one.",
            code="conflicting-ids",
            field=str(file),
            value=volume,
        )
    return found[0]


def _check_picture(path: Path) -> None:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(
            f"The picture {path} cannot be written: its folder {path.parent} is missing or read-only.",
            code="picture-not-writable",
            field="--picture",
            value=str(path),
        )
