"""The checkpoints of a training run: which are whole, which is best, which may go.

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
from brgsa_platform.runtime.files import read_json, write_json

FOLDER = "checkpoints"
NAME = re.compile(r"epoch-(?P<epoch>[0-9]+)(-step-(?P<step>[0-9]+))?")


def folder_of(run: Path, epoch: int, step: int | None = None) -> Path:
    """The checkpoint folder of an epoch (counted from 1), or of a step of the run within the epoch after it."""
    within = "" if step is None else f"-step-{step:08d}"
    return run / FOLDER / f"epoch-{epoch:04d}{within}"


def whole(run: Path) -> list[tuple[int, Path]]:
    """(epoch, folder) of a run's checkpoints at the end of an epoch, oldest first."""
    return [(epoch, path) for epoch, step, path in _all(run) if step is None]


def latest(run: Path) -> Path | None:
    """The newest checkpoint, at the end of an epoch or within one, from which a training goes on."""
    found = _all(run)
    return found[-1][2] if found else None


def forget_steps(run: Path) -> None:
    """Remove the checkpoints within an epoch that a newer one has made needless."""
    for _, step, path in _all(run)[:-1]:
        if step is not None:
            _remove(path)


def _all(run: Path) -> list[tuple[int, int | None, Path]]:
    """(epoch, step or None, folder), oldest first."""
    found = []
    for path in (run / FOLDER).glob("epoch-*"):
        # A user's copy of one ("epoch-0003-good") is none of the run's.
        if name := NAME.fullmatch(path.name):
            found.append((int(name["epoch"]), int(name["step"]) if name["step"] else None, path))
    return sorted(found, key=lambda one: (one[0], one[1] or 0))


def resolve(path: Path | str) -> Path:
    """A checkpoint folder from itself, or from its run's folder: then the best one.

    Raises:
        UserError: it is neither.
    """
    path = Path(path)
    if (path / "model.json").is_file():
        return path
    best = path / FOLDER / "best.json"
    if best.is_file():
        name = str(read_json(best).get("checkpoint"))
        if not NAME.fullmatch(name):  # a run from elsewhere must not choose what is read
            raise UserError(f"{best} points to {name}, which is no checkpoint's name: give the folder of an epoch.")
        chosen = path / FOLDER / name
        if not (chosen / "model.json").is_file():
            raise UserError(
                f"{best} points to {chosen.name}, which is no checkpoint: give the folder of another epoch."
            )
        return chosen
    newest = latest(path)
    if newest is not None:
        raise UserError(
            f"{path} has not finished an epoch: go on with its `brgsa train`, or give {newest.name} in its {FOLDER} folder."
        )
    raise UserError(f"{path} is neither a checkpoint nor a run of `brgsa train` with one: give one of those folders.")


def keep_best(run: Path, history: list[dict[str, Any]], keep: int) -> None:
    """Point best.json at the best epoch so far; remove what is neither among the `keep` best nor the last.

    Args:
        history: one entry an epoch, with `epoch` and `score` (larger is better).
    """
    ranked = sorted(history, key=merit, reverse=True)
    there = {epoch for epoch, _ in whole(run)}
    ranked = [entry for entry in ranked if entry["epoch"] in there]
    if not ranked:
        return
    best = ranked[0]
    write_json(
        run / FOLDER / "best.json",
        {"checkpoint": folder_of(run, best["epoch"]).name, "epoch": best["epoch"], "score": best["score"]},
    )
    kept = {entry["epoch"] for entry in ranked[:keep]} | {max(there)}
    for epoch in there - kept:
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
    # A run that goes on clears what a kill leaves of it.
    aside = folder.with_name(f".{folder.name}.removed")
    os.replace(folder, aside)
    shutil.rmtree(aside)


def merit(entry: dict[str, Any]) -> tuple[float, int]:
    """Sort key of an epoch's entry in the history: its score, of equal ones the later; no number is the worst score."""
    score = float(entry["score"])
    return -math.inf if math.isnan(score) else score, entry["epoch"]


def report_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What is reported of an epoch, from its entry in the history."""
    return {name: value for name, value in entry.items() if name != "score"}
