"""What the platform costs a training step on a CPU: the whole path beside a bare PyTorch loop on tensors in memory.

    python benchmarks/train_step.py [--scans N] [--epochs E] [--repeats R] [--loader ray|torch] [--json]

Ours is `brgsa train` with one worker: phantom shards, read, decoded and cropped by Ray Data (or a torch DataLoader), a Ray
Train worker, the loop with its checkpoints, MLflow and metrics; volumes a second by the loop's own clock, without validation.
Bare is the same model, loss and optimiser in this process: the batches' floats and tokens lie in memory, nothing is read,
drawn, logged or saved. Both train on one thread. They take turns, R times; each first epoch does not count. The ratio is
that of the medians over all other epochs.
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

import numpy as np
import torch
from torch import nn

from brgsa.losses import brgsa_loss
from brgsa.phantom import write_tree
from brgsa.text import Tokens
from brgsa.volumes import Geometry
from brgsa.volumes.augment import centre_crop
from brgsa.volumes.intensity import unit_intensities
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading.batches import BatchSource, split_index
from brgsa_platform.loading.texts import codes_of, written_texts
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from brgsa_platform.summaries.summarize import summarize
from brgsa_platform.training.driver import TrainOptions, train
from brgsa_platform.training.state import TrainingState


def make(folder: Path, scans: int) -> Path:
    """A store of the phantom."""
    write_tree(folder / "phantom", scans, 0, workers=2)
    geometry = Geometry(spacing=(5.625, 5.625, 7.5), shape=(64, 64, 32), antialias=True)
    prepare(folder / "phantom", "ct-rate", folder / "store", PrepareOptions(geometry, validation_fraction=0.25))
    summarize(folder / "store", ["positives"])
    return folder / "store"


def config_of(epochs: int, loader: str) -> RunConfig:
    """The demo's model at half its width."""
    return load_config(
        "demo",
        overrides=[
            "model.vision.width=8",
            f"train={{epochs: {epochs}, workers: 1, threads: 1}}",
            f"data={{loader: {loader}, cpus: 1}}",
        ],
    )


def ours(store: Path, out: Path, config: RunConfig) -> list[float]:
    """Volumes a second of each epoch but the first, through the platform."""
    done = train(store, config, out=out, options=TrainOptions(quiet=True))
    return [float(entry["train/volumes_per_s"]) for entry in done.history[1:]]


class Bare:
    """A PyTorch loop as short as it can be, on batches that are ready."""

    def __init__(self, store_path: Path, run: Path, config: RunConfig) -> None:
        torch.manual_seed(0)
        state = TrainingState.new(config, run, 1, torch.device("cpu"))
        self.config, self.model, self.optimizer = config, state.model.train(), state.optimizer
        store = Store.open(store_path)
        rows = split_index(store, "train", config.data.style)
        reader = BatchSource(rows, config.model.vision.volume).reader()
        hu = np.stack([centre_crop(reader.volume(row), reader.crop) for row in range(len(rows))])
        # As many sentences as ours draws of a text on the mean: one.
        texts = [text.split(". ")[0] for text in written_texts(store, config.data.style, rows)]
        codes, size = torch.from_numpy(codes_of(texts)), config.train.batch_size
        floats = unit_intensities([torch.from_numpy(hu)], out=torch.empty(hu.shape))
        self.batches: list[tuple[torch.Tensor, Tokens, torch.Tensor, torch.Tensor]] = []
        for start in range(0, len(rows) - size + 1, size):
            some = slice(start, start + size)
            tokens = self.model.text.tokenize(texts[some])
            self.batches.append((floats[some].clone(), tokens, torch.from_numpy(rows.scans[some]), codes[some]))

    def epoch(self) -> float:
        """Volumes a second of one epoch."""
        started = time.perf_counter()
        for floats, tokens, scans, codes in self.batches:
            self.optimizer.zero_grad(set_to_none=True)
            volumes, texts = self.model(floats, tokens)
            loss = brgsa_loss(volumes, texts, scans, self.config.loss, codes).total
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
            self.optimizer.step()
        seconds = time.perf_counter() - started
        return len(self.batches) * self.config.train.batch_size / seconds


def measure(folder: Path, store: Path, config: RunConfig, repeats: int) -> dict[str, list[float]]:
    """Volumes a second of each epoch that counts, of both ways, which take turns."""
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    torch.set_num_threads(1)
    for repeat in range(repeats):
        run = folder / f"run-{repeat}"
        rates["ours"] += ours(store, run, config)
        bare = Bare(store, run, config)
        torch.set_flush_denormal(True)  # as in our training
        rates["bare"] += [bare.epoch() for _ in range(config.train.epochs)][1:]
        torch.set_flush_denormal(False)
        print(*(f"{way} {np.median(found):.1f} volumes/s" for way, found in rates.items()), flush=True)
    return rates


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scans", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loader", choices=("ray", "torch"), default="ray")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"

        with ray_session():
            store = make(folder, options.scans)
            rates = measure(folder, store, config_of(options.epochs, options.loader), options.repeats)
    medians = {way: float(np.median(found)) for way, found in rates.items()}
    ratio = medians["ours"] / medians["bare"]
    figures = {
        "loader": options.loader,
        **{f"{way}_volumes_per_s": rate for way, rate in medians.items()},
        **{f"{way}_least_to_most": [min(found), max(found)] for way, found in rates.items()},
    }
    print(f"ours {medians['ours']:.1f}, bare {medians['bare']:.1f} volumes/s: {ratio:.2f}")
    if options.json:
        print(json.dumps({"benchmark": "train_step", "ratios": {"vs_bare_torch": ratio}, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
