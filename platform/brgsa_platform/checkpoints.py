"""The checkpoints of a training run: which are whole, which is best, which may go.

    RUN/run.json                 configuration, store, MLflow run
    RUN/checkpoints/epoch-0003/  one folder a kept epoch (see brgsa.checkpoint)
    RUN/checkpoints/best.json    the name of the best one and its score

A checkpoint folder appears and goes by a rename, so each one that is there is whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from brgsa.errors import UserError

FOLDER = "checkpoints"


def folder_of(run: Path, epoch: int) -> Path:
    """The checkpoint folder of an epoch (counted from 1)."""
    return run / FOLDER / f"epoch-{epoch:04d}"


def whole(run: Path) -> list[tuple[int, Path]]:
    """(epoch, folder) of a run's checkpoints, oldest first."""
    found = [(path.name.removeprefix("epoch-"), path) for path in (run / FOLDER).glob("epoch-*")]
    # A user's copy of one ("epoch-0003-good") is none of the run's.
    return sorted((int(epoch), path) for epoch, path in found if epoch.isdecimal())


def latest(run: Path) -> Path | None:
    """The newest checkpoint, from which a training goes on."""
    found = whole(run)
    return found[-1][1] if found else None


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
        chosen = path / FOLDER / str(read_json(best).get("checkpoint"))
        if not (chosen / "model.json").is_file():
            raise UserError(
                f"{best} points to {chosen.name}, which is no checkpoint: give the folder of another epoch."
            )
        return chosen
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
        gone = folder_of(run, epoch)
        # A run that goes on clears what a kill leaves of it.
        aside = gone.with_name(f".{gone.name}.removed")
        os.replace(gone, aside)
        shutil.rmtree(aside)


def merit(entry: dict[str, Any]) -> tuple[float, int]:
    """Sort key of an epoch's entry in the history: its score, of equal ones the later; no number is the worst score."""
    score = float(entry["score"])
    return -math.inf if math.isnan(score) else score, entry["epoch"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a run's folder."""
    try:
        tree: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(tree, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove the run's folder and train again.") from error
    return tree


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write aside and rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(tree, indent=1) + "\n")
    os.replace(aside, path)
