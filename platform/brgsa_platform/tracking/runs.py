"""`brgsa runs`: the runs of the tracking store. Each verb's answer is plain data, ready for JSON; `tables` prints it."""

from __future__ import annotations

import math
import time
from collections import Counter
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import Any

from brgsa import files
from brgsa.errors import UserError
from brgsa_platform.config import flatten, load_config
from brgsa_platform.tracking import connection, query
from brgsa_platform.tracking.query import Record, quoted

METRIC = "best/auroc"
# MLflow's status of a trial's run → the state in a search's words.
TRIAL_STATES = {"FINISHED": "complete", "KILLED": "pruned", "FAILED": "failed", "RUNNING": "running"}
ID_LENGTH = 8
CANDIDATES = 5  # named when a RUN is ambiguous


def list_runs(search: str | None = None, verb: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """Some of the runs, the newest first; a search's line counts its trials, which have no lines of their own.

    Args:
        search: a search's id or name: list its trials instead.
        verb: list only the runs of this verb; "trial" lists the trials of all searches.
        limit: the number of runs at most.

    Raises:
        UserError: there is no such search (see `one_run`).
    """
    if search is not None:
        where = _children_of(one_run(search, "tune"))
    elif verb is not None:
        where = f'tags."brgsa.verb" = {quoted(verb)}'
    else:
        where = "tags.\"brgsa.verb\" != 'trial'"
    return [_line(record) for record in query.find(where, limit=limit)]


def show_run(text: str) -> dict[str, Any]:
    """All about one run; `changed` holds the parameters that differ from its preset, or a trial's from its search's base.

    Args:
        text: the run's id, the beginning of it, or its name.

    Raises:
        UserError: see `one_run`.
    """
    record = one_run(text)
    search = _parent(record)
    base, base_name = _base(record, search)
    changed = {
        key: {"base": base[key], "value": value}
        for key, value in record.params.items()
        if key in base and base[key] != value
    }
    return {
        **_line(record),
        "run_id": record.run_id,
        "seconds": round(record.ended - record.started, 1) if record.ended else None,
        "search": search.name if search else None,
        "base": base_name,
        "changed": changed,
        "params": {key: value for key, value in sorted(record.params.items()) if key not in changed},
        "metrics": {key: _metric(record, key) for key in sorted(record.metrics)},
        "tags": {key: value for key, value in sorted(record.tags.items()) if not key.startswith("mlflow.")},
        "artifacts": query.artifacts(record.run_id),
    }


def compare_runs(texts: list[str]) -> dict[str, Any]:
    """The parameters that differ between runs, and all their metrics: for each a list with a value a run, None for none.

    Args:
        texts: see `show_run`.

    Raises:
        UserError: there are fewer than two ("too-few-runs"); see also `one_run`.
    """
    if len(texts) < 2:
        raise UserError("Give two or more runs to compare; `brgsa runs list` names them.", code="too-few-runs")
    records = [one_run(text) for text in texts]
    params = sorted({key for record in records for key in record.params})
    differing = [key for key in params if len({record.params.get(key) for record in records}) > 1]
    metrics = sorted({key for record in records for key in record.metrics})
    return {
        "runs": [_line(record) for record in records],
        "params": {key: [record.params.get(key) for record in records] for key in differing},
        "metrics": {key: [_finite(record.metrics.get(key)) for record in records] for key in metrics},
    }


def best_run(metric: str = METRIC, search: str | None = None) -> dict[str, Any]:
    """The finished training or trial with the best value of a metric, and the command that evaluates it.

    Args:
        metric: of a loss the lowest value is the best, of others the highest.
        search: a search's id or name: only its trials count.

    Raises:
        UserError: no finished run has the metric ("no-run-with-metric"), or its name cannot be one ("bad-metric"); see also
            `one_run`.
    """
    within = f" AND {_children_of(one_run(search, 'tune'))}" if search is not None else ""
    lower = "loss" in metric
    order = f"metrics.{_key(metric)} {'ASC' if lower else 'DESC'}"
    ended = "attributes.status = 'FINISHED'"
    candidates = [
        record
        for verb in ("train", "trial")
        for record in query.find(f"tags.\"brgsa.verb\" = '{verb}' AND {ended}{within}", order=order, limit=1)
        if not math.isnan(record.metrics.get(metric, math.nan))
    ]
    if not candidates:
        where = f"in search {search}" if search is not None else f"in {experiment_and_store()}"
        raise UserError(
            f"There is no finished training with the metric {metric} {where}: train one, or give --metric.",
            code="no-run-with-metric",
            field="--metric",
            value=metric,
        )
    best = (min if lower else max)(candidates, key=lambda record: record.metrics[metric])
    folder, store = _folder_and_store(best)
    parent = _parent(best)
    return {
        **_line(best),
        "run_id": best.run_id,
        "metric": metric,
        "value": best.metrics[metric],
        "search": parent.name if parent else None,
        "evaluate": f"brgsa evaluate {folder or 'RUN_FOLDER'} --data {store or 'STORE'}",
    }


def one_run(text: str, verb: str | None = None) -> Record:
    """The run with this id, beginning of an id, or name.

    Args:
        verb: only runs of this verb count; "tune" is a search.

    Raises:
        UserError: there is none ("no-such-run"), or there are several, which are then named ("ambiguous-run").
    """
    only = f' AND tags."brgsa.verb" = {quoted(verb)}' if verb else ""
    kind = {"tune": "search"}.get(verb or "", "run")
    alike = query.find(f"attributes.run_name LIKE {quoted(text)}{only}")
    records = [record for record in alike if record.name == text]
    if text.isalnum():
        by_name = {record.run_id for record in records}
        by_id = query.find(f"attributes.run_id LIKE {quoted(text + '%')}{only}")
        records += [record for record in by_id if record.run_id not in by_name]
    if not records:
        message = f"There is no {kind} {text!r} in {experiment_and_store()}: `brgsa runs list` names them."
        raise UserError(message, code="no-such-run", field=kind, value=text)
    if len(records) > 1:
        candidates = [f"{r.run_id[:ID_LENGTH]} ({r.name}, {age(r.started)} ago)" for r in records[:CANDIDATES]]
        more = f" and {len(records) - CANDIDATES} more" if len(records) > CANDIDATES else ""
        message = f"{text!r} may be any of {', '.join(candidates)}{more}: give the beginning of its id."
        raise UserError(message, code="ambiguous-run", field=kind, value=text)
    return records[0]


def experiment_and_store() -> str:
    """Where the runs are looked for, in words without a password."""
    return f"experiment {connection.experiment_name()} of {connection.shown_uri()}"


def age(since: float) -> str:
    """How long ago a time (in seconds since 1970) was, in one unit, such as "5 min"."""
    seconds = max(0.0, time.time() - since)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _line(record: Record) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": record.run_id[:ID_LENGTH],
        "verb": record.verb,
        "name": record.name,
        "status": TRIAL_STATES.get(record.status, record.status.lower()) if record.verb == "trial" else _status(record),
        "auroc": _finite(record.metrics.get(METRIC, record.metrics.get("auroc/macro"))),
        "started": datetime.fromtimestamp(record.started).astimezone().isoformat(timespec="seconds"),
    }
    if record.verb == "tune":
        states = Counter(TRIAL_STATES.get(r.status, r.status.lower()) for r in query.find(_children_of(record)))
        line["trials"] = {state: states[state] for state in TRIAL_STATES.values() if states[state]}
    return line


