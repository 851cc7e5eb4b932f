"""What a search has found: its trials as a table, which fields mattered, the Pareto set, pictures; as files and in MLflow.

Everything is read from the Optuna study, so that it can be told again from a study on disk. Only the search's own trials
count, not what a warm start told the sampler of. A trial may carry, as user attributes, `reason` (why it was pruned or
failed), `epochs` (run) and `best_epoch`; the latter two are otherwise read from its values per epoch, which are the study's
intermediate values with the epoch, from 1, as step.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brgsa.files import written_aside
from brgsa_platform.search.study import BEST_EPOCH, EPOCHS, REASON, own_trials

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from brgsa_platform.search.figures import Field
    from brgsa_platform.tracking.client import Run

Row = dict[str, Any]

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
FEWEST_FOR_IMPORTANCE = 8  # complete trials; below, the best and the rest are a handful each and show their noise
BEST_SHARE, FEWEST_BEST = 0.1, 5  # importance: what sets the best tenth apart, or the best five (Optuna's advice)


def search_tags(preset: str | None, data: str, spaces: Sequence[str]) -> dict[str, str]:
    """Tags of a search and of each of its trials, to find and to group them by."""
    return {"brgsa.preset": preset or "", "brgsa.data": data, "brgsa.space": ",".join(spaces)}


def objective_names(study: Study) -> list[str]:
    """The names of what the study maximises, where it has names; "objective" otherwise."""
    numbered = [f"objective_{i}" for i in range(len(study.directions))]
    return study.metric_names or (["objective"] if len(numbered) == 1 else numbered)


def trial_rows(study: Study) -> list[Row]:
    """One row a trial, in the order of their numbers.

    number, state (complete, pruned, failed, running), each searched field by its full name (None where the trial did not
    draw it), each objective (a pruned trial's best epoch; None where there is none), best_epoch, epochs, reason, seconds.
    """
    fields = [field.name for field in searched_fields(study)]
    objectives = objective_names(study)
    return [_row(trial, fields, objectives) for trial in own_trials(study)]


def searched_fields(study: Study) -> list[Field]:
    """The fields that any trial drew, with their ranges, in the order of their first appearance."""
    from optuna.distributions import CategoricalDistribution

    from brgsa_platform.search.figures import Field

    by_name: dict[str, Field] = {}
    drawn: Any
    for trial in own_trials(study):
        for name, drawn in trial.distributions.items():
            if name in by_name:
                continue
            if isinstance(drawn, CategoricalDistribution):
                by_name[name] = Field(name, choices=tuple(drawn.choices))
            else:
                by_name[name] = Field(name, drawn.low, drawn.high, log=drawn.log)
    return list(by_name.values())


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

    complete = _complete(study)
    share = min(0.5, max(BEST_SHARE, FEWEST_BEST / len(complete)))
    with warnings.catch_warnings():
        # A tie among the best may select every trial; the shares are then equal, as they should be.
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        shares = get_param_importances(_study_of(study, complete), evaluator=evaluator)
    return {name: float(value) for name, value in shares.items()}


def pareto(study: Study) -> list[Row]:
    """The complete trials that no other beats in every objective, best in the first one first; one objective: the best."""
    from brgsa_platform.search.figures import best_row

    rows, objectives = trial_rows(study), objective_names(study)
    if len(objectives) == 1:
        best = best_row(rows, objectives[0])
        return [dict(best)] if best is not None else []
    complete = _complete(study)
    # Optuna numbers the copies of these trials in their order.
    numbers = {complete[trial.number].number for trial in _study_of(study, complete).best_trials}
    return sorted((row for row in rows if row["number"] in numbers), key=lambda row: row[objectives[0]], reverse=True)


def write_report(folder: Path, study: Study) -> list[Path]:
    """trials.csv, importance.csv, pareto.csv and the pictures into the search's folder, each written aside and renamed.

    Returns:
        what was written; pictures only where a trial has something to show.
    """
    from brgsa_platform.runtime import plots
    from brgsa_platform.search import figures

    rows, fields, objectives = trial_rows(study), searched_fields(study), objective_names(study)
    columns = ["number", "state", *(f.name for f in fields), *objectives, "best_epoch", "epochs", "reason", "seconds"]
    shares = [{"field": field, "importance": share} for field, share in importance(study).items()]
    written = [
        _write_csv(folder / "trials.csv", columns, rows),
        _write_csv(folder / "importance.csv", ["field", "importance"], shares),
        _write_csv(folder / "pareto.csv", columns, pareto(study)),
    ]
    if not any(row["state"] in figures.MARKS for row in rows):
        return written
    pictures = {"history.png": figures.history_figure(_as_they_ended(study, rows), objectives)}
    for objective in objectives:
        ending = f"-{objective.replace('/', '-')}" if len(objectives) > 1 else ""
        pictures[f"slices{ending}.png"] = figures.slice_figure(rows, fields, objective)
        pictures[f"parallel{ending}.png"] = figures.parallel_figure(rows, fields, objective)
    for file, figure in pictures.items():
        plots.save(figure, folder / file)
        written.append(folder / file)
    return written


def log_search(run: Run, study: Study, folder: Path) -> None:
    """Write the report into `folder` and log it to the search's run: tables as the UI shows them, pictures, counts.

    The best value of an objective "val/auroc" is the metric "best/auroc", as in a training's run.
    """
    written = write_report(folder, study)
    rows = trial_rows(study)
    if rows:
        # The UI takes a dot in a column's name for a path and shows nothing.
        run.log_table("trials.json", {key.replace(".", "/"): [row[key] for row in rows] for key in rows[0]})
    shares = importance(study)
    if shares:
        run.log_table("importance.json", {"field": list(shares), "importance": list(shares.values())})
    else:
        run.set_tags({"brgsa.importance": importance_note(study)})
    run.log_metrics(counts(rows, objective_names(study)))
    for path in written:
        run.log_artifact(path)


def counts(rows: Sequence[Row], objectives: Iterable[str]) -> dict[str, float]:
    """The metrics of a search's run: its trials, by state, their epochs, and the best value of each objective."""
    figures: dict[str, float] = {"trials": len(rows), "epochs": sum(row["epochs"] for row in rows)}
    for state in ("complete", "pruned", "failed"):
        figures[f"trials/{state}"] = sum(row["state"] == state for row in rows)
    complete = [row for row in rows if row["state"] == "complete"]
    if complete:
        for name in objectives:
            figures[f"best/{name.rpartition('/')[2]}"] = max(row[name] for row in complete)
    return figures


def _row(trial: FrozenTrial, fields: Sequence[str], objectives: Sequence[str]) -> Row:
    by_epoch = {epoch: value for epoch, value in trial.intermediate_values.items() if value == value}
    values: list[float | None] = [None] * len(objectives)
    best_epoch = None
    if by_epoch and len(objectives) == 1:
        best_epoch = max(by_epoch, key=lambda epoch: by_epoch[epoch])
        values = [by_epoch[best_epoch]]
    state = STATES[trial.state.name]
    if state == "complete":
        values = list(trial.values)
    elif state == "failed":
        values = [None] * len(objectives)
    ended, started = trial.datetime_complete, trial.datetime_start
    return {
        "number": trial.number,
        "state": state,
        **{field: trial.params.get(field) for field in fields},
        **dict(zip(objectives, values, strict=True)),
        "best_epoch": trial.user_attrs.get(BEST_EPOCH, best_epoch),
        "epochs": trial.user_attrs.get(EPOCHS, len(trial.intermediate_values)),
        "reason": trial.user_attrs.get(REASON, ""),
        "seconds": round((ended - started).total_seconds(), 2) if ended and started else None,
    }


def _complete(study: Study) -> list[FrozenTrial]:
    return [trial for trial in own_trials(study) if trial.state.name == "COMPLETE"]


def _study_of(study: Study, trials: Sequence[FrozenTrial]) -> Study:
    """A study in memory of these trials alone, for what Optuna computes from a whole study."""
    import optuna

    part = optuna.create_study(directions=study.directions)
    part.add_trials(trials)
    return part


def _as_they_ended(study: Study, rows: Sequence[Row]) -> list[Row]:
    ended = {t.number: t.datetime_complete for t in own_trials(study) if t.datetime_complete}
    return sorted((row for row in rows if row["number"] in ended), key=lambda row: ended[row["number"]])


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with written_aside(path) as aside:
        aside.write_text(text.getvalue(), encoding="utf-8")
    return path
