"""What an evaluation leaves behind: tables beside the checkpoint, and figures and pictures in MLflow."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from brgsa import metrics
from brgsa.errors import UserError
from brgsa.files import written_aside
from brgsa.volumes.augment import Volume16
from brgsa_platform.evaluation.result import EvaluationResult
from brgsa_platform.evaluation.scored import Scored
from brgsa_platform.evaluation.tables import summary, to_columns, to_csv, to_json, to_metrics
from brgsa_platform.evaluation.volume_files import write_alignment, write_labels, write_scores
from brgsa_platform.runtime.version import git_commit
from brgsa_platform.tracking.client import Run
from brgsa_platform.tracking.lineage import command

# Ours is the commit: in a job the code may lie in its working folder, installed nowhere.
VERSIONS = ("torch", "numpy", "scipy", "transformers", "ray", "mlflow")


def writable_folder(folder: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): choose another folder with --out.",
            code="folder-not-writable",
            field="--out",
            value=str(folder),
        ) from error
    return folder


def origin(**more: Any) -> dict[str, Any]:
    """What made an evaluation: the command, when, the code and what it runs on, and what else is known."""
    return {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        **more,
    }


def file_names(folder: Path, split: str, aligned: bool = False) -> dict[str, str]:
    """Kind of file → path, for the files of a split's evaluation; `aligned` where there are volumes with texts."""
    names = {
        "csv": f"evaluation-{split}.csv",
        "json": f"evaluation-{split}.json",
        "scores": f"scores-{split}.parquet",
        "labels": f"labels-{split}.parquet",
    }
    if aligned:
        names["alignment"] = f"alignment-{split}.parquet"
    return {kind: str(folder / name) for kind, name in names.items()}


def write_files(result: EvaluationResult, scored: Scored) -> None:
    """Write the files of `result.files`, each whole or not at all, and last the one that tells that there are the others."""
    write_scores(Path(result.files["scores"]), scored, result.about)
    write_labels(Path(result.files["labels"]), scored)
    if "alignment" in result.files and result.alignment is not None:
        write_alignment(Path(result.files["alignment"]), result.alignment, scored.volume_ids)
    text = json.dumps(to_json(result), indent=1, allow_nan=False) + "\n"
    for kind, content in (("csv", to_csv(result)), ("json", text)):
        with written_aside(Path(result.files[kind])) as aside:
            aside.write_text(content, encoding="utf-8")


def log_result(
    run: Run,
    result: EvaluationResult,
    pictures: Mapping[int, Volume16],
    labels: NDArray[Any],
    spacing: tuple[float, float, float],
) -> None:
    """Log figures, tables and pictures to MLflow; neither volume ids nor report text, which stay where they are.

    Args:
        pictures: row → int16 HU (x, y, z) of a few volumes, shown as slices.
        labels: (N, P) of the volumes, by row.
        spacing: of the voxels, in mm.
    """
    from brgsa_platform.runtime import plots

    run.log_metrics(to_metrics(result))
    run.describe(description(result))
    run.log_table("evaluation.json", to_columns(result))
    for kind in ("csv", "json"):
        run.log_artifact(result.files[kind])
    _log_pictures(run, result)
    slices = [(_caption(result, labels[row]), ct) for row, ct in pictures.items()]
    run.log_figure(plots.planes_figure(slices, spacing), "slices.png")


def _log_pictures(run: Run, result: EvaluationResult) -> None:
    """Log each picture of the figures, and one of all: MLflow's compare page puts each run's summary.png side by side."""
    from brgsa_platform.runtime import plots

    assert result.observed is not None
    observed = result.observed
    measured = [(i, result.abnormalities[i]) for i in result.columns()]
    curves = {
        row.name: (metrics.roc_curve(observed.labels[:, i], observed.scores[:, i]), row.figures["auroc"].value)
        for i, row in measured
    }
    by_rarity = {
        title: {row.name: row.figures["auroc"] for _, row in measured if row.rare == is_rare}
        for title, is_rare in (("common", False), ("rare", True))
    }
    bars = {title: rows for title, rows in by_rarity.items() if rows}
    summary = plots.new_figure(16.0, max(9.0, 1.8 + 0.3 * len(measured)))
    summary.suptitle(f"{result.about['checkpoint']} on {result.about['split']}, protocol {result.about['protocol']}")
    ((left, right),) = summary.subfigures(1, 2, squeeze=False, width_ratios=(1.0, 1.25))
    (above,), (below,) = right.subfigures(2, 1, squeeze=False)
    plots.draw_bars(left, bars)
    plots.draw_roc(above, curves)
    run.log_figure(plots.roc_figure(curves, f"ROC curves, {result.about['split']}"), "roc.png")
    run.log_figure(plots.bars_figure(bars), "auroc.png")
    if result.calibration is not None:
        found = result.calibration
        lines = {name: (curve, found.mean_error(name)) for name, curve in found.curves.items()}
        run.log_figure(plots.reliability_figure(lines), "reliability.png")
        if result.gap is None:
            plots.draw_reliability(below, lines)
    if result.gap is not None:
        gap = result.gap
        clouds = gap.clouds_before, gap.before, gap.clouds_after, gap.after
        run.log_figure(plots.clouds_figure(*clouds), "embeddings.png")
        plots.draw_clouds(below, *clouds)
    run.log_figure(summary, "summary.png")


def description(result: EvaluationResult) -> str:
    """What was measured, on what, and what came out, in Markdown."""
    about, mean = result.about, result.means["macro"]["auroc"]
    told = [
        f"Evaluation of the checkpoint `{about['checkpoint']}` on the split `{about['split']}` of a store "
        f"(fingerprint `{about['data']}`), pairing `{about['pairing']}`."
    ]
    if math.isfinite(mean.value):
        span = f" (95 %: {mean.low:.3f} to {mean.high:.3f})" if math.isfinite(mean.low) else ""
        told.append(f"Mean AUROC **{mean.value:.3f}**{span} over {len(result.columns())} abnormalities.")
    return "\n\n".join([*told, *summary(replace(result, files={}))])


def _caption(result: EvaluationResult, labels: NDArray[Any]) -> str:
    """What a volume shows, never whose it is."""
    names = [row.name for row, label in zip(result.abnormalities, labels, strict=True) if label == 1]
    more = f"\nand {len(names) - 4} more" if len(names) > 4 else ""
    return "\n".join(names[:4]) + more if names else "no abnormality"
