"""`brgsa evaluate`: a checkpoint and a store's split in, zero-shot scores, tables and pictures out.

Ray Data reads, decodes and crops; each CT is encoded once, in the driver, whatever the number of prompts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brgsa import checkpoint as checkpoint_files
from brgsa import gap, metrics, zeroshot
from brgsa.errors import UserError, nearest
from brgsa.model import BrgSA
from brgsa.volumes import Geometry
from brgsa_platform.evaluation import tables as evaluation
from brgsa_platform.evaluation.scores import scores_of
from brgsa_platform.evaluation.tables import EvaluationResult, Gap
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.training import batches as datasets
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.encoding import EncodedSplit, encode_split, encode_texts, select_rows

PROTOCOLS = ("validation", "paper")
CLUSTERS = ("volume", "scan", "patient")
EXAMPLES = 3  # volumes shown as slices


def evaluate(
    checkpoint: Path | str,
    store_path: Path | str,
    split: str = "test",
    *,
    pairing: str = "mean",
    template: str = zeroshot.TEMPLATE,
    contrast: str | None = None,
    protocol: str = "validation",
    cluster: str | None = None,
    resamples: int = 5000,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    rare: Sequence[str] | None = None,
    batch_size: int = 16,
    device: str | None = None,
    out: Path | str | None = None,
    parent_run: str | None = None,
    name: str | None = None,
) -> EvaluationResult:
    """Score every volume of a split for every abnormality, measure, and keep tables and pictures.

    Args:
        checkpoint: a checkpoint folder, or a run's (its best checkpoint).
        pairing: which embeddings are compared, see `brgsa.zeroshot`.
        template: the prompt, with the field {abnormality}.
        contrast: a second template for its absence; the score is then the softmax over the pair (CT-CLIP's way).
        protocol: "validation" chooses thresholds on the validation split; "paper" on the labels under test, as the
            publications do.
        cluster: what the bootstrap draws: "volume" (default of "paper"), "scan" (default of "validation": two
            reconstructions of a scan are not two observations) or "patient".
        labels: abnormalities to score; default all that the store has labels for.
        rare: names of the rare ones; default those present in less than 3 % of the store's training scans.
        device: default "cuda" where there is one.
        out: folder for evaluation-SPLIT.{csv,json} and scores-SPLIT.parquet; default the checkpoint's.
        parent_run, name: of the MLflow run.

    Raises:
        UserError: checkpoint, store and choices do not fit together, or `out` cannot be written; nothing was started.
    """
    loaded = checkpoint_files.load(run_checkpoints.resolve(checkpoint))
    store = Store.open(store_path)
    _check_choices(protocol, cluster, pairing, resamples, batch_size)
    _check_geometry(loaded, store)
    names = _names(store, labels, rare or ())
    prompts = zeroshot.prompts(names, template)
    negated = None if contrast is None else zeroshot.prompts(names, contrast)
    if pairing != "mean" and "'" in pairing and not loaded.model.has_bank:
        raise UserError(f"{loaded.path} has no knowledge bank, which pairing {pairing!r} needs: use v.t or mean.")
    folder = _writable(Path(out) if out is not None else loaded.path)

    rows = datasets.split_index(store, split)
    validation, threshold_source, notes = _validation_rows(store, split, rows, protocol)
    if rare is None:
        rare, more = _rare_by_prevalence(store, names)
        notes += more
    cluster = cluster or ("volume" if protocol == "paper" else "scan")
    about: dict[str, Any] = {
        "checkpoint": f"{_run_name(loaded.path)}/{loaded.path.name}",
        "data": store.fingerprint,
        "split": split,
        "volumes": len(rows),
        "scans": len(np.unique(rows.scans)),
        "patients": len(np.unique(rows.patients)),
        "pairing": pairing,
        "template": template,
        "contrast": contrast,
        "protocol": protocol,
        "threshold_source": threshold_source,
        "cluster": cluster,
        "resamples": resamples,
        "seed": seed,
    }
    tags = {"brgsa.data": store.fingerprint, "brgsa.checkpoint": about["checkpoint"], "brgsa.protocol": protocol}
    title = name or f"{about['checkpoint']} on {split}"
    with tracking.run("evaluate", name=title, params=about, tags=tags, parent=parent_run) as run:
        model = loaded.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        crop = model.config.vision.volume
        columns = [store.labels.index(label) for label in names]
        others = validation if validation is not None and validation is not rows else None
        total = len(rows) + (len(others) if others is not None else 0)
        with ray_session(), progress(total, f"encode {split} volumes") as advance:
            batches = datasets.evaluation_batches(datasets.BatchSource(rows, crop), batch_size=batch_size)
            tested = encode_split(model, rows, batches, advance=advance, keep=_examples(rows, columns))
            compared = tested
            if others is not None:
                batches = datasets.evaluation_batches(datasets.BatchSource(others, crop), batch_size=batch_size)
                compared = encode_split(model, others, batches, advance=advance)

        present, absent = encode_texts(model, prompts), None if negated is None else encode_texts(model, negated)
        scores, truth = scores_of(tested, present, absent, pairing), rows.labels[:, columns]
        thresholds = np.full(len(names), np.nan)
        if validation is not None:
            fitted, known = scores_of(compared, present, absent, pairing), compared.rows.labels[:, columns]
            thresholds = np.array([metrics.corner_threshold(known[:, i], fitted[:, i]) for i in range(len(names))])
        measured, more = _gap(model, store, loaded.run["data"]["style"], tested)
        result = evaluation.tabulate(
            names,
            truth,
            scores,
            thresholds=thresholds,
            rare=rare,
            groups={"volume": None, "scan": rows.scans, "patient": rows.patients}[cluster],
            resamples=resamples,
            seed=seed,
            about=about,
            gap=measured,
            notes=[*notes, *more],
        )
        result = replace(result, run_id=run.run_id, files=_files(folder, split))
        _write(result, rows, scores)
        _track(run, result, truth, scores, tested, store.geometry.spacing, columns)
    return result


def _check_choices(protocol: str, cluster: str | None, pairing: str, resamples: int, batch_size: int) -> None:
    for option, value, known in (
        ("protocol", protocol, PROTOCOLS),
        ("cluster", cluster or "volume", CLUSTERS),
        ("pairing", pairing, zeroshot.PAIRINGS),
    ):
        if value not in known:
            raise UserError(f"Unknown {option} {value!r}: choose one of {', '.join(known)}.")
    for option, number in (("resamples", resamples), ("batch_size", batch_size)):
        if number < 1:
            raise UserError(f"{option} must be at least 1, not {number}.")


def _check_geometry(loaded: checkpoint_files.Checkpoint, store: Store) -> None:
    trained = Geometry.from_dict(loaded.run["data"]["geometry"])
    if trained != store.geometry:
        raise UserError(
            f"{loaded.path} was trained on volumes of geometry {trained.to_dict()}, and {store.path} holds "
            f"{store.geometry.to_dict()}: prepare the store with the checkpoint's geometry, or use another checkpoint."
        )


def _names(store: Store, labels: Sequence[str] | None, rare: Sequence[str]) -> list[str]:
    if not store.labels:
        raise UserError(f"{store.path} has no labels to measure against: prepare it with label columns.")
    for label in (*(labels or ()), *rare):
        if label not in store.labels:
            hint = nearest(label, store.labels)
            raise UserError(f"{store.path} has no label {label!r}{hint}; it has: {', '.join(store.labels)}.")
    return list(dict.fromkeys(labels)) if labels else list(store.labels)


def _validation_rows(
    store: Store, split: str, rows: datasets.SplitIndex, protocol: str
) -> tuple[datasets.SplitIndex | None, str, list[str]]:
    """The volumes on which thresholds are chosen, in words whose they are, and what to say about it."""
    if protocol == "paper":
        return rows, f"fitted on the {split} labels themselves (protocol paper)", []
    if split == "validation":
        return rows, "fitted on the validation labels themselves", []
    if "validation" not in store.index(["split"])["split"].to_pylist():
        note = "The store has no validation split to choose thresholds on, so there are no figures at one."
        return None, "none", [note]
    return datasets.split_index(store, "validation"), "chosen on the validation split", []


def _rare_by_prevalence(store: Store, names: Sequence[str]) -> tuple[list[str], list[str]]:
    if "train" not in store.index(["split"])["split"].to_pylist():
        return [], ["The store has no training split to tell rare abnormalities by: all count as common."]
    rare = dict(zip(store.labels, datasets.rare_labels(datasets.split_index(store, "train")), strict=True))
    return [name for name in names if rare[name]], []


def _examples(rows: datasets.SplitIndex, columns: Sequence[int]) -> list[int]:
    """The volumes with the most abnormalities, one a scan: there is something to see."""
    found = np.nansum(rows.labels[:, list(columns)], axis=1)
    chosen: dict[int, int] = {}
    for row in np.argsort(-found, kind="stable"):
        chosen.setdefault(int(rows.scans[row]), int(row))
    return list(chosen.values())[:EXAMPLES]


def _gap(model: BrgSA, store: Store, style: str, tested: EncodedSplit) -> tuple[Gap | None, list[str]]:
    """The gap between the volumes and the texts of the style that the model was trained on."""
    if style != "report" and style not in store.styles():
        note = (
            f"No modality gap: the store has no summaries of style {style}; brgsa summarize --style {style} adds them."
        )
        return None, [note]
    by_volume = store.texts(style)
    texts = [by_volume.get(volume) or "" for volume in tested.rows.volume_ids]
    written = torch.tensor([i for i, text in enumerate(texts) if text.strip()], dtype=torch.long)
    if not len(written):
        return None, ["No modality gap: the volumes of this split have no reports."]
    volumes, sentences = tested.embeddings, encode_texts(model, [texts[i] for i in written.tolist()])
    volumes = select_rows(volumes, written)
    before = (volumes.plain.numpy(), sentences.plain.numpy())
    if volumes.bridged is None or sentences.bridged is None:
        return Gap(gap.modality_gap(*before), gap.project(*before)), []
    after = (volumes.bridged.numpy(), sentences.bridged.numpy())
    return Gap(gap.modality_gap(*before), gap.project(*before), gap.modality_gap(*after), gap.project(*after)), []


def _run_name(folder: Path) -> str:
    above = folder.absolute().parent
    return above.parent.name if above.name == run_checkpoints.FOLDER else above.name


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another folder with --out.") from error
    return folder


def _files(folder: Path, split: str) -> dict[str, str]:
    names = {"csv": f"evaluation-{split}.csv", "json": f"evaluation-{split}.json", "scores": f"scores-{split}.parquet"}
    return {kind: str(folder / name) for kind, name in names.items()}


def _write(result: EvaluationResult, rows: datasets.SplitIndex, scores: NDArray[np.float64]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"volume_id": rows.volume_ids, **{row.name: scores[:, i] for i, row in enumerate(result.abnormalities)}}
    )
    table = table.replace_schema_metadata({"brgsa": json.dumps(result.about)})
    text = json.dumps(evaluation.to_json(result), indent=1, allow_nan=False) + "\n"
    _aside(result.files["scores"], lambda aside: pq.write_table(table, aside))
    _aside(result.files["csv"], lambda aside: aside.write_text(evaluation.to_csv(result)))
    _aside(result.files["json"], lambda aside: aside.write_text(text))


def _aside(path: str, write: Callable[[Path], Any]) -> None:
    final = Path(path)
    aside = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        write(aside)
        os.replace(aside, final)
    finally:
        aside.unlink(missing_ok=True)


def _track(
    run: tracking.Run,
    result: EvaluationResult,
    truth: NDArray[Any],
    scores: NDArray[np.float64],
    tested: EncodedSplit,
    spacing: tuple[float, float, float],
    columns: Sequence[int],
) -> None:
    from brgsa_platform.runtime import plots as figures

    run.log_metrics(evaluation.to_metrics(result))
    run.log_table("evaluation.json", evaluation.to_columns(result))
    for kind in ("csv", "json"):
        run.log_artifact(result.files[kind])
    shown = [(i, result.abnormalities[i]) for i in result.columns()]
    curves = {row.name: (metrics.roc_curve(truth[:, i], scores[:, i]), row.figures["auroc"].value) for i, row in shown}
    run.log_figure(figures.roc_figure(curves, f"ROC curves, {result.about['split']}"), "roc.png")
    bars = {
        title: {row.name: row.figures["auroc"] for _, row in shown if row.rare == is_rare}
        for title, is_rare in (("common", False), ("rare", True))
    }
    run.log_figure(figures.bars_figure({k: v for k, v in bars.items() if v}), "auroc.png")
    if result.gap is not None:
        found = result.gap
        clouds = figures.clouds_figure(found.clouds_before, found.before, found.clouds_after, found.after)
        run.log_figure(clouds, "embeddings.png")
    captions = [(_caption(result, tested.rows.labels[row, list(columns)]), ct) for row, ct in tested.pictures.items()]
    run.log_figure(figures.planes_figure(captions, spacing), "slices.png")


def _caption(result: EvaluationResult, labels: NDArray[Any]) -> str:
    """What a volume shows, never whose it is."""
    names = [row.name for row, label in zip(result.abnormalities, labels, strict=True) if label == 1]
    more = f"\nand {len(names) - 4} more" if len(names) > 4 else ""
    return "\n".join(names[:4]) + more if names else "no abnormality"
