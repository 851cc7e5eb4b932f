"""What a search found: its trials as a table, which fields mattered, the Pareto set, pictures; as files and in MLflow.

Everything is read from the Optuna study, so that it can be told again from a study on disk. A trial may carry, as user
attributes, `reason` (why it was pruned or failed), `epochs` (run) and `best_epoch`; the latter two are otherwise read from
its values per epoch, which are the study's intermediate values with the epoch, from 1, as step.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from brgsa_platform.search.figures import Field
    from brgsa_platform.tracking.client import Run

Row = dict[str, Any]

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
FEWEST_FOR_IMPORTANCE = 8  # complete trials; below, the best and the rest are a handful each and show their noise
BEST_SHARE, FEWEST_BEST = 0.1, 5  # importance: what sets the best tenth apart, or the best five (Optuna's advice)


def search_tags(preset: str | None, data: str, spaces: Sequence[str]) -> dict[str, str]:
    """Tags of a search and of each of its trials, to find and to group them by."""
    return {"brgsa.preset": preset or "", "brgsa.data": data, "brgsa.space": ",".join(spaces)}


def objective_names(study: Study) -> list[str]:
    """The study's metric names where it has them."""
    numbered = [f"objective_{i}" for i in range(len(study.directions))]
    return study.metric_names or (["objective"] if len(numbered) == 1 else numbered)


def objectives(study: Study) -> dict[str, bool]:
    """Objective → whether larger is better."""
    from optuna.study import StudyDirection

    larger = (direction == StudyDirection.MAXIMIZE for direction in study.directions)
    return dict(zip(objective_names(study), larger, strict=True))


def trial_rows(study: Study) -> list[Row]:
    """One row a trial, in the order of their numbers.

    number, state (complete, pruned, failed, running), each searched field by its full name (None where the trial did not
    draw it), each objective (a pruned trial's best epoch; None where there is none), best_epoch, epochs, reason, seconds.
    """
    fields = [field.name for field in searched_fields(study)]
    names = objectives(study)
    return [_row(trial, fields, names) for trial in study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]


def searched_fields(study: Study) -> list[Field]:
    """The fields that any trial drew, with their ranges, in the order of their first appearance."""
    from optuna.distributions import CategoricalDistribution

    from brgsa_platform.search.figures import Field

    found: dict[str, Field] = {}
    drawn: Any
    for trial in study.get_trials(deepcopy=False):
        for name, drawn in trial.distributions.items():
            if name in found:
                continue
            if isinstance(drawn, CategoricalDistribution):
                found[name] = Field(name, choices=tuple(drawn.choices))
            else:
                found[name] = Field(name, drawn.low, drawn.high, log=drawn.log)
    return list(found.values())


def importance_note(study: Study) -> str:
    """Why there is no importance to tell; empty where there is."""
    complete = _complete(study)
    if len(complete) < FEWEST_FOR_IMPORTANCE:
        return f"importance needs {FEWEST_FOR_IMPORTANCE} complete trials, and there are {len(complete)}"
    for i, name in enumerate(objective_names(study)):
        if len({trial.values[i] for trial in complete}) == 1:
            return f"all complete trials have the same {name}, so no field mattered to it"
    return ""


def importance(study: Study) -> dict[str, float]:
    """Field → its share in what sets the best trials apart, largest first; empty with an `importance_note`.

    PED-ANOVA: where the best trials' values of a field lie beside those of all complete trials. It asks what matters to be
    among the best, which is what a search is for, needs no scikit-learn (fANOVA does), and counts a conditional field only
    over the trials that drew it. With two objectives: what matters to be near the Pareto front.
    """
    if importance_note(study):
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    share = min(0.5, max(BEST_SHARE, FEWEST_BEST / len(_complete(study))))
    with warnings.catch_warnings():
        # A tie among the best may select every trial: shares are then equal, which is what is to be said.
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=share))
    return {name: float(value) for name, value in found.items()}


def pareto(study: Study) -> list[Row]:
    """The complete trials that no other beats in every objective, best in the first one first; one objective: the best."""
    from brgsa_platform.search.figures import best_row

    rows, names = trial_rows(study), objectives(study)
    first, larger = next(iter(names.items()))
    if len(names) == 1:
        best = best_row(rows, first, larger)
        return [dict(best)] if best is not None else []
    numbers = {trial.number for trial in study.best_trials}
    return sorted((row for row in rows if row["number"] in numbers), key=lambda row: row[first], reverse=larger)


