"""What a search leaves behind: the best configuration, its report, and its trials' runs in MLflow as the study has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from brgsa.errors import UserError
from brgsa.files import read_json, written_aside
from brgsa_platform.config import RunConfig
from brgsa_platform.runtime.progress import progress
from brgsa_platform.search import report
from brgsa_platform.search import study as studies
from brgsa_platform.search.spaces import drawn_config
from brgsa_platform.search.trials import trial_folder
from brgsa_platform.tracking import client as tracking
from brgsa_platform.training import run_checkpoints

if TYPE_CHECKING:
    from optuna.study import Study

    from brgsa_platform.search.searcher import Search

BEST_FILE = "best.yaml"
SUPERVISED = " (it was trained on labels: of the abnormalities that they name this is not zero-shot)"
RUN_STATUS = {"complete": "FINISHED", "failed": "FAILED"}  # of a trial's MLflow run; KILLED for all others


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        out: its folder.
        run_id: its MLflow run.
        trials: a row a trial, see `report.trial_rows`.
        best: `number` of the best trial, its `auroc` (or first goal) and its `values` by field.
        preset: file of the best configuration, which `brgsa train --preset` takes.
        store: the store's path or URL.
        ended_because: the limit that ended it; "" where it is the number of trials.
        supervised: whether the best trial was trained on labels, of which its AUROC is then not zero-shot.
    """

    out: Path
    run_id: str
    trials: list[dict[str, Any]]
    best: dict[str, Any]
    preset: Path
    store: str
    ended_because: str = ""
    supervised: bool = False

    def summary(self) -> str:
        """One line: the best trial of how many, why the search ended, and the command to go on with."""
        return f"{self.out}: {self.outcome()} Next: brgsa train --preset {self.preset} --data {self.store}"

    def outcome(self) -> str:
        """The best trial of how many, and why the search ended."""
        drawn = ", ".join(f"{key}={_shown(value)}" for key, value in self.best["values"].items())
        states = [trial["state"] for trial in self.trials]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("complete", "pruned", "failed") if states.count(s))
        return (
            f"best of {len(self.trials)} trials ({counts}) is trial {self.best['number']}, validation AUROC "
            f"{self.best['auroc']:.3f}{SUPERVISED if self.supervised else ''}, with {drawn}."
            f"{f' Ended: {self.ended_because}.' if self.ended_because else ''}"
        )


def settle(folder: Path, study: Study) -> None:
    """Give each trial's MLflow run the status that the study gives the trial."""
    for trial in studies.own_trials(study):
        run_id = _run_of(folder, trial.number)
        if run_id is None:
            continue
        state = report.STATES[trial.state.name]
        tags = {"brgsa.state": "interrupted" if state == "running" else state}
        if trial.user_attrs.get(studies.REASON):
            tags["brgsa.reason"] = trial.user_attrs[studies.REASON]
        tracking.settle(run_id, RUN_STATUS.get(state, "KILLED"), tags)


def conclude(run: tracking.Run, folder: Path, search: Search) -> SearchResult:
    """Write the best configuration and the report into the search's folder, and log them to its run.

    Raises:
        UserError: no-trial-completed, with the first trial's reason.
    """
    spec, rows = search.spec, report.trial_rows(search.study)
    best = studies.best_trial(studies.own_trials(search.study))
    if best is None:
        reasons = [row["reason"] for row in rows if row["reason"]] or ["no trial was started"]
        raise UserError(
            f"None of the {len(rows)} trials of {folder.name} completed; the first: {reasons[0]}",
            code="no-trial-completed",
            field=folder.name,
            value=reasons[0],
        )
    values = studies.values_of(best, spec.parameters)
    preset = folder / BEST_FILE
    config = drawn_config(spec.base, values)
    with written_aside(preset) as aside:
        aside.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
    run.log_artifact(preset)
    supervised = config.loss.supervised > 0
    run.set_tags({"brgsa.supervised": "the best trial" if supervised else ""})
    report.log_search(run, search.study, folder)
    chosen = {"number": best.number, "auroc": float(best.values[0]), "values": values}
    result = SearchResult(folder, run.run_id, rows, chosen, preset, spec.store, search.ended_because(), supervised)
    run.describe(f"Search over {spec.space_words()} by {spec.method.sampler}.\n\nThe {result.outcome()}")
    return result


def log_checkpoints(result: SearchResult, which: str) -> None:
    """Copy trials' best checkpoints into their MLflow runs; a trial without a whole epoch has none.

    Args:
        which: all, best (that of the best trial) or none.
    """
    numbers: Sequence[int] = {
        "all": [row["number"] for row in result.trials], "best": [result.best["number"]], "none": []
    }[which]  # fmt: skip
    with progress(len(numbers), "log checkpoints") as advance:
        for number in numbers:
            trial = trial_folder(result.out, number)
            run_id = _run_of(result.out, number)
            if run_id is not None and run_checkpoints.whole(trial):
                if not (trial / run_checkpoints.FOLDER / "best.json").is_file():
                    # It was killed after its checkpoint, before it said which one is the best.
                    config = RunConfig.from_tree(read_json(trial / "run.json")["config"], str(trial))
                    run_checkpoints.mend(trial, config.train.keep)
                tracking.log_checkpoint(run_id, run_checkpoints.resolve(trial))
            advance(1)


def _run_of(folder: Path, number: int) -> str | None:
    """MLflow run id of a trial; None where it ended before it had one."""
    file = trial_folder(folder, number) / "run.json"
    return str(read_json(file)["mlflow_run_id"]) if file.is_file() else None


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else str(value)
