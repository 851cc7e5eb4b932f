"""What each loss brings: the demo's model on one store of the phantom, the same epochs, several training seeds.

    python benchmarks/losses.py [--scans N] [--epochs N] [--width W] [--seeds S] [--losses NAME …] [--out DIR] [--json]

AUROC on the test split, as a mean over the seeds with their standard deviation: of the common abnormalities, of the rare ones,
and of every second one (`held out`), on which `labels-half` is not supervised. All arms see the same volumes in the same order
for a seed; the peer is the paper's loss. `--out` keeps the store and what was measured: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
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
PEER = "info_nce"
LEARNED = ["loss.learn_temperature=true"]
SIGMOID = ["loss.contrast=sigmoid", "loss.temperature=0.1", "loss.learn_bias=true", *LEARNED]
OF_THE_BATCH = "loss.bias=-2.7"  # -log(16 - 1)
LABELS = ["loss.supervised=1"]
# Over the preset `demo`: InfoNCE at temperature 0.05, equal texts ignored.
LOSSES: dict[str, list[str]] = {
    PEER: [],
    "same text negatives": ["loss.same_text=negatives"],
    "same text positives": ["loss.same_text=positives"],
    "learned temperature": LEARNED,
    "sigmoid": [*SIGMOID, OF_THE_BATCH],
    "sigmoid, bias -10": [*SIGMOID, "loss.bias=-10"],  # SigLIP's
    "labels": LABELS,
    "labels by rules": [*LABELS, "loss.labels=rules"],
    "labels-half": [*LABELS, f"loss.abnormalities={json.dumps(NAMES[0::2])}"],
}
FIGURES = ("common", "rare", "held out")
Measured = dict[str, dict[str, dict[str, float]]]  # loss → seed → figure


@dataclass(frozen=True)
class Budget:
    """What every loss gets: scans of the phantom, epochs, and the width of the vision tower (the demo's is 16)."""

    scans: int
    epochs: int
    width: int


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


def configured(loss: str, budget: Budget, seed: int) -> RunConfig:
    """The demo's model with a loss; it trains in this process."""
    settings = [f"model.vision.width={budget.width}", f"train.epochs={budget.epochs}", f"train.seed={seed}"]
    # One thread: on a busy machine two wait for each other.
    return load_config("demo", overrides=[*settings, "train.workers=0", "train.threads=1", *LOSSES[loss]])


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
    """The figures of a table."""
    held_out = [i for i in result.columns() if result.abnormalities[i].name in HELD_OUT]
    return {
        "common": result.means["common"]["auroc"].value,
        "rare": result.means["rare"]["auroc"].value,
        "held out": result.bootstrap.interval("auroc", held_out).value,
    }


def compared(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Loss → figure → [mean, SD, gain over the peer, SD of the gain] over the seeds that both have; SDs with n - 1."""
    table: dict[str, dict[str, list[float]]] = {}
    for loss, by_seed in measured.items():
        table[loss] = {}
        for figure in FIGURES:
            values = np.array([found[figure] for found in by_seed.values()])
            both = [seed for seed in by_seed if seed in measured.get(PEER, {})]
            gains = np.array([by_seed[seed][figure] - measured[PEER][seed][figure] for seed in both])
            spreads = (values.mean(), _sd(values), gains.mean() if len(gains) else np.nan, _sd(gains))
            table[loss][figure] = [round(float(number), 4) for number in spreads]
    return table


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def show(measured: Measured) -> None:
    """Print a row a loss, as Markdown."""
    print("| loss | seeds | " + " | ".join(f"{figure}, gain" for figure in FIGURES) + " | s |")
    print("|---|" + "---|" * (len(FIGURES) + 2))
    for loss, of_figures in compared(measured).items():
        cells = [f"{m:.3f} ± {sd:.3f}, {gain:+.3f} ± {spread:.3f}" for m, sd, gain, spread in of_figures.values()]
        seconds = np.mean([found["seconds"] for found in measured[loss].values()])
        print(f"| {loss} | {len(measured[loss])} | {' | '.join(cells)} | {seconds:.0f} |")


def run(folder: Path, budget: Budget, seeds: int, losses: Sequence[str]) -> Measured:
    """Measure each loss with each seed, one after the other, but for what `folder` holds already."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    file = folder / "measured.json"
    measured: Measured = read_json(file) if file.is_file() else {}
    with ray_session():
        store = make(folder, budget.scans)
        cache = decode_once(Store.open(store))
        for seed in range(seeds):
            for loss in losses:
                if str(seed) in measured.get(loss, {}):
                    continue
                out = folder / "runs" / f"{loss.replace(' ', '-')}-{seed}"
                found = measure(store, cache, configured(loss, budget, seed), out)
                measured.setdefault(loss, {})[str(seed)] = found
                write_json(file, measured)
                print(loss, seed, {name: round(value, 3) for name, value in found.items()}, flush=True)
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--out", type=Path, help="keep store and results here, and go on with what is there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.out or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        budget = Budget(options.scans, options.epochs, options.width)
        measured = run(folder, budget, options.seeds, options.losses)
    show(measured)
    if options.json:
        figures: dict[str, Any] = {**asdict(budget), "measured": measured}
        ratios = {f"{loss}: {name}": row[2] for loss, of in compared(measured).items() for name, row in of.items()}
        print(json.dumps({"benchmark": "losses", "ratios": ratios, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
