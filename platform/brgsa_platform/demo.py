"""`brgsa demo`: the whole way on synthetic CT, ending in the plain CLIP baseline and BrgSA side by side."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa.metrics import Interval
from brgsa.phantom import write_tree
from brgsa.volumes import Geometry
from brgsa_platform.config import load_config
from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.evaluation.tables import EvaluationResult, gain
from brgsa_platform.runtime.plots import bars_figure, save
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.search.driver import SearchResult, tune
from brgsa_platform.search.spec import SearchOptions
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from brgsa_platform.summaries.summarize import summarize
from brgsa_platform.training.driver import train

# Six millimetres: what the phantom renders is some voxels large, and an epoch is seconds on two cores.
GEOMETRY = Geometry(spacing=(5.625, 5.625, 7.5), shape=(64, 64, 32), antialias=True)
STYLES = ("positives", "findings", "positives+negatives")  # those that the search tries
SPACE = "cmki-small"
FILES = ("demo.json", "demo.png", "phantom", "store", "runs", "searches", "evaluation")


@dataclass(frozen=True)
class Size:
    """How large a demo is."""

    scans: int
    epochs: int
    trials: int
    trial_epochs: int
    resamples: int


FULL = Size(scans=1400, epochs=10, trials=3, trial_epochs=2, resamples=5000)
QUICK = Size(scans=600, epochs=8, trials=2, trial_epochs=1, resamples=1000)


def demo(out: Path, *, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run the demo in `out` and print its table; gives what demo.json holds.

    An `out` of an earlier demo is started anew, so that its seconds are those of the whole way.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    size = QUICK if quick else FULL
    out = out.absolute()
    _clear(out)
    started = time.monotonic()
    seconds: dict[str, float] = {}
    with ray_session():
        title = "1/7 phantom: synthetic chest CT with reports, in CT-RATE's layout"
        with _step(title, seconds), progress(size.scans, "render scans") as advance:
            write_tree(out / "phantom", size.scans, seed, on_scan=advance)
        with _step("2/7 prepare: HU, one grid, Parquet shards (Ray Data)", seconds):
            _say(prepare(out / "phantom", "ct-rate", out / "store", PrepareOptions(GEOMETRY)).summary())
        with _step("3/7 summarize: reports to plain statements (Ray Data)", seconds):
            _say(summarize(out / "store", STYLES).summary())
        _show_summary(out / "store")
        settings = [f"train.epochs={size.epochs}", f"train.seed={seed}"]
        with _step("4/7 train the plain CLIP baseline on reports as written (Ray Data, Ray Train)", seconds):
            baseline = train(
                out / "store",
                load_config("demo-clip", overrides=settings),
                out=out / "runs" / "baseline",
                preset="demo-clip",
            )
        with _step("5/7 train BrgSA on summaries (Ray Data, Ray Train)", seconds):
            brgsa = train(
                out / "store", load_config("demo", overrides=settings), out=out / "runs" / "brgsa", preset="demo"
            )
        with _step("6/7 search: bank size, temperature, summary style (Tune, Optuna)", seconds):
            short = load_config("demo", overrides=[f"train.epochs={size.trial_epochs}", f"train.seed={seed}"])
            options = SearchOptions(trials=size.trials)
            found = tune(out / "store", short, [SPACE], options, out=out / "searches", seed=seed, preset="demo")
            _say(found.summary())
        with _step("7/7 evaluate both on the test split, which neither training nor search has seen", seconds):
            results = {
                name: evaluate(
                    run.checkpoint,
                    out / "store",
                    options=EvaluateOptions(resamples=size.resamples),
                    out=out / "evaluation" / name,
                    name=f"demo {name}",
                )
                for name, run in (("baseline", baseline), ("brgsa", brgsa))
            }
    report = _report(results, found, seconds, time.monotonic() - started, size, seed)
    _write(out, results, report)
    _print_table(results, report, out)
    return report


def _clear(out: Path) -> None:
    """Make the folder, and remove what an earlier demo left in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        strangers = [
            entry.name for entry in out.iterdir() if entry.name not in FILES and not entry.name.startswith(".")
        ]
        if strangers:
            raise UserError(f"{out} holds {strangers[0]}, which no demo wrote: choose another --out.")
        for name in FILES:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"The folder {out} cannot be written ({error.strerror}): choose another --out.") from error


@contextmanager
def _step(title: str, seconds: dict[str, float]) -> Iterator[None]:
    _say(f"\n{title}")
    started = time.monotonic()
    yield
    seconds[re.split("[:(]", title)[0].strip()] = round(time.monotonic() - started, 1)


