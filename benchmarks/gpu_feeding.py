"""Whether the data path keeps one GPU busy at the paper's size: whole trainings from a store, by each loader, and from memory.

    python benchmarks/gpu_feeding.py [--volumes N] [--arms memory,torch,ray] [--results FOLDER] [--smoke] [--json]

Each arm is `brgsa train` as users run it: a Ray Train worker with the GPU, the loop, validation, checkpoints, MLflow. The arms
differ in where volumes come from: `torch` and `ray` read, decompress and crop them from shards, on all other CPUs; `memory`
takes views of volumes that were decoded beforehand, so it is what training alone reaches. The model is the paper's, compiled,
in bfloat16.

The store has N CT-like volumes of 256×256×128: DISTINCT of the phantom's with scanner noise, each many times. It was just
written, so it is read from the page cache, not from a disk. Texts are random words, the text tower is a BERT-base with random
weights. An arm takes some 100 s on an H200.

Of the epochs after the first: volumes a second, by the loop's own clock, and how long a step waits for its volumes. The first
batches of an epoch may have been read while the one before was validated; an epoch has many times as many. `--smoke` runs all
of it at a small size on a CPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from card_results import options_of, write_result
from data_path import ct_like, write_shard
from gpu_training import make_bert, write_index

from brgsa.volumes import encode
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading.volume_cache import decode_once
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.store.store import Store
from brgsa_platform.tracking.connection import client
from brgsa_platform.training.driver import TrainOptions, train

EPOCHS = 3
DISTINCT, A_SHARD = 32, 64
ARMS = ("memory", "torch", "ray")
FULL, SMALL = (256, 256, 128), (36, 36, 20)


def make_store(path: Path, volumes: int, validation: int, shape: tuple[int, int, int]) -> None:
    """Write a store of `volumes` training and `validation` other volumes on a grid of `shape`."""
    with ProcessPoolExecutor() as pool:
        frames = list(pool.map(_frame, range(DISTINCT), [shape] * DISTINCT))
    splits = ["train"] * volumes + ["validation"] * validation
    batch = write_index(path, splits, A_SHARD, shape)
    (path / "volumes").mkdir()
    for number, name in enumerate(batch.shards):
        rows = range(number * A_SHARD, min((number + 1) * A_SHARD, len(splits)))
        write_shard(path / "volumes" / name, [frames[row % DISTINCT] for row in rows])


def _frame(number: int, shape: tuple[int, int, int]) -> bytes:
    return encode(ct_like(number, shape))


def config_of(arm: str, bert: Path, smoke: bool) -> RunConfig:
    """The paper's configuration, as fast as one card takes it; `memory` asks no loader, whichever is named."""
    settings = [
        f"data={{style: report, unit: volume, loader: {'torch' if arm == 'memory' else arm}}}",
        f"train={{workers: 1, gpu: {str(not smoke).lower()}, precision: auto, epochs: {EPOCHS}, log_every: 2}}",
        f"model.text={{name: {bert}, layers_summed: 4}}",
        *(["train.batch_size=4"] if smoke else ["train.compile=true"]),
    ]
    return load_config("paper-smoke" if smoke else "paper", overrides=settings)


def run(arm: str, scratch: Path, smoke: bool) -> dict[str, Any]:
    """Figures of an arm."""
    store, started = scratch / "store", time.perf_counter()
    cache = decode_once(Store.open(store)) if arm == "memory" else None
    if arm == "memory" and cache is None:
        return {"left_out": "Ray's object store has no room for the decoded volumes"}
    done = train(
        store, config_of(arm, scratch / "bert", smoke), out=scratch / arm, options=TrainOptions(cache=cache, quiet=True)
    )
    points = client().get_metric_history(done.run_id, "step/data_s")
    first_epoch = points[-1].step / EPOCHS
    return {
        "volumes_per_s": statistics.median(epoch["train/volumes_per_s"] for epoch in done.history[1:]),
        "each_epoch": [epoch["train/volumes_per_s"] for epoch in done.history],
        "data_s": statistics.mean(point.value for point in points if point.step > first_epoch),
        "val_loss": done.history[-1]["val/loss"],
        "arm_s": time.perf_counter() - started,
    }


def ratios_of(arms: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What each loader reaches of the rate from memory."""
    rates = {name: figures["volumes_per_s"] for name, figures in arms.items() if "volumes_per_s" in figures}
    memory = rates.pop("memory", None)
    return {f"{name}_vs_memory": rate / memory for name, rate in rates.items()} if memory else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--volumes", type=int, default=960, help="training volumes in the store (default 960)")
    options = options_of(parser, ARMS)

    card = "cpu" if options.smoke else torch.cuda.get_device_name()
    figures: dict[str, Any] = {"card": card, "torch": torch.__version__, "cpus": os.cpu_count(), "arms": {}}
    result: dict[str, Any] = {"benchmark": "gpu_feeding", "ratios": {}, "figures": figures}
    with tempfile.TemporaryDirectory() as folder:
        scratch, started = Path(folder), time.perf_counter()
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch / 'mlflow.db'}"
        make_bert(scratch / "bert", options.smoke)
        volumes, validation, shape = (24, 8, SMALL) if options.smoke else (options.volumes, 64, FULL)
        make_store(scratch / "store", volumes, validation, shape)
        print(f"store made in {time.perf_counter() - started:.0f} s", flush=True)
        with ray_session():
            for arm in options.arms.split(","):
                figures["arms"][arm] = run(arm, scratch, options.smoke)
                print(arm, json.dumps(figures["arms"][arm]), flush=True)
                result["ratios"] = ratios_of(figures["arms"])
                if not options.smoke:
                    write_result(options.results, result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
