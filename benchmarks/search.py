"""Whether searching with TPE and ASHA pays, and what a trial costs beyond its training.

    python benchmarks/search.py [--scans N] [--budget EPOCHS] [--seeds S] [--picture FILE] [--json]

On the phantom. First: the best validation AUROC against the epochs spent, TPE with ASHA beside random search without pruning,
the same space and budget, for several seeds. Then: the same points trained by `brgsa tune` and by plain Optuna in one process
with the same training function, and from trials of few and of more epochs what a trial costs beside its epochs.
One trial at a time in all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brgsa.phantom import write_tree
from brgsa.volumes import Geometry
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.search import study as studies
from brgsa_platform.search.driver import tune
from brgsa_platform.search.spaces import drawn_config
from brgsa_platform.search.spec import SearchMethod, SearchOptions, read_spec
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.summaries.summarize import summarize
from brgsa_platform.training.driver import TrainOptions, train

SPACES = ["cmki", "optim"]
WAYS = {"TPE + ASHA": ("tpe", "asha"), "random": ("random", "none")}
EPOCHS = 9  # of a whole trial: ASHA's rungs are 1, 3 and 9
STYLES = ["findings", "positives", "positives+negatives"]
SHORT, LONG = 1, 4  # epochs, between which a trial's fixed cost is told apart
POINTS = [{"model.bank.size": size, "loss.temperature": 0.07} for size in (64, 72, 80, 88, 96, 104)]
PLAIN_SPACE = """\
model.bank.size: {kind: int, low: 64, high: 128, why: sizes that take the same time}
loss.temperature: {kind: float, low: 0.05, high: 0.1, why: near the demo's}
"""
Curve = np.ndarray


def make(folder: Path, scans: int) -> Path:
    """The store that all of them search on."""
    write_tree(folder / "phantom", scans, 0, workers=2)
    geometry = Geometry(spacing=(5.625, 5.625, 7.5), shape=(64, 64, 32), antialias=True)
    prepare(folder / "phantom", "ct-rate", folder / "store", PrepareOptions(geometry, validation_fraction=0.25))
    summarize(folder / "store", STYLES)
    return folder / "store"


def base(epochs: int) -> RunConfig:
    """The demo's model, narrower; its bank lies outside the space, so no search begins with a configuration known as good."""
    return load_config("demo", overrides=["model.vision.width=8", "model.bank.size=16", f"train.epochs={epochs}"])


def study_of(folder: Path) -> Any:
    """A finished search's study."""
    spec = read_spec(folder)
    assert spec is not None
    return studies.open_study(folder.name, spec, studies.open_storage(folder, spec))


def curve(folder: Path, budget: int) -> Curve:
    """Best validation AUROC so far after each epoch spent."""
    scores: list[float] = []
    for trial in study_of(folder).get_trials():
        scores += trial.user_attrs.get("scores", [])
    best = np.maximum.accumulate(np.nan_to_num(np.array(scores), nan=0.0))
    return best[:budget]


def search_curves(store: Path, out: Path, budget: int, seeds: int) -> dict[str, list[Curve]]:
    """Curves by way, one a seed; the ways take turns."""
    curves: dict[str, list[Curve]] = {way: [] for way in WAYS}
    for seed in range(seeds):
        for way, (sampler, pruner) in WAYS.items():
            name = f"{sampler}-{seed}"
            options = SearchOptions(trials=None, epochs=budget, concurrent=1, checkpoints="none")
            method = SearchMethod(sampler=sampler, pruner=pruner, seed=seed)
            tune(store, base(EPOCHS), SPACES, options, method, folder=out / name)
            curves[way].append(curve(out / name, budget))
    return curves


def first_at(values: Curve, target: float) -> int | None:
    """Epochs spent until a curve first reached a value."""
    reached = np.flatnonzero(values >= target)
    return int(reached[0]) + 1 if len(reached) else None


def compare(curves: dict[str, list[Curve]]) -> tuple[dict[str, float], dict[str, Any]]:
    """How many times the epochs random search took to its last best, on the mean over seeds; and each seed's figures."""
    ours, random = (np.mean(curves[way], axis=0) for way in WAYS)
    target = float(random[-1])
    reached, needed = first_at(ours, target), first_at(random, target)
    assert needed is not None
    figures: dict[str, Any] = {
        "best_tpe_asha": [round(float(c[-1]), 4) for c in curves["TPE + ASHA"]],
        "best_random": [round(float(c[-1]), 4) for c in curves["random"]],
        "epochs_tpe_asha": reached or f"more than {len(ours)}",
        "epochs_random": needed,
    }
    return {"epochs_to_same_auroc_vs_random": round(needed / (reached or len(ours)), 2)}, figures


def seconds_a_trial(folder: Path) -> list[float]:
    """From the start of a trial to the start of the next, or to its own end; without the first, which starts processes."""
    trials = study_of(folder).get_trials()
    starts = [trial.datetime_start.timestamp() for trial in trials] + [trials[-1].datetime_complete.timestamp()]
    return list(np.diff(starts)[1:])


def searched(store: Path, out: Path, space: Path, epochs: int) -> list[float]:
    """Seconds of each trial through `brgsa tune`."""
    options = SearchOptions(trials=len(POINTS), concurrent=1, points=POINTS, checkpoints="none")
    tune(store, base(epochs), [str(space)], options, folder=out / f"fixed-{epochs}")
    return seconds_a_trial(out / f"fixed-{epochs}")


def plain_optuna(store: Path, out: Path, epochs: int) -> list[float]:
    """Seconds of each trial in a loop of Optuna's in this process."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config = base(epochs)
    config = config.model_copy(update={"train": config.train.model_copy(update={"workers": 0})})
    seconds: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        started = time.monotonic()
        values = {
            "model.bank.size": trial.suggest_int("model.bank.size", 64, 128),
            "loss.temperature": trial.suggest_float("loss.temperature", 0.05, 0.1),
        }

        def report(metrics: dict[str, Any]) -> None:
            trial.report(metrics["val/auroc"], metrics["epoch"])

        options = TrainOptions(on_epoch=report, quiet=True)
        run = train(store, drawn_config(config, values), out=out / f"plain-{trial.number}", options=options)
        seconds.append(time.monotonic() - started)
        return float(run.best["score"])

    study = optuna.create_study(direction="maximize")
    for point in POINTS:
        study.enqueue_trial(point)
    study.optimize(objective, n_trials=len(POINTS))
    return seconds[1:]


def fixed_cost(store: Path, out: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """What a trial costs beside its epochs, and trials an hour beside plain Optuna."""
    space = out / "near.yaml"
    space.write_text(PLAIN_SPACE)
    short, long = (float(np.median(searched(store, out, space, epochs))) for epochs in (SHORT, LONG))
    plain = float(np.median(plain_optuna(store, out, LONG)))
    epoch = (long - short) / (LONG - SHORT)
    figures = {
        "trial_fixed_s": round(short - SHORT * epoch, 2),
        "epoch_s": round(epoch, 2),
        "trials_per_hour": round(3600 / long, 1),
        "trials_per_hour_optuna": round(3600 / plain, 1),
        "epochs_a_trial": LONG,
    }
    return {"trials_per_hour_vs_optuna": round(plain / long, 2)}, figures


def draw(curves: dict[str, list[Curve]], file: Path) -> None:
    """The curves' means as lines, the seeds' as thin ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (way, found), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        spent = np.arange(1, len(found[0]) + 1)
        for one in found:
            axes.step(spent, one, where="post", color=colour, alpha=0.3, linewidth=1)
        axes.step(spent, np.mean(found, axis=0), where="post", color=colour, linewidth=2, label=way)
    axes.set_xlabel("epochs spent, all trials together")
    axes.set_ylabel("best validation AUROC so far")
    axes.legend(loc="lower right")
    aside = file.with_name(f".{file.name}")
    figure.savefig(aside, dpi=120, format="png")
    os.replace(aside, file)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=240)
    parser.add_argument("--budget", type=int, default=45, help="epochs of each search")
    parser.add_argument("--seeds", type=int, default=3, help="0: the cost of a trial only")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch, ray_session():
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        store, out = make(Path(scratch), options.scans), Path(scratch) / "searches"
        out.mkdir()
        ratios, figures = fixed_cost(store, out)
        if options.seeds:
            curves = search_curves(store, out, options.budget, options.seeds)
            more_ratios, more_figures = compare(curves)
            ratios, figures = ratios | more_ratios, figures | more_figures
            if options.picture:
                draw(curves, options.picture)
    for name, value in {**ratios, **figures}.items():
        print(f"{name}: {value}")
    if options.json:
        print(json.dumps({"benchmark": "search", "ratios": ratios, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
