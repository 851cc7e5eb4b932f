"""A report as HTML: one file that needs no other, asks no host, and runs no script but its own.

What comes from data is escaped by the template, and the page's policy lets a browser run only the two scripts whose hashes it
names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from brgsa_platform.evaluation.result import Gain
from brgsa_platform.reports import charts, tables
from brgsa_platform.reports.differences import LIKELY, Difference
from brgsa_platform.reports.heat_maps import Picture
from brgsa_platform.reports.published import published_beside
from brgsa_platform.reports.retrieval import Texts, examples
from brgsa_platform.reports.runs import Evaluated

MARK = '<meta name="generator" content="brgsa report">'  # by which a report is known


@dataclass(frozen=True)
class Content:
    """What a report shows.

    Attributes:
        runs: the first is the one that the others stand beside.
        differences: of the first to each other run.
        pictures: each run's heat maps.
        left_out: each run's sentences on what the report lacks.
    """

    runs: list[Evaluated]
    differences: list[Difference]
    pictures: list[list[Picture]]
    left_out: list[list[str]]


def page(content: Content, texts: list[Texts | None]) -> str:
    """The HTML.

    Args:
        texts: each run's, by volume id; None shows neither texts nor ids.
    """
    runs = content.runs
    plotly, script = _plotly(), _own("page.js")
    parts = _parts(content, texts)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"specification": _specification, "yaml": _yaml}
    return environment.from_string(_own("page.html")).render(
        **parts,
        sections=_sections(parts),
        title=" beside ".join(run.title for run in runs),
        verdict=_verdict(content),
        about=_about(runs),
        left_out=content.left_out,
        with_texts=any(of is not None for of in texts),
        script_hashes=[Markup(f"'{_hash(text)}'") for text in (plotly, script)],
        style=Markup(_own("page.css")),
        plotly=Markup(plotly),
        script=Markup(script),
    )


def _parts(content: Content, texts: list[Texts | None]) -> dict[str, Any]:
    """What the sections show; empty or None where there is nothing."""
    runs, first = content.runs, content.runs[0]
    several = len(runs) > 1
    published = published_beside(first)
    shown = [(run, examples(run, of)) for run, of in zip(runs, texts, strict=True)]
    return {
        "runs": runs,
        "first": first,
        "figures": tables.areas_table(runs) if several else tables.figures_table(first, "figures-table"),
        "each": [(run.title, tables.figures_table(run, f"all-{n}")) for n, run in enumerate(runs)] if several else [],
        "differences": [
            (found, tables.gains_table(first.name, found, f"gains-{number}") if found.comparison else None)
            for number, found in enumerate(content.differences)
        ],
        "published": tables.published_table(first, published) if published else None,
        "curves": charts.curves(runs),
        "reliability": charts.reliability(runs),
        "gaps": [chart for number, run in enumerate(runs) if (chart := charts.gap(run, f"gap-{number}"))],
        "recall": charts.recall(runs),
        "examples": [(run, found) for run, found in shown if found],
        "pictures": [(run, found) for run, found in zip(runs, content.pictures, strict=True) if found],
    }


def _sections(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(anchor, title) of the sections that the page has."""
    named = (
        ("differences", "differences", "Differences"),
        ("published", "published", "Published figures"),
        ("curves", "curve", "Curves"),
        ("reliability", "calibration", "Reliability"),
        ("gaps", "gap", "Modality gap"),
        ("recall", "retrieval", "Retrieval"),
        ("pictures", "heat", "Heat maps"),
    )
    held = [(anchor, title) for part, anchor, title in named if parts[part]]
    return [("figures", "Figures"), *held, ("about", "How it came about")]


def _verdict(content: Content) -> str:
    """What came out, in a sentence for each run beside the first."""
    first = content.runs[0]
    count, told = first.means["macro"][0], first.told
    if not math.isfinite(first.macro.value):
        return "No abnormality could be measured."
    what = "abnormality" if count == 1 else "abnormalities"
    said = f"Mean AUROC {_with_interval(first.macro)} over {count} {what} on {told['volumes']:,} volumes."
    if not content.differences:
        return f"{said} A model that guesses has 0.500."
    return " ".join([said, *(_difference(found) for found in content.differences)])


def _difference(found: Difference) -> str:
    gain: Gain | None = found.macro
    if gain is None:
        return f"{found.other} cannot be compared with it."
    how = "paired" if found.paired else "not paired"
    told = f"{gain.gain.value:+.3f} ({gain.gain.low:+.3f} to {gain.gain.high:+.3f}), {how}"
    if not math.isfinite(gain.p) or gain.p >= LIKELY:
        return f"Beside {found.other} no difference beyond chance: {told}."
    return f"{'Better' if gain.gain.value > 0 else 'Worse'} than {found.other} beyond chance: {told}."


def _with_interval(of: Any) -> str:
    return f"{of.value:.3f} ({of.low:.3f} to {of.high:.3f})" if math.isfinite(of.low) else f"{of.value:.3f}"


def _about(runs: list[Evaluated]) -> list[tuple[str, list[str]]]:
    """(what, each run's) of what the figures rest on; lines that no run fills are left out."""

    def counted(run: Evaluated) -> str:
        keys = ("volumes", "scans", "patients", "observations")
        return ", ".join(f"{run.told[key]:,} {key}" for key in keys if key in run.told)

    def drawn(run: Evaluated) -> str:
        return f"{run.told['resamples']:,} resamples of {run.told['cluster']}s, seed {run.told['seed']}"

    def versions(run: Evaluated) -> str:
        return ", ".join(f"{name} {number}" for name, number in run.origin.get("versions", {}).items())

    lines: dict[str, Callable[[Evaluated], Any]] = {
        "model": lambda run: run.told["checkpoint"],
        "data fingerprint": lambda run: run.told["data"],
        "split": lambda run: run.told.get("split"),
        "measured on": counted,
        "protocol": lambda run: run.protocol.name,
        "thresholds": lambda run: run.told.get("threshold_source"),
        "intervals": drawn,
        "labels from": lambda run: run.told.get("labels_from"),
        "pairing": lambda run: run.told.get("pairing"),
        "trained on labels of": lambda run: ", ".join(run.told.get("supervised") or []),
        "evaluated": lambda run: run.origin.get("date"),
        "command": lambda run: run.origin.get("command"),
        "commit": lambda run: run.origin.get("commit"),
        "versions": versions,
        "MLflow run": lambda run: run.told.get("mlflow_run_id"),
    }
    table = [(name, [str(line(run) or "") for run in runs]) for name, line in lines.items()]
    return [(name, values) for name, values in table if any(values)]


def _specification(chart: charts.Chart) -> Markup:
    """A plot's JSON for a script element, which nothing in it can end."""
    text = json.dumps(charts.specification(chart), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _yaml(tree: Any) -> str:
    import yaml

    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110))


def _plotly() -> str:
    text: str = resources.files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    return text


def _own(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """How a policy names an inline script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
