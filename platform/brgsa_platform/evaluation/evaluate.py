"""`brgsa evaluate`: a checkpoint and a store's split in, scores of prompts, tables and pictures out.

Each CT is encoded once, in the driver, whatever the number of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brgsa import checkpoint as checkpoint_files
from brgsa import zeroshot
from brgsa.errors import UserError, nearest
from brgsa.metrics import gap
from brgsa.metrics.units import prevalence
from brgsa.model import BrgSA, default_device
from brgsa.protocols import DEFAULT, Protocol
from brgsa.volumes import Geometry
from brgsa_platform.evaluation.options import with_resamples
from brgsa_platform.evaluation.outputs import file_names, log_result, writable_folder, write_files
from brgsa_platform.evaluation.result import EvaluationResult, Gap, mark_supervised
from brgsa_platform.evaluation.scored import Scored, Setting, measure
from brgsa_platform.loading.batches import BatchSource, SplitIndex, evaluation_batches, split_index
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.store.doubts import doubt_warning
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.encoding import EncodedSplit, encode_split, encode_texts, select_rows

EXAMPLES = 3  # volumes shown as slices

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class EvaluateOptions:
    """How volumes are scored, and how the scores are measured.

    Attributes:
        protocol: name of one of `brgsa.protocols`, path of a YAML file, or the protocol itself.
        pairing: which embeddings are compared, see `brgsa.zeroshot`.
        resamples: bootstrap resamples, in place of the protocol's.
        labels: abnormalities to score; default all that the store has labels for.
        rare: names of the rare ones; default those present in less than 3 % of the store's training scans.
        batch_size: volumes encoded at a time.
        device: default "cuda" where there is one.
    """

    protocol: str | Path | Protocol = DEFAULT
    pairing: str = "mean"
    resamples: int | None = None
    labels: Sequence[str] | None = None
    rare: Sequence[str] | None = None
    batch_size: int = 16
    device: str | None = None

    @cached_property
    def chosen(self) -> Protocol:
        """The protocol with these resamples.

        Raises:
            UserError: see `with_resamples`.
        """
        return with_resamples(self.protocol, self.resamples)

    def check(self) -> None:
        """Refuse values that no checkpoint and no store could serve.

        Raises:
            UserError: names the option and what it may be.
        """
        if self.pairing not in zeroshot.PAIRINGS:
            raise UserError(
                f"Unknown pairing {self.pairing!r}{nearest(self.pairing, zeroshot.PAIRINGS)}: choose one of "
                f"{', '.join(zeroshot.PAIRINGS)}.",
                code="unknown-pairing",
                field="pairing",
                value=self.pairing,
            )
        if self.batch_size < 1:
            raise UserError(
                f"batch_size must be at least 1, not {self.batch_size}.",
                code="below-one",
                field="batch_size",
                value=self.batch_size,
            )
        _ = self.chosen


def evaluate(
    checkpoint: Path | str,
    store_path: Path | str,
    split: str = "test",
    options: EvaluateOptions = EvaluateOptions(),
    *,
    out: Path | str | None = None,
    parent_run: str | None = None,
    name: str | None = None,
) -> EvaluationResult:
    """Score every volume of a split for every abnormality, measure, and keep tables and pictures.

    Args:
        checkpoint: a checkpoint folder, or a run's (its best checkpoint).
        out: folder for evaluation-SPLIT.{csv,json} and scores-SPLIT.parquet; default the checkpoint's.
        parent_run, name: of the MLflow run.

    Raises:
        UserError: checkpoint, store and options do not fit together, or `out` cannot be written (nothing was started); or
            a shard turns out to be damaged.
    """
    loaded = checkpoint_files.load(run_checkpoints.resolve(checkpoint))
    evaluation = _Evaluation.of(loaded, Store.open(store_path), split, options)
    folder = writable_folder(Path(out) if out is not None else loaded.path)
    about, protocol = evaluation.about(), options.chosen
    tags = {
        "brgsa.data": about["data"],
        "brgsa.checkpoint": about["checkpoint"],
        "brgsa.protocol": protocol.name,
        "brgsa.supervised": ", ".join(about["supervised"]),
    }
    title = name or f"{about['checkpoint']} on {split}"
    params = {**about, "protocol": protocol.to_dict()}
    with tracking.run("evaluate", name=title, params=params, tags=tags, parent=parent_run) as run:
        model = loaded.model.to(options.device or default_device())
        tested, fitted_on = evaluation.encode(model)
        score = evaluation.scorer(model)
        scored = evaluation.scored(tested, score)
        fitting = None if fitted_on is None else evaluation.scored(fitted_on, score)
        result = mark_supervised(measure(scored, evaluation.setting(fitting)), evaluation.supervised)
        measured_gap, gap_notes = evaluation.gap(model, tested)
        result = replace(
            result,
            gap=measured_gap,
            notes=[*gap_notes, *result.notes],
            files=file_names(folder, split),
            run_id=run.run_id,
        )
        write_files(result, scored)
        log_result(run, result, tested.pictures, np.asarray(scored.labels), evaluation.store.geometry.spacing)
    return result


@dataclass(frozen=True)
class _Evaluation:
    """A checkpoint, a split of a store and options that fit together, and what follows from them.

    Attributes:
        names: the P abnormalities, as the store's labels name them.
        index: the volumes under test.
        fitting: the volumes on which thresholds are chosen; None where there are none, or the labels under test serve.
        prevalence: (P,) share of the training scans with each; None where the store has no training split.
        notes: what there is to say of all this.
    """

    loaded: checkpoint_files.Checkpoint
    store: Store
    split: str
    options: EvaluateOptions
    names: list[str]
    index: SplitIndex
    fitting: SplitIndex | None
    prevalence: Scores | None
    notes: list[str]

    @classmethod
    def of(cls, loaded: checkpoint_files.Checkpoint, store: Store, split: str, options: EvaluateOptions) -> _Evaluation:
        """Raises UserError where checkpoint, store and options do not fit together."""
        options.check()
        _check_geometry(loaded, store)
        _check_bank(loaded, options.pairing)
        names = _names(store, options)
        index = split_index(store, split)
        fitting, notes = _fitting_volumes(store, split, index, options.chosen)
        shares, more = _prevalence(store, names)
        notes += [*more, *filter(None, [doubt_warning(store), _phantom_note(loaded, store)])]
        return cls(loaded, store, split, options, names, index, fitting, shares, notes)

    @property
    def supervised(self) -> list[str]:
        """The abnormalities under test on whose labels the model was trained."""
        return [name for name in self.names if checkpoint_files.is_supervised(self.loaded.run, name)]

    def about(self) -> dict[str, Any]:
        """What the figures are of, as plain JSON values."""
        folder = self.loaded.path
        return {
            "checkpoint": f"{_run_name(folder)}/{folder.name}",
            "data": self.store.fingerprint,
            "split": self.split,
            "pairing": self.options.pairing,
            "supervised": self.supervised,
        }

    def setting(self, fitting: Scored | None) -> Setting:
        """What the figures are measured by."""
        options = self.options
        return Setting(options.chosen, fitting, self.prevalence, options.rare, self.notes, self.about())

    def labels_of(self, index: SplitIndex) -> NDArray[np.float32]:
        """Labels (N, P) of some volumes for the abnormalities under test."""
        labels: NDArray[np.float32] = index.labels[:, [self.store.labels.index(name) for name in self.names]]
        return labels

    def encode(self, model: BrgSA) -> tuple[EncodedSplit, EncodedSplit | None]:
        """The volumes under test and those on which thresholds are chosen, which may be the same."""
        others = self.fitting if self.fitting is not self.index else None
        seen = model.config.vision.evaluated(self.store.geometry.shape)
        total = len(self.index) + (len(others) if others is not None else 0)
        with ray_session(), progress(total, f"encode {self.split} volumes") as advance:

            def encoded(index: SplitIndex, keep: Sequence[int] = ()) -> EncodedSplit:
                source = BatchSource(index, seen)
                batches = evaluation_batches(source, batch_size=self.options.batch_size)
                return encode_split(model, index, batches, advance=advance, keep=keep)

            tested = encoded(self.index, keep=_examples(self.index, self.labels_of(self.index)))
            if self.fitting is None:
                return tested, None
            return tested, tested if others is None else encoded(others)

    def scorer(self, model: BrgSA) -> zeroshot.Scorer:
        """What scores an encoded split for the protocol's prompts, which are encoded once."""
        protocol = self.options.chosen
        return zeroshot.Scorer.of(
            protocol.asked(self.names),
            protocol.prompts,
            lambda texts: encode_texts(model, texts),
            self.options.pairing,
        )

    def scored(self, encoded: EncodedSplit, score: zeroshot.Scorer) -> Scored:
        """An encoded split with its scores and labels."""
        protocol, rows = self.options.chosen, encoded.rows
        scores = score(encoded.embeddings).numpy().astype(np.float64)
        return Scored(
            names=self.names,
            volume_ids=rows.volume_ids,
            labels=self.labels_of(rows),
            scores=protocol.combined(self.names, protocol.asked(self.names), scores),
            scans=rows.scans,
            patients=rows.patients,
            voxels=_voxels(self.store, rows) if protocol.unit == "smallest-voxel" else None,
        )

    def gap(self, model: BrgSA, tested: EncodedSplit) -> tuple[Gap | None, list[str]]:
        """The gap between the volumes and the texts of the style that the model was trained on, or why there is none."""
        style = self.loaded.run["data"]["style"]
        if style != "report" and style not in self.store.styles():
            return None, [
                f"No modality gap: the store has no summaries of style {style}; brgsa summarize --style {style} adds them."
            ]
        by_volume = self.store.texts(style)
        texts = [by_volume.get(volume) or "" for volume in tested.rows.volume_ids]
        written = torch.tensor([i for i, text in enumerate(texts) if text.strip()], dtype=torch.long)
        if not len(written):
            return None, ["No modality gap: the volumes of this split have no reports."]
        sentences = encode_texts(model, [texts[i] for i in written.tolist()])
        volumes = select_rows(tested.embeddings, written)
        before = (volumes.plain.numpy(), sentences.plain.numpy())
        plain = Gap(gap.modality_gap(*before), gap.project(*before))
        if volumes.bridged is None or sentences.bridged is None:
            return plain, []
        after = (volumes.bridged.numpy(), sentences.bridged.numpy())
        return replace(plain, after=gap.modality_gap(*after), clouds_after=gap.project(*after)), []


