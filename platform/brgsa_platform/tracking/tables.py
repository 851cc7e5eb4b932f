"""How `brgsa runs` looks in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from brgsa_platform.tracking.runs import age


def print_list(lines: Sequence[dict[str, Any]], nothing: str) -> None:
    """A line a run; a search's line counts its trials."""
    if not lines:
        print(nothing)
        return
    rows = []
    for line in lines:
        rows.append([line["id"], line["verb"], line["name"], _status(line), _figure(line["auroc"]), _age(line)])
    _print_table(["id", "verb", "name", "status", "AUROC", "age"], rows, right=(4, 5))


def print_run(run: dict[str, Any]) -> None:
    """Head, changed parameters, the other parameters, metrics, tags, artifacts."""
    took = f", took {run['seconds']:.0f} s" if run["seconds"] is not None else ""
    _say(f"{run['verb']} {run['name']}{_of(run)}: {_status(run)}, started {_age(run)} ago{took}")
    _say(f"run {run['run_id']}")
    if run["changed"]:
        rows = [[key, both["base"], both["value"]] for key, both in run["changed"].items()]
        _print_table(["differs", run["base"], "this run"], rows)
    if run["params"]:
        same = f"as in {run['base']}" if run["base"] else "parameter"
        _print_table([same, ""], [[key, value] for key, value in run["params"].items()])
    if run["metrics"]:
        rows = [
            [key, _figure(m["last"]), _figure(m.get("best")), str(m.get("step", ""))]
            for key, m in run["metrics"].items()
        ]
        _print_table(["metric", "last", "best", "at step"], rows, right=(1, 2, 3))
    if run["tags"]:
        _print_table(["tag", ""], [[key, value] for key, value in run["tags"].items()])
    if run["artifacts"]:
        _say("artifacts: " + ", ".join(run["artifacts"]))


def print_comparison(found: dict[str, Any]) -> None:
    """A column a run: what differs between their parameters, and all metrics."""
    heads = [f"{run['name']}\n{run['id']}" for run in found["runs"]]
    rows = [["status", *(run["status"] for run in found["runs"])]]
    rows += [[key, *("" if v is None else v for v in values)] for key, values in found["params"].items()]
    _print_table(["parameters that differ", *heads], rows)
    metrics = [[key, *map(_figure, values)] for key, values in found["metrics"].items()]
    if metrics:
        _print_table(["metric (last)", *heads], metrics, right=range(1, len(heads) + 1))


def print_best(best: dict[str, Any]) -> None:
    """The run, and the command that comes next."""
    _say(f"{best['verb']} {best['name']}{_of(best)} ({best['id']}) has {best['metric']} {best['value']:.4g}.")
    _say(f"Next: {best['evaluate']}")


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a name is no markup
    Console().print(table)


def _say(line: str) -> None:
    from rich.console import Console

    Console().print(line, highlight=False, markup=False, soft_wrap=True)


def _status(line: dict[str, Any]) -> str:
    trials = ", ".join(f"{count} {state}" for state, count in line.get("trials", {}).items())
    return f"{line['status']}: {trials}" if trials else str(line["status"])


def _age(line: dict[str, Any]) -> str:
    return age(datetime.fromisoformat(line["started"]).timestamp())


def _of(run: dict[str, Any]) -> str:
    return f" of search {run['search']}" if run["search"] else ""


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
