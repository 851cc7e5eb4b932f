"""The checkpoints of a training run: which there are, which is best, which may go.

    RUN/run.json                 configuration, store, MLflow run
    RUN/checkpoints/epoch-0003/  one folder a kept epoch (see brgsa.checkpoint)
    RUN/checkpoints/epoch-0003-step-00000412/  within the epoch after: only the last, to go on from, never the best
    RUN/checkpoints/best.json    the name of the best one and its score

A checkpoint folder appears and goes by a rename, so each one that is there is whole.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa.files import read_json, write_json
from brgsa_platform.config import TrainSection

FOLDER = "checkpoints"
NAME = re.compile(r"epoch-(?P<epoch>[0-9]+)(-step-(?P<step>[0-9]+))?")


def folder_of(run: Path, epoch: int, step: int | None = None) -> Path:
    """The checkpoint folder of an epoch (counted from 1), or of a step of the run within the epoch after it."""
    within = "" if step is None else f"-step-{step:08d}"
    return run / FOLDER / f"epoch-{epoch:04d}{within}"


def run_of(checkpoint: Path) -> Path:
    """The run's folder of a checkpoint; of one that lies elsewhere the folder above it."""
    above = checkpoint.absolute().parent
    return above.parent if above.name == FOLDER else above


def whole(run: Path) -> list[tuple[int, Path]]:
    """(epoch, folder) of a run's checkpoints at the end of an epoch, oldest first."""
    return [(epoch, path) for epoch, step, path in _all(run) if step is None]


def latest(run: Path) -> Path | None:
    """The newest checkpoint, at the end of an epoch or within one, from which a training goes on."""
    checkpoints = _all(run)
    return checkpoints[-1][2] if checkpoints else None


def forget_steps(run: Path) -> None:
    """Remove the checkpoints within an epoch that are older than the newest checkpoint."""
    for _, step, path in _all(run)[:-1]:
        if step is not None:
            _remove(path)


def _all(run: Path) -> list[tuple[int, int | None, Path]]:
    """(epoch, step or None, folder), oldest first."""
    checkpoints = []
    for path in (run / FOLDER).glob("epoch-*"):
        # A copy that a user has made ("epoch-0003-good") is no checkpoint of the run.
        if name := NAME.fullmatch(path.name):
            checkpoints.append((int(name["epoch"]), int(name["step"]) if name["step"] else None, path))
    return sorted(checkpoints, key=lambda checkpoint: (checkpoint[0], checkpoint[1] or 0))


def resolve(path: Path | str) -> Path:
    """A checkpoint folder from itself, or from its run's folder: then the best one.

    Raises:
        UserError: it is neither, or the run has no epoch yet, or its best.json is damaged.
    """
    path = Path(path)
    if (path / "model.json").is_file():
        return path
    if (path / FOLDER / "best.json").is_file():
        return _best(path)
    newest = latest(path)
    if newest is not None:
        raise UserError(
            f"{path} has not finished an epoch: go on with its `brgsa train`, or give {newest.name} in its {FOLDER} folder.",
            code="run-without-epoch",
            field=str(path),
            value=newest.name,
        )
    raise UserError(
        f"{path} is neither a checkpoint nor a run of `brgsa train` with one: give one of those folders.",
        code="not-a-checkpoint",
        field=str(path),
    )


def _best(run: Path) -> Path:
    """The checkpoint that a run's best.json names."""
    file = run / FOLDER / "best.json"
    name = str(read_json(file).get("checkpoint"))
    # A run from elsewhere must not choose what is read: only one of its own checkpoints is followed.
    chosen = run / FOLDER / name if NAME.fullmatch(name) else None
    if chosen is None or not (chosen / "model.json").is_file():
        raise UserError(
            f"{file} points to {name}, which is no checkpoint of this run: give the folder of another epoch.",
            code="best-not-a-checkpoint",
            field=str(file),
            value=name,
        )
    return chosen


def keep_best(run: Path, history: list[dict[str, Any]], keep: int) -> None:
    """Point best.json at the best epoch so far; remove what is neither among the `keep` best nor the last.

    Args:
        history: one entry an epoch, with `epoch` and `score` (larger is better).
    """
    saved = {epoch for epoch, _ in whole(run)}
    ranked = [entry for entry in sorted(history, key=merit, reverse=True) if entry["epoch"] in saved]
    if not ranked:
        return
    best = ranked[0]
    write_json(
        run / FOLDER / "best.json",
        {"checkpoint": folder_of(run, best["epoch"]).name, "epoch": best["epoch"], "score": best["score"]},
    )
    kept = {entry["epoch"] for entry in ranked[:keep]} | {max(saved)}
    for epoch in saved - kept:
        _remove(folder_of(run, epoch))


def mend(run: Path, keep: int) -> list[dict[str, Any]]:
    """Do what a kill may have prevented: point best.json at the best epoch, and remove what is not to be kept.

    Returns:
        The history of the run's whole epochs; empty where there is none.

    Raises:
        UserError: the newest checkpoint is damaged.
    """
    newest = latest(run)
    if newest is None:
        return []
    history: list[dict[str, Any]] = read_json(newest / "training.json")["history"]
    keep_best(run, history, keep)
    forget_steps(run)
    return history


def _remove(folder: Path) -> None:
    """Remove a checkpoint by a rename: what a kill leaves of it is cleared when the run goes on."""
    aside = folder.with_name(f".{folder.name}.removed")
    os.replace(folder, aside)
    shutil.rmtree(aside)


def score_of(metrics: dict[str, float], select: str) -> float:
    """What an epoch is worth (larger is better), by `train.select`.

    Where there is nothing to validate on, the training loss counts; where no AUROC can be measured, the loss.
    """
    if select == "auroc" and "val/auroc" in metrics:
        return metrics["val/auroc"]
    return -metrics.get("val/loss", metrics["train/loss"])


def is_over(history: list[dict[str, Any]], config: TrainSection) -> bool:
    """Whether a training with this history is at its end: its epochs are done, or the last ones were no better."""
    best, since = -math.inf, 0
    for entry in history:
        score, _ = merit(entry)
        best, since = (score, 0) if score > best else (best, since + 1)
    return len(history) >= config.epochs or (config.stop_after is not None and since >= config.stop_after)


def merit(entry: dict[str, Any]) -> tuple[float, int]:
    """Sort key of an epoch's entry in the history: its score, of equal ones the later; no number is the worst score."""
    score = float(entry["score"])
    return -math.inf if math.isnan(score) else score, entry["epoch"]


def report_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What is reported of an epoch, from its entry in the history."""
    return {name: value for name, value in entry.items() if name != "score"}