def _check_geometry(loaded: checkpoint_files.Checkpoint, store: Store) -> None:
    trained = Geometry.from_dict(loaded.run["data"]["geometry"])
    if trained != store.geometry:
        raise UserError(
            f"{loaded.path} was trained on volumes of geometry {trained.to_dict()}, and {store.path} holds "
            f"{store.geometry.to_dict()}: prepare the store with the checkpoint's geometry, or use another checkpoint.",
            code="geometry-differs",
            field="checkpoint",
            value=str(loaded.path),
        )


def _check_bank(loaded: checkpoint_files.Checkpoint, pairing: str) -> None:
    if "'" in pairing and not loaded.model.has_bank:
        raise UserError(
            f"{loaded.path} has no knowledge bank, which pairing {pairing!r} needs: use v.t or mean.",
            code="pairing-needs-bank",
            field="pairing",
            value=pairing,
        )


def _names(store: Store, options: EvaluateOptions) -> list[str]:
    """The abnormalities to score, each once."""
    if not store.labels:
        raise UserError(
            f"{store.path} has no labels to measure against: prepare it with label columns.",
            code="no-labels",
            field="store",
            value=str(store.path),
        )
    for option, labels in (("labels", options.labels), ("rare", options.rare)):
        for label in labels or ():
            if label not in store.labels:
                raise UserError(
                    f"{store.path} has no label {label!r}{nearest(label, store.labels)}; it has: "
                    f"{', '.join(store.labels)}.",
                    code="unknown-label",
                    field=option,
                    value=label,
                )
    return list(dict.fromkeys(options.labels)) if options.labels else list(store.labels)


