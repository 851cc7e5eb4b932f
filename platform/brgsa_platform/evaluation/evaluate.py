"""`brgsa evaluate`: a checkpoint and a store's split in, scores of prompts, tables and pictures out.

Each CT is encoded once, in the driver, whatever the number of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brgsa import checkpoint as checkpoint_files
from brgsa import metrics, zeroshot
from brgsa.metrics import gap
from brgsa.errors import UserError, nearest
from brgsa.model import BrgSA, default_device
from brgsa.volumes import Geometry
from brgsa_platform.evaluation.outputs import file_names, log_result, writable_folder, write_files
from brgsa_platform.evaluation.tables import EvaluationResult, Gap, mark_supervised, tabulate
from brgsa_platform.loading.batches import BatchSource, SplitIndex, evaluation_batches, rare_labels, split_index
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.store.doubts import doubt_warning
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.encoding import EncodedSplit, encode_split, encode_texts, select_rows

PROTOCOLS = ("validation", "paper")
CLUSTERS = ("volume", "scan", "patient")
EXAMPLES = 3  # volumes shown as slices

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class EvaluateOptions:
    """How volumes are scored, and how the scores are measured.

    Attributes:
        pairing: which embeddings are compared, see `brgsa.zeroshot`.
        template: the prompt, with the field {abnormality}.
        contrast: a second template for its absence; the score is then the softmax over the pair (CT-CLIP's way).
        protocol: "validation" chooses thresholds on the validation split; "paper" on the labels under test, as the
            publications do.
        cluster: what the bootstrap draws: "volume" (default of "paper"), "scan" (default of "validation": two
            reconstructions of a scan are not two observations) or "patient".
        resamples: bootstrap resamples.
        seed: of the bootstrap.
        labels: abnormalities to score; default all that the store has labels for.
        rare: names of the rare ones; default those present in less than 3 % of the store's training scans.
        batch_size: volumes encoded at a time.
        device: default "cuda" where there is one.
    """

    pairing: str = "mean"
    template: str = zeroshot.TEMPLATE
    contrast: str | None = None
    protocol: str = "validation"
    cluster: str | None = None
    resamples: int = 5000
    seed: int = 0
    labels: Sequence[str] | None = None
    rare: Sequence[str] | None = None
    batch_size: int = 16
    device: str | None = None

    @property
    def drawn(self) -> str:
        """What the bootstrap draws."""
        return self.cluster or ("volume" if self.protocol == "paper" else "scan")

    def check(self) -> None:
        """Refuse values that no checkpoint and no store could serve.

        Raises:
            UserError: names the option and what it may be.
        """
        for option, value, known in (
            ("protocol", self.protocol, PROTOCOLS),
            ("cluster", self.drawn, CLUSTERS),
            ("pairing", self.pairing, zeroshot.PAIRINGS),
        ):
            if value not in known:
                raise UserError(
                    f"Unknown {option} {value!r}{nearest(value, known)}: choose one of {', '.join(known)}.",
                    code=f"unknown-{option}",
                    field=option,
                    value=value,
                )
        for option, number in (("resamples", self.resamples), ("batch_size", self.batch_size)):
            if number < 1:
                raise UserError(
                    f"{option} must be at least 1, not {number}.", code="below-one", field=option, value=number
                )
        for template in (self.template, self.contrast):
            if template is not None:
                zeroshot.prompts([], template)


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
    about = evaluation.about()
    tags = {
        "brgsa.data": about["data"],
        "brgsa.checkpoint": about["checkpoint"],
        "brgsa.protocol": options.protocol,
        "brgsa.supervised": ", ".join(about["supervised"]),
    }
    title = name or f"{about['checkpoint']} on {split}"
    with tracking.run("evaluate", name=title, params=about, tags=tags, parent=parent_run) as run:
        model = loaded.model.to(options.device or default_device())
        tested, fitted_on = evaluation.encode(model)
        score = evaluation.scorer(model)
        scores, labels = score(tested), evaluation.labels_of(tested.rows)
        result = tabulate(
            evaluation.names,
            labels,
            scores,
            thresholds=evaluation.thresholds(fitted_on, score),
            rare=evaluation.rare,
            groups=evaluation.groups(),
            resamples=options.resamples,
            seed=options.seed,
        )
        result = mark_supervised(result, evaluation.supervised)
        measured_gap, gap_notes = evaluation.gap(model, tested)
        result = replace(
            result,
            about=about,
            gap=measured_gap,
            notes=[*evaluation.notes, *gap_notes, *result.notes],
            files=file_names(folder, split),
            run_id=run.run_id,
        )
        write_files(result, tested.rows.volume_ids, scores)
        log_result(run, result, labels, scores, tested.pictures, evaluation.store.geometry.spacing)
    return result


@dataclass(frozen=True)
class _Evaluation:
    """A checkpoint, a split of a store and options that fit together, and what follows from them.

    Attributes:
        names: the P abnormalities, as the store's labels name them.
        index: the volumes under test.
        fitting: the volumes on which thresholds are chosen; None where there are none.
        threshold_source: in words, whose those volumes are.
        rare: names of the rare abnormalities.
        notes: what there is to say of all this.
    """

    loaded: checkpoint_files.Checkpoint
    store: Store
    split: str
    options: EvaluateOptions
    names: list[str]
    index: SplitIndex
    fitting: SplitIndex | None
    threshold_source: str
    rare: Sequence[str]
    notes: list[str]

    @classmethod
    def of(cls, loaded: checkpoint_files.Checkpoint, store: Store, split: str, options: EvaluateOptions) -> _Evaluation:
        """Raises UserError where checkpoint, store and options do not fit together."""
        options.check()
        _check_geometry(loaded, store)
        _check_bank(loaded, options.pairing)
        names = _names(store, options)
        index = split_index(store, split)
        fitting, threshold_source, notes = _fitting_volumes(store, split, index, options.protocol)
        rare: Sequence[str] = options.rare or ()
        if options.rare is None:
            rare, more = _rare_by_prevalence(store, names)
            notes += more
        notes += [*filter(None, [doubt_warning(store), _phantom_note(loaded, store)])]
        return cls(loaded, store, split, options, names, index, fitting, threshold_source, rare, notes)

    @property
    def supervised(self) -> list[str]:
        """The abnormalities under test on whose labels the model was trained."""
        return [name for name in self.names if checkpoint_files.is_supervised(self.loaded.run, name)]

    def about(self) -> dict[str, Any]:
        """All that decides on the figures, as plain JSON values."""
        options, index, folder = self.options, self.index, self.loaded.path
        return {
            "checkpoint": f"{_run_name(folder)}/{folder.name}",
            "data": self.store.fingerprint,
            "split": self.split,
            "volumes": len(index),
            "scans": len(np.unique(index.scans)),
            "patients": len(np.unique(index.patients)),
            "pairing": options.pairing,
            "template": options.template,
            "contrast": options.contrast,
            "protocol": options.protocol,
            "threshold_source": self.threshold_source,
            "cluster": options.drawn,
            "resamples": options.resamples,
            "seed": options.seed,
            "supervised": self.supervised,
        }

    def labels_of(self, index: SplitIndex) -> NDArray[np.float32]:
        """Labels (N, P) of some volumes for the abnormalities under test."""
        labels: NDArray[np.float32] = index.labels[:, [self.store.labels.index(name) for name in self.names]]
        return labels

    def groups(self) -> NDArray[np.int64] | None:
        """(N,) what the bootstrap draws as one; None draws single volumes."""
        return {"volume": None, "scan": self.index.scans, "patient": self.index.patients}[self.options.drawn]

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

    def scorer(self, model: BrgSA) -> Callable[[EncodedSplit], Scores]:
        """What gives the scores (N, P) of an encoded split for the prompts, which are encoded once.

        Where there are prompts of their absence, the scores are contrasted with those.
        """
        template, contrast = self.options.template, self.options.contrast
        present = encode_texts(model, zeroshot.prompts(self.names, template))
        absent = None if contrast is None else encode_texts(model, zeroshot.prompts(self.names, contrast))
        pairing = self.options.pairing

        def score(encoded: EncodedSplit) -> Scores:
            if absent is None:
                scores = zeroshot.scores(encoded.embeddings, present, pairing)
            else:
                scores = zeroshot.contrast_scores(encoded.embeddings, present, absent, pairing)
            return scores.numpy().astype(np.float64)

        return score

    def thresholds(self, fitted_on: EncodedSplit | None, score: Callable[[EncodedSplit], Scores]) -> Scores:
        """(P,) the threshold of each abnormality, NaN where none can be chosen."""
        if fitted_on is None:
            return np.full(len(self.names), np.nan)
        scores, labels = score(fitted_on), self.labels_of(fitted_on.rows)
        return np.array([metrics.corner_threshold(labels[:, i], scores[:, i]) for i in range(len(self.names))])

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
    store: Store, split: str, index: SplitIndex, protocol: str
) -> tuple[SplitIndex | None, str, list[str]]:
    """The volumes on which thresholds are chosen, in words whose they are, and what to say about it."""
    if protocol == "paper":
        return index, f"fitted on the {split} labels themselves (protocol paper)", []
    if split == "validation":
        return index, "fitted on the validation labels themselves", []
    if "validation" not in store.index(["split"])["split"].to_pylist():
        note = "The store has no validation split to choose thresholds on, so there are no figures at one."
        return None, "none", [note]
    return split_index(store, "validation"), "chosen on the validation split", []


def _rare_by_prevalence(store: Store, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which of the names are rare in the training split, and what to say where it has none."""
    if "train" not in store.index(["split"])["split"].to_pylist():
        return [], ["The store has no training split to tell rare abnormalities by: all count as common."]
    rare = dict(zip(store.labels, rare_labels(split_index(store, "train")), strict=True))
    return [name for name in names if rare[name]], []


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
