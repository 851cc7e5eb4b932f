"""The tables of `brgsa runs` on a terminal, from the plain data of `runs`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from brgsa_platform.runtime.console import print_line, print_table, table
from brgsa_platform.tracking.runs import age


def print_list(lines: Sequence[dict[str, Any]], nothing: str) -> None:
    """Print a line a run, or `nothing` where there is none; a search's line counts its trials."""
    if not lines:
        print(nothing)
        return
    rows = []
    for line in lines:
        rows.append([line["id"], line["verb"], line["name"], _status(line), _number(line["auroc"]), _age(line)])
    print_table(table(["id", "verb", "name", "status", "AUROC", "age"], rows, right=(4, 5)))


def print_run(run: dict[str, Any]) -> None:
    """Print a run: head, changed parameters, other parameters, metrics, tags, artifacts."""
    took = f", took {run['seconds']:.0f} s" if run["seconds"] is not None else ""
    print_line(f"{run['verb']} {run['name']}{_of(run)}: {_status(run)}, started {_age(run)} ago{took}")
    print_line(f"run {run['run_id']}")
    if run["changed"]:
        rows = [[key, both["base"], both["value"]] for key, both in run["changed"].items()]
        print_table(table(["differs", run["base"], "this run"], rows))
    if run["params"]:
        same = f"as in {run['base']}" if run["base"] else "parameter"
        print_table(table([same, ""], list(run["params"].items())))
    if run["metrics"]:
        rows = [
            [key, _number(m["last"]), _number(m.get("best")), str(m.get("step", ""))]
            for key, m in run["metrics"].items()
        ]
        print_table(table(["metric", "last", "best", "at step"], rows, right=(1, 2, 3)))
    if run["tags"]:
        print_table(table(["tag", ""], list(run["tags"].items())))
    if run["artifacts"]:
        print_line("artifacts: " + ", ".join(run["artifacts"]))


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print a column a run: the parameters that differ, and all metrics."""
    heads = [f"{run['name']}\n{run['id']}" for run in comparison["runs"]]
    rows = [["status", *(run["status"] for run in comparison["runs"])]]
    rows += [[key, *("" if v is None else v for v in values)] for key, values in comparison["params"].items()]
    print_table(table(["parameters that differ", *heads], rows))
    metrics = [[key, *map(_number, values)] for key, values in comparison["metrics"].items()]
    if metrics:
        print_table(table(["metric (last)", *heads], metrics, right=range(1, len(heads) + 1)))


def print_best(best: dict[str, Any]) -> None:
    """Print the best run, and the command that comes next."""
    print_line(f"{best['verb']} {best['name']}{_of(best)} ({best['id']}) has {best['metric']} {best['value']:.4g}.")
    print_line(f"Next: {best['evaluate']}")


def _status(line: dict[str, Any]) -> str:
    trials = ", ".join(f"{count} {state}" for state, count in line.get("trials", {}).items())
    return f"{line['status']}: {trials}" if trials else str(line["status"])


def _age(line: dict[str, Any]) -> str:
    return age(datetime.fromisoformat(line["started"]).timestamp())


def _of(run: dict[str, Any]) -> str:
    return f" of search {run['search']}" if run["search"] else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
