"""`brgsa report`: evaluations in, one HTML file out; also an artifact of the evaluation's run in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brgsa.errors import UserError
from brgsa.files import written_aside
from brgsa_platform.reports.differences import differ
from brgsa_platform.reports.heat_maps import Picture, heat_maps
from brgsa_platform.reports.page import MARK, Content, page
from brgsa_platform.reports.retrieval import Texts, texts_of
from brgsa_platform.reports.runs import Evaluated, read_runs
from brgsa_platform.tracking import client as tracking

ARTIFACT, COMPARISON = "report.html", "comparison.html"  # in MLflow, of one run and of several
HEAD = 4096  # characters of a file in which `MARK` stands


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: of the file.
        said: sentences on what it lacks, and where else it went.
    """

    path: Path
    said: list[str]


def report(runs: Sequence[Path | str], out: Path | str, *, texts: bool = False, maps: int = 4) -> Report:
    """Write one HTML file on one evaluation, or on several, of which the first is compared with each other.

    It is made from what the evaluations saved. Heat maps and texts need the store as well, and are left out without it.

    Args:
        runs: training runs, checkpoints, folders of evaluations, or their evaluation-….json.
        out: the file; a report that is there is replaced as a whole.
        texts: show texts and volume ids in the examples of retrieval; not in the copy that goes to MLflow.
        maps: heat maps of each run; 0 for none.

    Raises:
        UserError: see `read_runs`; out-not-html, not-a-report (the file is there and is none), file-not-writable.
    """
    file = _checked(Path(out))
    found = read_runs([Path(run) for run in runs])
    differences = [differ(found[0], other) for other in found[1:]]
    pictures, left_out = _pictures(found, maps)
    of_texts: list[Texts | None] = [None] * len(found)
    if texts:
        for number, run in enumerate(found):
            of_texts[number], why = texts_of(run)
            left_out[number] += [f"Texts and ids of the examples are left out: {why}."] if why else []
    content = Content(found, differences, pictures, left_out)
    public = page(content, [None] * len(found))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(file) as aside:
            aside.write_text(page(content, of_texts) if texts else public, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}): choose another --out.",
            code="file-not-writable",
            field="--out",
            value=str(file),
        ) from error
    names = [run.name for run in found]
    said = [f"{name}: {line}" for name, lines in zip(names, left_out, strict=True) for line in lines]
    return Report(file, [*said, *_logged(found, public)])


def _checked(file: Path) -> Path:
    """Raises UserError: the file has another suffix, or is there and no report."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"A report is an HTML file, and {file} is not named like one: give --out NAME.html.",
            code="out-not-html",
            field="--out",
            value=str(file),
        )
    if file.exists() and not _is_report(file):
        raise UserError(
            f"{file} is there and is no report of brgsa: choose another --out.",
            code="not-a-report",
            field="--out",
            value=str(file),
        )
    return file


def _is_report(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as opened:
        return MARK in opened.read(HEAD)


def _pictures(runs: list[Evaluated], maps: int) -> tuple[list[list[Picture]], list[list[str]]]:
    """Each run's heat maps, and what is to be said where there are none."""
    if maps < 0:
        raise UserError(
            "--heatmaps is a number of pictures: give 0 or more.", code="below-zero", field="--heatmaps", value=maps
        )
    pictures: list[list[Picture]] = []
    left_out: list[list[str]] = []
    for run in runs:
        drawn, why = heat_maps(run, maps) if maps else ([], "none were asked for")
        pictures.append(drawn)
        left_out.append([f"Heat maps are left out: {why}."] if why else [])
        if run.scored is None:
            left_out[-1].append("Curves are left out: scores and labels by volume are not beside the table.")
    return pictures, left_out


def _logged(runs: list[Evaluated], html: str) -> list[str]:
    """Log the report to the first evaluation's run; what is to be said of it."""
    run_id = runs[0].told.get("mlflow_run_id")
    if not run_id:
        return []
    name = ARTIFACT if len(runs) == 1 else COMPARISON
    if tracking.add_text(run_id, html, name):
        return [f"Also {name} of its run in MLflow."]
    return [f"MLflow has no run {run_id[:8]} here: the report is this file alone."]
