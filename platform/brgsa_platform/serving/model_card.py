"""A checkpoint's model card: what it was made of, how well it does where it was measured, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brgsa.checkpoint import phantom_warning
from brgsa.files import read_json

LIMITS = (
    "**Not a medical device.** It is for research: no decision on a patient may rest on it.",
    "A score is no probability. A percentile tells how a scan stands among the training's validation scans, "
    "not how likely a finding is. A probability, where there is one, was fitted on the validation split and holds where "
    "abnormalities are as frequent as there.",
    "It knows scans like those of its training; other scanners, body regions and patients may mislead it.",
    "A low score does not exclude a finding, and what no prompt names is not looked for.",
)


def model_card(checkpoint: Path, run: Mapping[str, Any]) -> str:
    """The card in Markdown.

    Args:
        checkpoint: its folder, where evaluations may lie.
        run: contents of its run.json.
    """
    data, config = run["data"], run.get("config", {}).get("model", {})
    geometry = data["geometry"]
    shape, spacing = (" × ".join(f"{n:g}" for n in geometry[key]) for key in ("shape", "spacing"))
    parts = ["# Zero-shot model of chest CT (brgsa)", "## What it is not for", _list(LIMITS)]
    caution = phantom_warning(run)
    about = [
        f"Data: a store with the fingerprint `{data.get('fingerprint', 'unknown')}`, texts of the style `{data['style']}`.",
        f"It sees volumes of {shape} voxels of {spacing} mm.",
        f"Abnormalities that its data names: {', '.join(run['labels']) or 'none'}.",
        *(
            [f"Trained on labels, so not zero-shot, of: {', '.join(run['supervised'])}."]
            if run.get("supervised")
            else []
        ),
        *([f"Towers: {config['vision']['name']} and {config['text']['name']}."] if config else []),
        *([f"Code: commit `{run['commit']}`."] if run.get("commit") else []),
        *([f"**{caution}**"] if caution else []),
    ]
    parts += ["## What it was made of", _list(about), "## Figures"]
    figures = [_figures(read_json(file)) for file in sorted(checkpoint.glob("evaluation-*.json"))]
    parts += figures or [
        "It has not been evaluated: `brgsa evaluate` measures it, and registering it again adds the figures."
    ]
    return "\n\n".join(parts) + "\n"


def _figures(tree: Mapping[str, Any]) -> str:
    """One evaluation's AUROC as a table."""
    title = (
        f"Split `{tree.get('split')}` of the store `{tree.get('data')}`, protocol `{tree.get('protocol')}`, thresholds: "
        f"{tree.get('threshold_source')}; 95 % intervals of {tree.get('resamples')} resamples of {tree.get('cluster')}s."
    )
    lines = ["| abnormality | positives | AUROC | 95 % interval |", "|---|---|---|---|"]
    for name, row in tree["abnormalities"].items():
        mark = " (supervised)" if row.get("supervised") else ""
        lines.append(f"| {name}{mark} | {row['positives']} | {_cells(row['auroc'])} |")
    lines.append(f"| mean of {tree['macro']['abnormalities']} | | {_cells(tree['macro']['auroc'])} |")
    return "\n\n".join([title, "\n".join(lines), *([_list(tree["notes"])] if tree.get("notes") else [])])


def _cells(of: Mapping[str, float | None]) -> str:
    value, low, high = of["value"], of["low"], of["high"]
    span = "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return f"{'-' if value is None else f'{value:.3f}'} | {span}"


def _list(sentences: Any) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