def _show_summary(path: Path) -> None:
    """One report beside its summary; the phantom's patients do not exist, so this may be shown."""
    store = Store.open(path)
    reports, summaries = store.texts("report"), store.texts("positives")
    volume = max(reports, key=lambda v: (summaries[v].count("."), v))
    _say(f'  a report: "{reports[volume][:220]} …"\n  its summary: "{summaries[volume]}"')


def _report(
    results: dict[str, EvaluationResult],
    found: SearchResult,
    seconds: dict[str, float],
    total: float,
    size: Size,
    seed: int,
) -> dict[str, Any]:
    report: dict[str, Any] = {name: _figures(result) for name, result in results.items()}
    report["gain"] = _bounds(gain(results["brgsa"], results["baseline"]), "macro_auroc")
    report["search"] = {"best": {k: v for k, v in found.best.items() if k != "reason"}, "trials": len(found.trials)}
    report["seconds"] = round(total, 1)
    report["seconds_each"] = seconds
    report["scans"], report["epochs"], report["seed"] = size.scans, size.epochs, seed
    return report


def _figures(result: EvaluationResult) -> dict[str, Any]:
    """A model's entry in demo.json: `macro_auroc` is the mean over the common abnormalities."""
    assert result.gap is not None
    after = result.gap.after
    return {
        **_bounds(result.means["common"]["auroc"], "macro_auroc"),
        **_bounds(result.means["rare"]["auroc"], "rare_auroc"),
        "modality_gap": result.gap.before if after is None else after,
        "modality_gap_before_cmki": result.gap.before,
        "mlflow_run": result.run_id,
    }


def _bounds(interval: Interval, name: str) -> dict[str, Any]:
    return {name: interval.value, f"{name}_interval": [interval.low, interval.high]}


def _write(out: Path, results: dict[str, EvaluationResult], report: dict[str, Any]) -> None:
    groups = {
        title: {row.name: row.figures["auroc"] for row in results[name].abnormalities if row.measured}
        for name, title in (("baseline", "CLIP on reports"), ("brgsa", "BrgSA on summaries"))
    }
    save(bars_figure(groups, title="Zero-shot AUROC on the demo's test split, 95 % intervals"), out / "demo.png")
    aside = out / f".demo.json.{os.getpid()}"
    aside.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(aside, out / "demo.json")


def _print_table(results: dict[str, EvaluationResult], report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Zero-shot diagnosis on the test split: AUROC (95 % interval)")
    for column in ("abnormality", "scans with it", "CLIP on reports", "BrgSA on summaries"):
        table.add_column(column, justify="left" if column == "abnormality" else "right")
    both = list(zip(results["baseline"].abnormalities, results["brgsa"].abnormalities, strict=True))
    for plain, bridged in sorted(both, key=lambda pair: pair[1].rare):
        if bridged.measured:
            name = f"{bridged.name} (rare)" if bridged.rare else bridged.name
            shown = [_shown(row.figures["auroc"]) for row in (plain, bridged)]
            table.add_row(name, str(bridged.positives), *shown)
    table.add_section()
    for group in ("common", "rare"):
        shown = [_shown(results[name].means[group]["auroc"]) for name in ("baseline", "brgsa")]
        table.add_row(f"mean of the {group}", "", *shown, style="bold")
    gaps = [f"{report[name]['modality_gap']:.2f}" for name in ("baseline", "brgsa")]
    table.add_row("modality gap", "", *gaps)
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    low, high = report["gain"]["macro_auroc_interval"]
    _say(
        f"BrgSA − CLIP, common abnormalities: {report['gain']['macro_auroc']:+.3f} ({low:+.3f} to {high:+.3f}). "
        f"{report['seconds']:.0f} s in all.\n"
        f"Picture: {out / 'demo.png'}   Figures: {out / 'demo.json'}\n"
        f"Open the runs in MLflow: {_command()} ui"
    )


def _command() -> str:
    """`brgsa` as this user can type it: by its path where its environment is not active."""
    here = Path(sys.argv[0])
    on_path = shutil.which("brgsa")
    if here.name != "brgsa" or (on_path and Path(on_path).resolve() == here.resolve()):
        return "brgsa"
    return str(here.relative_to(Path.cwd())) if here.is_absolute() and here.is_relative_to(Path.cwd()) else str(here)


def _shown(interval: Interval) -> str:
    return f"{interval.value:.2f} ({interval.low:.2f}–{interval.high:.2f})"


def _say(text: str) -> None:
    print(text, flush=True)