def write_report(folder: Path, study: Study) -> list[Path]:
    """trials.csv, importance.csv, pareto.csv and the pictures into the search's folder, each written aside and renamed.

    Returns:
        what was written; pictures only where a trial has something to show.
    """
    from brgsa_platform.runtime import plots as figures
    from brgsa_platform.search import figures as search_figures

    rows, fields, names = trial_rows(study), searched_fields(study), objectives(study)
    columns = ["number", "state", *(f.name for f in fields), *names, "best_epoch", "epochs", "reason", "seconds"]
    shares = [{"field": field, "importance": share} for field, share in importance(study).items()]
    written = [
        _write_csv(folder / "trials.csv", columns, rows),
        _write_csv(folder / "importance.csv", ["field", "importance"], shares),
        _write_csv(folder / "pareto.csv", columns, pareto(study)),
    ]
    if not any(row["state"] in search_figures.MARKS for row in rows):
        return written
    pictures = {"history.png": search_figures.history_figure(_as_they_ended(study, rows), names)}
    for name, larger in names.items():
        ending = f"-{name.replace('/', '-')}" if len(names) > 1 else ""
        pictures[f"slices{ending}.png"] = search_figures.slice_figure(rows, fields, name, larger)
        pictures[f"parallel{ending}.png"] = search_figures.parallel_figure(rows, fields, name, larger)
    for file, figure in pictures.items():
        figures.save(figure, folder / file)
        written.append(folder / file)
    return written


def log_search(run: Run, study: Study, folder: Path) -> None:
    """Write the report into `folder` and log it to the search's run: tables as the UI shows them, pictures, counts.

    The best value of an objective "val/auroc" is the metric "best/auroc", as in a training's run.
    """
    written = write_report(folder, study)
    rows, names = trial_rows(study), objectives(study)
    if rows:
        # The UI takes a dot in a column's name for a path and shows nothing.
        run.log_table("trials.json", {key.replace(".", "/"): [row[key] for row in rows] for key in rows[0]})
    shares = importance(study)
    if shares:
        run.log_table("importance.json", {"field": list(shares), "importance": list(shares.values())})
    else:
        run.set_tags({"brgsa.importance": importance_note(study)})
    found: dict[str, float] = {"trials": len(rows), "epochs": sum(row["epochs"] for row in rows)}
    for state in ("complete", "pruned", "failed"):
        found[f"trials/{state}"] = sum(row["state"] == state for row in rows)
    complete = [row for row in rows if row["state"] == "complete"]
    for name, larger in names.items():
        if complete:
            found[f"best/{name.rpartition('/')[2]}"] = (max if larger else min)(row[name] for row in complete)
    run.log_metrics(found)
    for path in written:
        run.log_artifact(path)


def _row(trial: FrozenTrial, fields: Sequence[str], names: Mapping[str, bool]) -> Row:
    by_epoch = {epoch: value for epoch, value in trial.intermediate_values.items() if value == value}
    values: list[float | None] = [None] * len(names)
    best_epoch = None
    if by_epoch and len(names) == 1:
        (larger,) = names.values()
        best_epoch = (max if larger else min)(by_epoch, key=lambda epoch: by_epoch[epoch])
        values = [by_epoch[best_epoch]]
    if trial.state.name == "COMPLETE":
        values = list(trial.values)
    ended, started = trial.datetime_complete, trial.datetime_start
    return {
        "number": trial.number,
        "state": STATES[trial.state.name],
        **{field: trial.params.get(field) for field in fields},
        **(dict(zip(names, values, strict=True)) if trial.state.name != "FAIL" else dict.fromkeys(names)),
        "best_epoch": trial.user_attrs.get("best_epoch", best_epoch),
        "epochs": trial.user_attrs.get("epochs", len(trial.intermediate_values)),
        "reason": trial.user_attrs.get("reason", ""),
        "seconds": round((ended - started).total_seconds(), 2) if ended and started else None,
    }


def _complete(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]


def _as_they_ended(study: Study, rows: Sequence[Row]) -> list[Row]:
    ended = {t.number: t.datetime_complete for t in study.get_trials(deepcopy=False) if t.datetime_complete}
    return sorted((row for row in rows if row["number"] in ended), key=lambda row: ended[row["number"]])


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text.getvalue())
    os.replace(aside, path)
    return path