def _status(record: Record) -> str:
    return "interrupted" if record.status == "KILLED" else record.status.lower()


def _children_of(search: Record) -> str:
    return f"tags.\"mlflow.parentRunId\" = '{search.run_id}'"


def _parent(record: Record) -> Record | None:
    parents = query.find(f"attributes.run_id = '{record.parent}'") if record.parent else []
    return parents[0] if parents else None


def _base(record: Record, search: Record | None) -> tuple[dict[str, str], str]:
    """The parameters that a run's are compared with, as MLflow writes them, and what they are called; empty for no such."""
    if record.verb == "trial" and search is not None:
        prefix = "base."
        base = {key.removeprefix(prefix): value for key, value in search.params.items() if key.startswith(prefix)}
        return base, f"search {search.name}"
    if record.verb != "train":
        return {}, ""
    preset = record.tags.get("brgsa.preset") or None
    try:
        config, name = load_config(preset), f"preset {preset}" if preset else "the defaults"
    except UserError:  # the preset was a file, and is gone
        config, name = load_config(), "the defaults"
    return {key: str(value) for key, value in flatten(config.to_dict()).items()}, name


def _metric(record: Record, key: str) -> dict[str, Any]:
    """A metric's last value and, where it has several, its best one with the step."""
    points = [(step, value) for step, value in query.metric_history(record.run_id, key) if math.isfinite(value)]
    last: dict[str, Any] = {"last": _finite(record.metrics[key])}
    if len(points) < 2:
        return last
    best = (min if "loss" in key else max)(points, key=lambda point: point[1])
    return {**last, "best": best[1], "step": best[0]}


def _folder_and_store(record: Record) -> tuple[str | None, str | None]:
    """The run's folder, searched for by its name near the current folder, and the store that it was trained on."""
    name = escape(record.tags.get("brgsa.out", ""))
    for pattern in (f"{name}", f"*/{name}", f"*/*/{name}", f"*/*/trials/{name}", f"*/*/*/trials/{name}"):
        for folder in Path().glob(pattern) if name else ():
            if (folder / "run.json").is_file():
                about = files.read_json(folder / "run.json")
                if about.get("mlflow_run_id") == record.run_id:
                    return str(folder), str(about.get("store"))
    return None, None


def _key(metric: str) -> str:
    """A metric's name as a filter's key."""
    if "`" in metric or not metric:
        message = f"{metric!r} is no metric's name."
        raise UserError(message, code="bad-metric", field="--metric", value=metric)
    return f"`{metric}`"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
