"""`brgsa predict`: one CT in, a ranked table of prompts out. Needs neither a store nor Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brgsa.errors import UserError
from brgsa_platform.runtime import console
from brgsa_platform.serving.scorer import RankedPrompt, ScanOptions, Scorer, by_rank

SHARE = "higher than"  # head of the percentiles' column
PROBABILITY = "probability"
PROBABILITY_MEANS = "fitted on the validation split; it holds where abnormalities are as frequent as there"
SUPERVISED = " (supervised)"  # mark of a prompt


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
        """A JSON object with scan, prompts and warnings; an unknown percentile or probability is null."""
        prompts = [row._asdict() for row in self.rows]
        tree = {"scan": str(self.scan), "prompts": prompts, "warnings": self.warnings}
        return json.dumps(tree, indent=1, allow_nan=False)

    def print(self, as_json: bool = False) -> None:
        """Print a table, or JSON, on standard output."""
        if as_json:
            print(self.to_json())
            return
        columns = {
            "score": [f"{row.score:.3f}" for row in self.rows],
            SHARE: ["" if row.percentile is None else f"{row.percentile:.0%}" for row in self.rows],
            PROBABILITY: ["" if row.probability is None else f"{row.probability:.2f}" for row in self.rows],
        }
        shown = {head: column for head, column in columns.items() if any(column)}
        heads, right = ["prompt", *shown], range(1, len(shown) + 1)
        prompts = [row.prompt + SUPERVISED * row.supervised for row in self.rows]
        cells = [list(row) for row in zip(prompts, *shown.values(), strict=True)]
        console.print_table(console.table(heads, cells, title=self.scan.name, right=right, unbroken=right))
        if SHARE in shown:
            console.print_line(f"{SHARE}: share of the training's validation scans with a lower score for that prompt.")
        if PROBABILITY in shown:
            console.print_line(f"{PROBABILITY}: {PROBABILITY_MEANS}.")
        where = " where the column is empty" if PROBABILITY in shown else ""
        for why in dict.fromkeys(row.no_probability for row in self.rows if row.no_probability):
            console.print_line(f"No probability{where}: {why}.")
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
    scorer = Scorer(checkpoint, prompts, pairing=pairing, device=device)
    seen = scorer.read(scan_path, options)
    rows = scorer.score(seen)
    if picture is not None:
        from brgsa_platform.runtime import plots

        plots.save(plots.planes_figure([("what the model sees", seen.hu)], scorer.geometry.spacing), picture)
    return Prediction(scan_path, by_rank(rows), seen.warnings, picture)


def _check_picture(path: Path) -> None:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(
            f"The picture {path} cannot be written: its folder {path.parent} is missing or read-only.",
            code="picture-not-writable",
            field="--picture",
            value=str(path),
        )
