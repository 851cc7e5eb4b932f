"""A checkpoint ready for scans: how a CT is read for it, and what it says of one."""

from __future__ import annotations

import bisect
import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from brgsa import checkpoint as checkpoint_files
from brgsa import zeroshot
from brgsa.errors import UserError
from brgsa.heatmaps import support
from brgsa.model import default_device
from brgsa.phantom import is_phantom
from brgsa.text import as_read
from brgsa.volumes import Geometry, SeveralSeries, Volume, quality_warnings, read_volume, standardize
from brgsa.volumes.augment import centre_crop
from brgsa_platform.evaluation.calibration.probabilities import Probabilities
from brgsa_platform.layouts import METADATA_COLUMNS, file_name, read_table
from brgsa_platform.store.training_range import outside_of
from brgsa_platform.training import run_checkpoints


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
    abnormality on whose labels the model was trained; its score is then not zero-shot. It has a probability where an evaluation
    of this checkpoint fitted one (see `evaluation.calibration.probabilities`); elsewhere `no_probability` says why not.
    """

    prompt: str
    score: float
    percentile: float | None
    supervised: bool = False
    probability: float | None = None
    no_probability: str = ""

    @property
    def opinion(self) -> float | None:
        """From 0 to 1, how far the model takes the scan for one with the prompt: 0 where half of the validation scans or more
        score higher, 1 where none does; None where the checkpoint keeps no scores of them.
        """
        return None if self.percentile is None else max(0.0, 2 * self.percentile - 1)


def by_rank(rows: Sequence[RankedPrompt]) -> list[RankedPrompt]:
    """The rows by percentile where every prompt has one, else by score; the highest first."""
    if all(row.percentile is not None for row in rows):
        return sorted(rows, key=lambda row: (-(row.percentile or 0.0), -row.score))
    return sorted(rows, key=lambda row: -row.score)


@dataclass(frozen=True)
class Seen:
    """A scan as a model sees it.

    Attributes:
        path: of the scan.
        scan: as it was read, on its own grid.
        hu: int16 HU (x, y, z) on the model's grid, cropped as in an evaluation.
        cautions: what looks odd in it.
        outside: how it differs from all scans of the training, where the checkpoint knows them.
    """

    path: Path
    scan: Volume
    hu: npt.NDArray[np.int16]
    cautions: list[str]
    outside: list[str]

    @property
    def warnings(self) -> list[str]:
        """All that a reader has to know of it, a sentence each."""
        return [*self.cautions, *(f"It lies outside the training's scans: {what}." for what in self.outside)]

    def tensor(self) -> torch.Tensor:
        """float32 (1, 1, X, Y, Z) in [-1, 1], which the vision tower takes."""
        # Not the training's fused step: on a GPU it is compiled first, which takes longer than one volume.
        return torch.from_numpy(self.hu).float().div_(1000.0).clamp_(-1.0, 1.0)[None, None]


class Scorer:
    """A checkpoint with its prompts.

    Args:
        checkpoint: a checkpoint folder, or a run's (its best checkpoint).
        prompts: texts to score; default "There is …" for each label of the checkpoint.
        pairing: which embeddings are compared, see `brgsa.zeroshot`.
        device: default "cuda" where there is one.

    Raises:
        UserError: the checkpoint or the calibration beside it cannot be used, or a prompt is empty.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        prompts: Sequence[str] | None = None,
        *,
        pairing: str = "mean",
        device: str | None = None,
    ) -> None:
        loaded = checkpoint_files.load(run_checkpoints.resolve(checkpoint))
        self.path, self.run, self.pairing = loaded.path, loaded.run, pairing
        self._loaded = loaded
        self.texts = _texts(loaded, prompts)
        self.geometry = Geometry.from_dict(loaded.run["data"]["geometry"])
        self.model = loaded.model.to(device or default_device())
        self.embedded = self.model.encode_texts(self.texts)
        # Training keeps its validation scores of the default pairing only.
        self._reference: Mapping[str, Sequence[float]] = (
            loaded.run.get("reference_scores", {}) if pairing == "mean" else {}
        )
        self.probabilities = Probabilities.of(loaded.path, pairing)

    def asking(self, prompts: Sequence[str] | None) -> Scorer:
        """The same model with other prompts.

        Raises:
            UserError: a prompt is empty.
        """
        other = copy.copy(self)
        other.texts = _texts(self._loaded, prompts)
        other.embedded = self.model.encode_texts(other.texts)
        return other

    def read(self, path: Path, options: ScanOptions = ScanOptions()) -> Seen:
        """A CT in HU (see `brgsa.volumes.read_volume`); for DICOM also a study's folder, or one above it.

        Raises:
            UserError: the scan or its metadata cannot be used.
        """
        scan = _read(path, options)
        crop = self.model.config.vision.evaluated(self.geometry.shape)
        whole = standardize(scan, self.geometry)
        cautions = quality_warnings(scan.flags)
        if not is_phantom(path):
            cautions += filter(None, [checkpoint_files.phantom_warning(self.run)])
        outside = outside_of(scan, whole, self.run["data"].get("seen", {}))
        return Seen(path, scan, np.ascontiguousarray(centre_crop(whole, crop)), cautions, outside)

    def score(self, seen: Seen) -> list[RankedPrompt]:
        """Each prompt's score for a scan, in the prompts' order."""
        embeddings = self.model.encode_volumes(seen.tensor())
        scores = zeroshot.scores(embeddings, self.embedded, self.pairing)[0].tolist()
        return [self.ranked(text, score) for text, score in zip(self.texts, scores, strict=True)]

    def map(self, seen: Seen, number: int = 0) -> tuple[RankedPrompt, npt.NDArray[np.float32]]:
        """A prompt's score, and where a scan supports it (see `brgsa.heatmaps`), times the model's opinion.

        Returns:
            The prompt, and float32 (X, Y, Z) on the model's grid from 0 to the opinion; to 1 where that is not known.
        """
        found = support(self.model, seen.tensor(), self.embedded.row(number), self.geometry.spacing, self.pairing)
        ranked = self.ranked(self.texts[number], found.score)
        return ranked, found.relevance * np.float32(1.0 if ranked.opinion is None else ranked.opinion)

    def ranked(self, text: str, score: float) -> RankedPrompt:
        """A score among those of the validation scans, and as a probability."""
        supervised = checkpoint_files.is_supervised(self.run, text)
        return RankedPrompt(text, score, self._percentile(text, score), supervised, *self.probabilities(text, score))

    def _percentile(self, text: str, score: float) -> float | None:
        """Share of the reference scores, which rise, below `score`; of equal ones half."""
        known = self._reference.get(text)
        if not known:
            return None
        return (bisect.bisect_left(known, score) + bisect.bisect_right(known, score)) / (2 * len(known))


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


def metadata_rows(file: Path) -> dict[str, list[dict[str, str]]]:
    """CT-RATE's metadata table as file name of a volume → its rows. It is read once, as many scans ask for it.

    Raises:
        UserError: it cannot be read, see `layouts.read_table`, or has no VolumeName ("missing-column").
    """
    return _metadata_rows(file, file.stat().st_mtime_ns if file.exists() else 0)


@functools.lru_cache(maxsize=1)
def _metadata_rows(file: Path, changed: int) -> dict[str, list[dict[str, str]]]:
    table = read_table(file)
    table.require("VolumeName")
    rows: dict[str, list[dict[str, str]]] = {}
    for row in table.rows:
        found = {name: table.cell(row, name) for name in METADATA_COLUMNS}
        rows.setdefault(file_name(table.cell(row, "VolumeName")), []).append(found)
    return rows


def _metadata_row(file: Path, volume: str) -> dict[str, str]:
    """The row of a volume in CT-RATE's metadata table."""
    found = metadata_rows(file).get(file_name(volume), [])
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
