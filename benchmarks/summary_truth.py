"""How true must a summary be, and which style serves best: the demo's model on one store of the phantom, several seeds.

    python benchmarks/summary_truth.py [--scans N] [--epochs N] [--width W] [--seeds S] [--arms NAME …] [--out DIR] [--json]

An arm is a summary style, or `positives` with a share of its statements corrupted: in equal parts lost, turned round ("There
is no …") and followed by one that is invented. AUROC on the test split, as a mean over the seeds with their standard
deviation; all arms see the same volumes for a seed. `--out` keeps the store and what was measured: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from losses import NAMES, Budget, Measured, _sd, make, measure

from brgsa.files import read_json, write_json
from brgsa.summaries import NOTHING_FOUND, statement
from brgsa.text import split_sentences
from brgsa_platform.config import load_config
from brgsa_platform.loading.volume_cache import decode_once
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.store.store import Store, summary_file
from brgsa_platform.summaries.summarize import summarize

STYLES = ("positives", "positives+negatives", "findings", "impression", "by-anatomy", "short", "report")
SHARES = (5, 10, 20)  # % of the statements
CORRUPTED = {f"positives, {share} % corrupted": share for share in SHARES}
ARMS = (*STYLES, *CORRUPTED)
PEER = "positives"
FIGURES = ("common", "rare")


def corrupted(summary: str, share: float, rng: np.random.Generator) -> str:
    """A summary of positives in which each statement is corrupted with this probability."""
    out = []
    for said in [] if summary == NOTHING_FOUND else split_sentences(summary):
        kind = rng.choice(["lost", "flipped", "invented"]) if rng.random() < share else ""
        if kind != "lost":
            out.append(said.replace("There is ", "There is no ") if kind == "flipped" else said)
        if kind == "invented":
            absent = [name for name in NAMES if statement(name).rstrip(".") not in summary]
            out.append(statement(str(rng.choice(absent))))
    return " ".join(out) or NOTHING_FOUND


def column(arm: str) -> str:
    """The store's column of an arm."""
    return f"corrupted-{CORRUPTED[arm]}" if arm in CORRUPTED else arm


def write_columns(store: Path) -> None:
    """The styles, and the corrupted positives; volumes with equal reports get equal summaries."""
    summarize(store, [style for style in STYLES if style != "report"])
    opened = Store.open(store)
    reports, positives = opened.texts("report"), opened.texts("positives")
    for arm, share in CORRUPTED.items():
        texts = {
            volume: corrupted(
                summary, share / 100, np.random.default_rng([share, zlib.crc32(reports[volume].encode())])
            )
            for volume, summary in positives.items()
        }
        file = store / summary_file(column(arm))
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"volume_id": list(texts), "summary": list(texts.values())}), file)


def run(folder: Path, budget: Budget, seeds: int, arms: Sequence[str]) -> Measured:
    """Measure each arm with each seed, one after the other, but for what `folder` holds already."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    file = folder / "measured.json"
    measured: Measured = read_json(file) if file.is_file() else {}
    with ray_session():
        store = make(folder, budget.scans)
        write_columns(store)
        cache = decode_once(Store.open(store))
        for seed in range(seeds):
            for arm in arms:
                if str(seed) in measured.get(arm, {}):
                    continue
                settings = [f"model.vision.width={budget.width}", f"train.epochs={budget.epochs}", f"train.seed={seed}"]
                settings += ["train.workers=0", "train.threads=1", f"data.style={column(arm)}"]
                out = folder / "runs" / f"{column(arm)}-{seed}"
                found = measure(store, cache, load_config("demo", overrides=settings), out)
                measured.setdefault(arm, {})[str(seed)] = found
                write_json(file, measured)
                print(arm, seed, {name: round(value, 3) for name, value in found.items()}, flush=True)
    return measured


def show(measured: Measured) -> dict[str, float]:
    """Print a row an arm, as Markdown; gives its gain in common AUROC over the peer."""
    print("| summaries | seeds | " + " | ".join(f"{figure}, gain" for figure in FIGURES) + " |")
    print("|---|" + "---|" * (len(FIGURES) + 1))
    gained = {}
    for arm, by_seed in measured.items():
        cells = []
        for figure in FIGURES:
            values = np.array([found[figure] for found in by_seed.values()])
            gains = np.array(
                [by_seed[s][figure] - measured[PEER][s][figure] for s in by_seed if s in measured.get(PEER, {})]
            )
            cells.append(f"{values.mean():.3f} ± {_sd(values):.3f}, {gains.mean():+.3f} ± {_sd(gains):.3f}")
            gained[f"{arm}: {figure}"] = round(float(gains.mean()), 4)
        print(f"| {arm} | {len(by_seed)} | {' | '.join(cells)} |")
    return gained


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scans", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, help="keep store and results here, and go on with what is there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.out or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        budget = Budget(options.scans, options.epochs, options.width)
        measured = run(folder, budget, options.seeds, options.arms)
    gained = show(measured)
    if options.json:
        figures: dict[str, Any] = {**asdict(budget), "measured": measured}
        print(json.dumps({"benchmark": "summary_truth", "ratios": gained, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