def _fitting_volumes(
    store: Store, split: str, index: SplitIndex, protocol: Protocol
) -> tuple[SplitIndex | None, list[str]]:
    """The volumes on which thresholds are chosen, and what to say about it."""
    if protocol.threshold == "test":
        return None, []
    if split == "validation":
        return index, ["The volumes under test are the validation split itself: thresholds are fitted on them."]
    if "validation" not in store.index(["split"])["split"].to_pylist():
        return None, []
    return split_index(store, "validation"), []


def _prevalence(store: Store, names: Sequence[str]) -> tuple[Scores | None, list[str]]:
    """Share of the training scans with each abnormality, and what to say where there are none."""
    if "train" not in store.index(["split"])["split"].to_pylist():
        return None, ["The store has no training split to tell rare abnormalities by: all count as common."]
    training = split_index(store, "train")
    shares = prevalence(training.labels.astype(np.float64), training.scans)
    return shares[[store.labels.index(name) for name in names]], []


def _voxels(store: Store, rows: SplitIndex) -> Scores:
    """(N, 2) area of a voxel in the plane and distance of slices, of the scans as they were before resampling."""
    index = store.index(["volume_id", "source_spacing"])
    spacing = dict(zip(index["volume_id"].to_pylist(), index["source_spacing"].to_pylist(), strict=True))
    return np.array([[x * y, z] for x, y, z in (spacing[volume] for volume in rows.volume_ids)])


def _phantom_note(loaded: checkpoint_files.Checkpoint, store: Store) -> str:
    return "" if store.phantom else checkpoint_files.phantom_warning(loaded.run)


def _examples(index: SplitIndex, labels: NDArray[np.float32]) -> list[int]:
    """The volumes with the most abnormalities, one a scan: there is something to see."""
    counts = np.nansum(labels, axis=1)
    by_scan: dict[int, int] = {}
    for row in np.argsort(-counts, kind="stable"):
        by_scan.setdefault(int(index.scans[row]), int(row))
    return list(by_scan.values())[:EXAMPLES]


def _run_name(folder: Path) -> str:
    above = folder.absolute().parent
    return above.parent.name if above.name == run_checkpoints.FOLDER else above.name
