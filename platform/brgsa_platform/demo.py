"""`brgsa demo`: the whole way on synthetic CT, ending in three models side by side.

Plain CLIP on reports, plain CLIP on summaries, and BrgSA on summaries: so the table tells which half of the method brings what.
"""

from __future__ import annotations

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
from brgsa.files import write_json
from brgsa.metrics import Interval
from brgsa.phantom import write_tree
from brgsa.volumes import Geometry
from brgsa_platform.config import load_config
from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.evaluation.result import EvaluationResult, gain
from brgsa_platform.loading.volume_cache import decode_once
from brgsa_platform.runtime.console import Row, print_table, table
from brgsa_platform.runtime.plots import bars_figure, save
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.search.driver import tune
from brgsa_platform.search.result import SearchResult
from brgsa_platform.search.spec import SearchMethod, SearchOptions
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from brgsa_platform.summaries.summarize import summarize
from brgsa_platform.training.driver import TrainOptions, train

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


FULL = Size(scans=1400, epochs=7, trials=3, trial_epochs=2, resamples=5000)
QUICK = Size(scans=600, epochs=7, trials=2, trial_epochs=1, resamples=1000)


@dataclass(frozen=True)
class Arm:
    """One of the models side by side: a preset, and what it is in a word."""

    preset: str
    title: str


# From one to the next: reports (one to five sentences drawn) become summaries (one sentence drawn); then comes the bank.
ARMS = {
    "baseline": Arm("demo-clip", "CLIP on reports"),
    "clip_summaries": Arm("demo-clip-summaries", "CLIP on summaries"),
    "brgsa": Arm("demo", "BrgSA on summaries"),
}
GAINS = {
    "gain_summaries": ("clip_summaries", "baseline", "summaries (CLIP on summaries − CLIP on reports)"),
    "gain_bank": ("brgsa", "clip_summaries", "bank (BrgSA − CLIP on summaries)"),
    "gain": ("brgsa", "baseline", "both (BrgSA − CLIP on reports)"),
}


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
        _make_store(out, size, seed, seconds)
        cache = decode_once(Store.open(out / "store"))
        trained = {}
        for number, (name, arm) in enumerate(ARMS.items(), start=4):
            with _step(f"{number}/8 train {arm.title} (Ray Data, Ray Train)", seconds):
                config = load_config(arm.preset, overrides=[f"train.epochs={size.epochs}", f"train.seed={seed}"])
                options = TrainOptions(cache=cache)
                trained[name] = train(
                    out / "store", config, out=out / "runs" / name, preset=arm.preset, options=options
                )
        with _step("7/8 search: bank size, temperature, summary style (Tune, Optuna)", seconds):
            short = load_config("demo", overrides=[f"train.epochs={size.trial_epochs}", f"train.seed={seed}"])
            searched = tune(
                out / "store",
                short,
                [SPACE],
                SearchOptions(trials=size.trials, cache=cache),
                SearchMethod(seed=seed),
                folder=out / "searches" / SPACE,
                preset="demo",
            )
            _say(searched.summary())
        with _step("8/8 evaluate all three on the test split, which neither training nor search has seen", seconds):
            results = {
                name: evaluate(
                    run.checkpoint,
                    out / "store",
                    options=EvaluateOptions(resamples=size.resamples),
                    out=out / "evaluation" / name,
                    name=f"demo {name}",
                )
                for name, run in trained.items()
            }
    report = _report(results, searched, seconds, size, seed) | {"seconds": round(time.monotonic() - started, 1)}
    _write(out, results, report)
    _print_table(results, report)
    _say(
        f"{report['seconds']:.0f} s in all.   Picture: {out / 'demo.png'}   Figures: {out / 'demo.json'}\n"
        f"Open the runs in MLflow: {_command()} ui"
    )
    return report


