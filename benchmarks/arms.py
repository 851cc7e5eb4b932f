"""Trainings side by side on one store of the phantom: what the benchmarks of losses and of summaries share.

Every arm is a list of settings over the preset `demo`, trained with the same budget and the same seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brgsa.files import read_json, write_json
from brgsa.labels import CT_RATE
from brgsa.phantom import write_tree
from brgsa.phantom.tree import LT_LABELS
from brgsa.volumes import Geometry
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.evaluation.result import EvaluationResult
from brgsa_platform.loading.volume_cache import VolumeCache, decode_once
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from brgsa_platform.summaries.summarize import summarize
from brgsa_platform.training.driver import TrainOptions, train

NAMES = CT_RATE + LT_LABELS
HELD_OUT = NAMES[1::2]
Measured = dict[str, dict[str, dict[str, float]]]  # arm → seed → figure


@dataclass(frozen=True)
class Budget:
    """What every arm gets: scans of the phantom, epochs, and the width of the vision tower (the demo's is 16)."""

    scans: int
    epochs: int
    width: int


@dataclass(frozen=True)
class Comparison:
    """What a benchmark sets side by side.

    Attributes:
        name: of the benchmark.
        what: a word for an arm.
        arms: arm → its settings.
        peer: the arm over which gains are.
        figures: those of `figures_of` that are compared.
        also: what the store needs beside the summaries `positives`.
    """

    name: str
    what: str
    arms: Mapping[str, Sequence[str]]
    peer: str
    figures: tuple[str, ...]
    also: Callable[[Path], None] = lambda store: None


def make(folder: Path, scans: int) -> Path:
    """The store that all of them train on."""
    store = folder / "store"
    if not (folder / "made").is_file():
        write_tree(folder / "phantom", scans, 0, workers=2)
        geometry = Geometry(spacing=(5.625, 5.625, 7.5), shape=(64, 64, 32), antialias=True)
        prepare(folder / "phantom", "ct-rate", store, PrepareOptions(geometry))
        summarize(store, ["positives"])
        (folder / "made").touch()
    return store


def configured(settings: Sequence[str], budget: Budget, seed: int) -> RunConfig:
    """The demo's model with an arm's settings; it trains in this process."""
    same = [f"model.vision.width={budget.width}", f"train.epochs={budget.epochs}", f"train.seed={seed}"]
    # One thread: on a busy machine two wait for each other.
    return load_config("demo", overrides=[*same, "train.workers=0", "train.threads=1", *settings])


def measure(store: Path, cache: VolumeCache, config: RunConfig, out: Path) -> dict[str, float]:
    """Train and evaluate once."""
    started = time.monotonic()
    trained = train(store, config, out=out, options=TrainOptions(cache=cache, quiet=True))
    seconds = time.monotonic() - started
    result = evaluate(trained.checkpoint, store, options=EvaluateOptions(resamples=20), out=out / "evaluation")
    last = trained.history[-1]
    learned = {name: last[f"train/{name}"] for name in ("temperature", "bias") if f"train/{name}" in last}
    return {**figures_of(result), "seconds": seconds, **learned}


def figures_of(result: EvaluationResult) -> dict[str, float]:
    """AUROC of the common, the rare, and the abnormalities in `HELD_OUT`."""
    held_out = [i for i in result.columns() if result.abnormalities[i].name in HELD_OUT]
    return {
        "common": result.means["common"]["auroc"].value,
        "rare": result.means["rare"]["auroc"].value,
        "held out": result.bootstrap.interval("auroc", held_out).value,
    }


def run(comparison: Comparison, folder: Path, budget: Budget, seeds: int, arms: Sequence[str]) -> Measured:
    """Measure each arm with each seed, one after the other, but for what `folder` holds already."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    file = folder / "measured.json"
    measured: Measured = read_json(file) if file.is_file() else {}
    with ray_session():
        store = make(folder, budget.scans)
        comparison.also(store)
        cache = decode_once(Store.open(store))
        for seed in range(seeds):
            for arm in arms:
                if str(seed) in measured.get(arm, {}):
                    continue
                out = folder / "runs" / f"{re.sub(r'[^a-z0-9+-]+', '-', arm)}-{seed}"
                found = measure(store, cache, configured(comparison.arms[arm], budget, seed), out)
                measured.setdefault(arm, {})[str(seed)] = found
                write_json(file, measured)
                print(arm, seed, {name: round(value, 3) for name, value in found.items()}, flush=True)
    return measured


def compared(
    measured: Mapping[str, Mapping[str, Mapping[str, float]]], comparison: Comparison
) -> dict[str, dict[str, list[float]]]:
    """Arm → figure → [mean, SD, gain over the peer, SD of the gain] over the seeds that both have; SDs with n - 1."""
    table: dict[str, dict[str, list[float]]] = {}
    of_peer = measured.get(comparison.peer, {})
    for arm, by_seed in measured.items():
        table[arm] = {}
        for figure in comparison.figures:
            values = np.array([found[figure] for found in by_seed.values()])
            gains = np.array([by_seed[seed][figure] - of_peer[seed][figure] for seed in by_seed if seed in of_peer])
            spreads = (values.mean(), _sd(values), gains.mean() if len(gains) else np.nan, _sd(gains))
            table[arm][figure] = [round(float(number), 4) for number in spreads]
    return table


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def show(measured: Measured, comparison: Comparison) -> None:
    """Print a row an arm, as Markdown."""
    print(f"| {comparison.what} | seeds | " + " | ".join(f"{name}, gain" for name in comparison.figures) + " | s |")
    print("|---|" + "---|" * (len(comparison.figures) + 2))
    for arm, of_figures in compared(measured, comparison).items():
        cells = [f"{m:.3f} ± {sd:.3f}, {gain:+.3f} ± {spread:.3f}" for m, sd, gain, spread in of_figures.values()]
        seconds = np.mean([found["seconds"] for found in measured[arm].values()])
        print(f"| {arm} | {len(measured[arm])} | {' | '.join(cells)} | {seconds:.0f} |")


def command(
    comparison: Comparison, description: str, defaults: Budget, option: str, arguments: Sequence[str] | None = None
) -> int:
    """The command line of a comparison; `option` chooses its arms."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(option, dest="arms", nargs="+", choices=comparison.arms, default=list(comparison.arms))
    parser.add_argument("--out", type=Path, help="keep store and results here, and go on with what is there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.out or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        budget = Budget(options.scans, options.epochs, options.width)
        measured = run(comparison, folder, budget, options.seeds, options.arms)
    show(measured, comparison)
    if options.json:
        figures: dict[str, Any] = {**asdict(budget), "measured": measured}
        table = compared(measured, comparison)
        ratios = {f"{arm}: {name}": row[2] for arm, of in table.items() for name, row in of.items()}
        print(json.dumps({"benchmark": comparison.name, "ratios": ratios, "figures": figures}))
    return 0
