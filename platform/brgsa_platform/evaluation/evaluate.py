"""`brgsa evaluate`: a checkpoint and a store's split in, scores of prompts, tables and pictures out.

Each CT is encoded once, here or by several workers, whatever the number of prompts.
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
from brgsa.metrics.units import prevalence
from brgsa.model import BrgSA, Embeddings, default_device
from brgsa.protocols import Protocol
from brgsa.volumes import Geometry
from brgsa.volumes.augment import Volume16
from brgsa_platform.evaluation.alignment import Paired, alignment
from brgsa_platform.evaluation.calibration import probabilities
from brgsa_platform.evaluation.compare import compare
from brgsa_platform.evaluation.embeddings import (
    EmbeddedSplit,
    Encoding,
    embeddings_file,
    parts_folder,
    read_kept,
    remove_parts,
    write_embeddings,
)
from brgsa_platform.evaluation.options import EvaluateOptions
from brgsa_platform.evaluation.outputs import file_names, log_result, origin, writable_folder, write_files
from brgsa_platform.evaluation.result import Alignment, EvaluationResult, mark_supervised
from brgsa_platform.evaluation.score_files import read_rival
from brgsa_platform.evaluation.scored import Scored, Setting, measure
from brgsa_platform.loading.batches import BatchSource, SplitIndex, split_index
from brgsa_platform.runtime.addresses import without_credentials
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.store import lineage
from brgsa_platform.store.doubts import doubt_warning
from brgsa_platform.store.store import GIVEN, Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.training import account, run_checkpoints
from brgsa_platform.training.encoding import encode_texts

__all__ = ["EvaluateOptions", "evaluate"]

EXAMPLES = 3  # volumes shown as slices

Scores = NDArray[np.float64]


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

    Killed, the same call goes on with what had been encoded.

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
    rival = None if options.compare is None else evaluation.rival(options.compare)
    about, protocol = evaluation.about(), options.chosen
    tags = {
        "brgsa.data": about["data"],
        "brgsa.checkpoint": about["checkpoint"],
        "brgsa.protocol": protocol.name,
        "brgsa.supervised": ", ".join(about["supervised"]),
    }
    title = name or f"{about['checkpoint']} on {split}"
    params = {**about, "protocol": protocol.to_dict()}
    data, of = lineage.datasets(evaluation.store, **{split: "evaluation"}), account.model_of(loaded.path)
    with tracking.run("evaluate", name=title, params=params, tags=tags, parent=parent_run, data=data, model=of) as run:
        model = loaded.model.to(options.device or default_device())
        tested, fitted_on = evaluation.encode(model, folder)
        aligned, texts = evaluation.alignment(model, tested)
        result, scored = evaluation.measure(model, tested, fitted_on)
        files, made_by = file_names(folder, split, aligned.ranks is not None), origin(**evaluation.inputs())
        result = replace(result, alignment=aligned, files=files, origin=made_by, run_id=run.run_id)
        if options.compare is not None:
            other = rival.scored_alone(folder) if rival else read_rival(options.compare, scored, protocol)
            result = replace(result, comparison=compare(options.compare.name, scored, other, evaluation.setting(None)))
        if options.save_embeddings:
            result.files["embeddings"] = str(evaluation.keep(folder, split, replace(tested, texts=texts)))
            if fitted_on is not None and fitted_on is not tested:
                evaluation.keep(folder, "validation", fitted_on)
        if (calibration := evaluation.keep_calibration(result, folder)) is not None:
            result.files["calibration"] = str(calibration)
        write_files(result, scored)
        log_result(run, result, evaluation.pictures(), np.asarray(scored.labels), evaluation.store.geometry.spacing)
        remove_parts(evaluation.parts(folder))
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
        notes += [*more, *filter(None, [doubt_warning(store), _phantom_note(loaded, store), _labels_note(store)])]
        return cls(loaded, store, split, options, names, index, fitting, shares, notes)

    @property
    def supervised(self) -> list[str]:
        """The abnormalities under test on whose labels the model was trained."""
        return [name for name in self.names if checkpoint_files.is_supervised(self.loaded.run, name)]

    @cached_property
    def weights(self) -> str:
        """Hash of the checkpoint's weights, which are read once for it."""
        return checkpoint_files.weights_digest(self.loaded.path)

    def about(self) -> dict[str, Any]:
        """What the figures are of, as plain JSON values."""
        folder = self.loaded.path
        return {
            "checkpoint": f"{run_checkpoints.run_of(folder).name}/{folder.name}",
            "data": self.store.fingerprint,
            "split": self.split,
            "pairing": self.options.pairing,
            "supervised": self.supervised,
            "labels_from": self.store.label_source,
        }

    def inputs(self) -> dict[str, Any]:
        """Where model and data lie, to find them again, and how the model was made."""
        store = self.store.path
        return {
            "checkpoint": str(self.loaded.path.absolute()),
            "weights": self.weights,
            "store": without_credentials(store) if "://" in store else str(Path(store).absolute()),
            "style": self.loaded.run["data"]["style"],
            "config": self.loaded.run.get("config", {}),
        }

    def measure(
        self, model: BrgSA, tested: EmbeddedSplit, fitted_on: EmbeddedSplit | None
    ) -> tuple[EvaluationResult, Scored]:
        """The table of the split, and the scores that it is made of."""
        score = self.scorer(model)
        scored = self.scored(self.index, tested, score)
        fitting = None
        if self.fitting is not None and fitted_on is not None:
            fitting = self.scored(self.fitting, fitted_on, score)
        result = measure(scored, self.setting(fitting))
        notes = [*filter(None, [self.no_gap()]), *result.notes]
        return mark_supervised(replace(result, notes=notes), self.supervised), scored

    def setting(self, fitting: Scored | None) -> Setting:
        """What the figures are measured by."""
        options = self.options
        return Setting(options.chosen, fitting, self.prevalence, options.rare, self.notes, self.about())

    def labels_of(self, index: SplitIndex) -> NDArray[np.float32]:
        """Labels (N, P) of some volumes for the abnormalities under test."""
        labels: NDArray[np.float32] = index.labels[:, [self.store.labels.index(name) for name in self.names]]
        return labels

    def encode(self, model: BrgSA, folder: Path) -> tuple[EmbeddedSplit, EmbeddedSplit | None]:
        """The volumes under test and those on which thresholds are chosen, which may be the same.

        Args:
            folder: where what is encoded is kept for a while, and was perhaps left before a kill.
        """
        others, options = self.others(), self.options
        if options.embeddings is not None:
            tested = read_kept(options.embeddings, self.split, self.identity(), self.index)
            if others is None:
                return tested, tested if self.fitting is self.index else None
            return tested, read_kept(options.embeddings, "validation", self.identity(), others)
        seen = model.config.vision.evaluated(self.store.geometry.shape)
        total = len(self.index) + (len(others) if others is not None else 0)
        parts = self.parts(folder)
        with ray_session(), progress(total, f"encode {self.split} volumes") as advance:

            def encoded(split: str, index: SplitIndex) -> EmbeddedSplit:
                source = BatchSource(index, seen)
                how = Encoding(self.loaded.path.absolute(), split, source, options.batch_size, parts, options.device)
                volumes = how.encode(model, options.workers, advance)
                return EmbeddedSplit(index.volume_ids, volumes, identity=self.identity())

            tested = encoded(self.split, self.index)
            if others is not None:
                return tested, encoded("validation", others)
            return tested, tested if self.fitting is self.index else None

    def others(self) -> SplitIndex | None:
        """The validation volumes, where they are encoded beside those under test.

        Embeddings that are kept serve protocols that choose thresholds on them, whatever this one does.
        """
        if self.fitting is None and self.options.save_embeddings and self.options.embeddings is None:
            honest = replace(self.options.chosen, threshold="validation")
            fitting = _fitting_volumes(self.store, self.split, self.index, honest)[0]
        else:
            fitting = self.fitting
        return None if fitting is self.index else fitting

    def rival(self, path: Path) -> _Evaluation | None:
        """The evaluation of another checkpoint on the same volumes; None where the path is a file, of scores.

        Raises:
            UserError: no-rival where nothing is there, or the checkpoint does not fit the store.
        """
        if not path.exists():
            raise UserError(
                f"There is no {path} to compare with: give a run, a checkpoint, or a file of scores.",
                code="no-rival",
                field="--compare",
                value=str(path),
            )
        if path.is_file():
            return None
        options = replace(self.options, embeddings=None, save_embeddings=False)
        other = _Evaluation.of(checkpoint_files.load(run_checkpoints.resolve(path)), self.store, self.split, options)
        return replace(other, fitting=None)

    def scored_alone(self, folder: Path) -> Scored:
        """The scores of the volumes under test, and nothing else of this evaluation."""
        model = self.loaded.model.to(self.options.device or default_device())
        found = self.scored(self.index, self.encode(model, folder)[0], self.scorer(model))
        remove_parts(self.parts(folder))
        return found

    def parts(self, folder: Path) -> Path:
        """Where what is encoded is kept for a while, below a folder."""
        return parts_folder(folder, self.identity(), self.split, self.options.batch_size)

    def identity(self) -> dict[str, Any]:
        """What embeddings are of: they serve another evaluation of the same."""
        return {
            "weights": self.weights,
            "data": self.store.fingerprint,
            "style": self.loaded.run["data"]["style"],
        }

    def keep(self, folder: Path, split: str, embedded: EmbeddedSplit) -> Path:
        """Write a split's embeddings for other protocols."""
        path = embeddings_file(folder, split)
        write_embeddings(path, embedded)
        return path

    def keep_calibration(self, result: EvaluationResult, folder: Path) -> Path | None:
        """Write how scores become probabilities, where that was fitted; gives the file."""
        if result.calibration is None or self.fitting is None:
            return None
        protocol = self.options.chosen
        about = {
            "weights": self.weights,
            "pairing": self.options.pairing,
            "protocol": protocol.name,
            "data": self.store.fingerprint,
        }
        labels = self.labels_of(self.fitting)
        return probabilities.keep(folder, about, protocol, self.names, result.calibration.scales, labels)

    def pictures(self) -> dict[int, Volume16]:
        """Row → int16 HU of the few volumes that are shown."""
        seen = self.loaded.model.config.vision.evaluated(self.store.geometry.shape)
        reader = BatchSource(self.index, seen).reader()
        rows = _examples(self.index, self.labels_of(self.index))
        return dict(zip(rows, reader.read(np.array(rows), 0), strict=True))

    def scorer(self, model: BrgSA) -> zeroshot.Scorer:
        """What scores an encoded split for the protocol's prompts, which are encoded once."""
        protocol = self.options.chosen
        return zeroshot.Scorer.of(
            protocol.asked(self.names),
            protocol.prompts,
            lambda texts: encode_texts(model, texts),
            self.options.pairing,
        )

    def scored(self, rows: SplitIndex, embedded: EmbeddedSplit, score: zeroshot.Scorer) -> Scored:
        """An encoded split with its scores and labels."""
        protocol = self.options.chosen
        scores = score(embedded.volumes).numpy().astype(np.float64)
        return Scored(
            names=self.names,
            volume_ids=rows.volume_ids,
            labels=self.labels_of(rows),
            scores=protocol.combined(self.names, protocol.asked(self.names), scores),
            scans=rows.scans,
            patients=rows.patients,
            voxels=_voxels(self.store, rows) if protocol.unit == "smallest-voxel" else None,
        )

    def alignment(self, model: BrgSA, tested: EmbeddedSplit) -> tuple[Alignment, Embeddings | None]:
        """How volumes and the texts of the style that the model was trained on lie, and the embeddings of these texts."""
        texts = self._texts()
        embedded = tested.texts
        if embedded is None and any(text.strip() for text in texts):
            embedded = _embedded_texts(model, texts)
        codes = np.unique(np.array(texts, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
        paired = Paired(tested.volumes, embedded, codes, self.index.scans, self.labels_of(self.index))
        return alignment(paired), embedded

    def _texts(self) -> list[str]:
        """The volumes' texts in the style that the model was trained on; all empty where the store lacks it."""
        style = self.loaded.run["data"]["style"]
        if style != "report" and style not in self.store.styles():
            return [""] * len(self.index)
        by_volume = self.store.texts(style)
        return [by_volume.get(volume) or "" for volume in self.index.volume_ids]

    def no_gap(self) -> str:
        """Why there is no modality gap; empty where there is one."""
        style = self.loaded.run["data"]["style"]
        if any(text.strip() for text in self._texts()):
            return ""
        if style != "report" and style not in self.store.styles():
            return f"No modality gap: the store has no summaries of style {style}; brgsa summarize --style {style} adds them."
        return "No modality gap: the volumes of this split have no reports."


def _embedded_texts(model: BrgSA, texts: Sequence[str]) -> Embeddings:
    """The embeddings (N, D) of N texts; NaN where a text is empty."""
    written = torch.tensor([i for i, text in enumerate(texts) if text.strip()], dtype=torch.long)
    read = encode_texts(model, [texts[i] for i in written.tolist()])

    def spread(rows: torch.Tensor) -> torch.Tensor:
        filled = torch.full((len(texts), rows.shape[1]), torch.nan)
        filled[written] = rows.float()
        return filled

    return Embeddings(spread(read.plain), None if read.bridged is None else spread(read.bridged))


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


def _labels_note(store: Store) -> str:
    """That the labels were read from reports, and how well; "" where they are the archive's."""
    return "" if store.label_source == GIVEN else f"The labels under test were read from {store.label_source}."


def _names(store: Store, options: EvaluateOptions) -> list[str]:
    """The abnormalities to score, each once."""
    if not store.labels:
        raise UserError(
            f"{store.path} has no labels to measure against: prepare it with label columns, or read them with `brgsa labels`.",
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