def _make_store(out: Path, size: Size, seed: int, seconds: dict[str, float]) -> None:
    """Synthetic scans, a store of them, and their summaries."""
    title = "1/8 phantom: synthetic chest CT with reports, in CT-RATE's layout"
    with _step(title, seconds), progress(size.scans, "render scans") as advance:
        write_tree(out / "phantom", size.scans, seed, on_scan=advance)
    with _step("2/8 prepare: HU, one grid, Parquet shards (Ray Data)", seconds):
        _say(prepare(out / "phantom", "ct-rate", out / "store", PrepareOptions(GEOMETRY)).summary())
    with _step("3/8 summarize: reports to plain statements (Ray Data)", seconds):
        _say(summarize(out / "store", STYLES).summary())
    _show_summary(out / "store")


def _clear(out: Path) -> None:
    """Make the folder, and remove what an earlier demo left in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        strangers = [
            entry.name for entry in out.iterdir() if entry.name not in FILES and not entry.name.startswith(".")
        ]
        if strangers:
            raise UserError(
                f"{out} holds {strangers[0]}, which no demo wrote: choose another --out.",
                code="folder-taken",
                field="--out",
                value=strangers[0],
            )
        for name in FILES:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {out} cannot be written ({error.strerror}): choose another --out.",
            code="folder-not-writable",
            field="--out",
            value=str(out),
        ) from error


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
    results: dict[str, EvaluationResult], searched: SearchResult, seconds: dict[str, float], size: Size, seed: int
) -> dict[str, Any]:
    """What demo.json holds, but for the seconds in all."""
    report: dict[str, Any] = {name: _figures(result) for name, result in results.items()}
    for name, (better, worse, _) in GAINS.items():
        report[name] = _bounds(gain(results[better], results[worse]), "macro_auroc")
        report[name] |= _bounds(gain(results[better], results[worse], "rare"), "rare_auroc")
    report["search"] = {
        "best": {k: v for k, v in searched.best.items() if k != "reason"},
        "trials": len(searched.trials),
    }
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
        ARMS[name].title: {row.name: row.figures["auroc"] for row in result.abnormalities if row.measured}
        for name, result in results.items()
    }
    save(bars_figure(groups, title="Zero-shot AUROC on the demo's test split, 95 % intervals"), out / "demo.png")
    write_json(out / "demo.json", report)


def _print_table(results: dict[str, EvaluationResult], report: dict[str, Any]) -> None:
    """Print a row an abnormality, the means, the modality gaps, and what each half of the method brings."""
    rows: list[Row] = []
    by_abnormality = zip(*(result.abnormalities for result in results.values()), strict=True)
    for same in sorted(by_abnormality, key=lambda rows: rows[0].rare):
        if same[0].measured:
            name = f"{same[0].name} (rare)" if same[0].rare else same[0].name
            rows.append(Row([name, str(same[0].positives), *(_shown(row.figures["auroc"]) for row in same)]))
    rows[-1] = rows[-1]._replace(ends_section=True)
    for group in ("common", "rare"):
        means = [_shown(result.means[group]["auroc"]) for result in results.values()]
        rows.append(Row([f"mean of the {group}", "", *means], style="bold"))
    rows.append(Row(["modality gap", "", *(f"{report[name]['modality_gap']:.2f}" for name in results)]))
    heads = ["abnormality", "scans with it", *(ARMS[name].title for name in results)]
    numbers = range(1, len(heads))
    protocol = next(iter(results.values())).about["protocol"]
    title = f"Zero-shot diagnosis on the test split: AUROC (95 % interval), protocol {protocol}"
    print_table(table(heads, rows, title=title, right=numbers))
    gains = [
        Row([title, *(_shown_gain(report[name], figure) for figure in ("macro_auroc", "rare_auroc"))])
        for name, (_, _, title) in GAINS.items()
    ]
    title = "What each half brings: difference in mean AUROC (95 % interval, same resamples)"
    print_table(table(["", "common abnormalities", "rare ones"], gains, title=title, right=(1, 2)))


def _shown_gain(gained: dict[str, Any], figure: str) -> str:
    low, high = gained[f"{figure}_interval"]
    return f"{gained[figure]:+.3f} ({low:+.3f} to {high:+.3f})"


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
