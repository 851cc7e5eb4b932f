"""The product's training loop on one GPU at the paper's size, beside what `brgsa train --dry-run` predicts.

    python benchmarks/gpu_training.py [--arms NAME,…] [--results FOLDER] [--smoke] [--json]

Each arm is a `Trainer` of two epochs of STEPS steps: the loop, the copy stream, the step and the reading of losses are the
product's. The volumes are synthetic int16 crops in ordinary memory, the texts random words; the text tower is a BERT-base with
random weights. Nothing is downloaded, and no checkpoint is written. Needs torch, transformers, numpy, pyarrow, pydantic and
PyYAML alone, and ends within 4 minutes on an H100: an arm that would begin later than LAST_START seconds is left out.

Of the second epoch: `step_s`, by the loop's own clock; `device_step_s`, the median by the device's; `data_wait_s`, the mean
time in which the device has nothing to do between two steps. `peak_gib` stands beside `predicted_gib`. `waits` are the places
in one step where the host waits for the device. `--smoke` runs all of it at a small size on a CPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from card_results import options_of, write_result

from brgsa.text import train_tokenizer
from brgsa.volumes import Geometry
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading.loaders import Batch, Batches
from brgsa_platform.planning.budget import GIB, MATRIX_TFLOPS, budget_of
from brgsa_platform.store.store import HU_BINS, IngestBatch, Meta
from brgsa_platform.training.loop import Trainer, TrainingTask
from brgsa_platform.training.parallel.workers import WorkerContext
from brgsa_platform.training.run_folder import write_run

STEPS, EPOCHS = 8, 2
SPACING = (1.5, 1.5, 3.0)  # mm
LAST_START = 195.0  # seconds
MFU = 0.45  # of a step that computes nothing twice, from gpu.py
WORDS = [f"{a}{b}" for a in ("lung", "heart", "bone", "liver", "spleen") for b in ("al", "ic", "ous", "ine", "ular")]

COMPILED = "train.compile=true"
ARMS: dict[str, list[str]] = {
    "whole": [COMPILED],
    "checkpointing": [COMPILED, "train.checkpoint_activations=true"],
    "micro-16": [COMPILED, "train.micro_batch=16"],
    "micro-8": [COMPILED, "train.micro_batch=8"],
    "patch-dropout-0.5": [COMPILED, "model.vision.patch_dropout=0.5"],
    "float16": [COMPILED, "train.precision=16", "train.checkpoint_activations=true"],
}
SMOKE_ARMS = {
    name: [
        text.replace("micro_batch=16", "micro_batch=2").replace("micro_batch=8", "micro_batch=1") for text in settings
    ]
    for name, settings in ARMS.items()
}
AUGMENTATION = "data={style: report, scale: 0.1, shift: 20, noise: 20}"


class NoCheckpoints:
    """Writes nothing."""

    def within_epoch(self, state: Any) -> None:
        pass

    def end_epoch(self, state: Any, reference_scores: Any) -> None:
        pass


class SyntheticTrainer(Trainer):
    """A `Trainer` whose volumes come from memory, and which notes when its steps begin and end on the device."""

    def __init__(self, task: TrainingTask, workers: WorkerContext, volumes: list[np.ndarray]) -> None:
        super().__init__(task, workers)
        self.checkpoints = NoCheckpoints()
        self.volumes = volumes
        self.cuda = workers.device.type == "cuda"
        self.begins: list[Any] = []
        self.ends: list[Any] = []
        self.losses: list[float] = []
        self.waits: list[str] = []
        self.arrived = True

    def _batches(self, epochs: range) -> Batches:
        """The same two batches by turns."""
        size = self.config.train.batch_size
        for step, ct in zip(range(EPOCHS * self.steps), itertools.cycle(self.volumes), strict=False):
            yield Batch(np.arange(size) + size * (step % self.steps), [ct])

    def _fit(self, learn: Any, batches: Iterator[Any], epochs: range) -> None:
        super()._fit(learn, self._watched(batches), epochs)

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; one step of the first epoch is watched for waiting, and the end of each is noted."""
        for step, batch in enumerate(batches):
            with warnings.catch_warnings(record=self.cuda and step == self.steps // 2) as seen:
                if seen is not None:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                yield batch
                if seen is not None:
                    torch.cuda.set_sync_debug_mode("default")
                    found = [warning for warning in seen if "synchronizing" in str(warning.message)]
                    self.waits = [f"{Path(warning.filename).name}:{warning.lineno}" for warning in found]
            self.ends.append(self._now())

    def _step_input(self, rows: Any, volumes: Sequence[torch.Tensor]) -> Any:
        if len(self.begins) < len(self.volumes):
            sent = torch.from_numpy(self.volumes[len(self.begins)])
            self.arrived &= torch.equal(volumes[0].cpu(), sent)
        self.begins.append(self._now())
        return super()._step_input(rows, volumes)

    def _count(self, steps: Any, clock: Any) -> None:
        self.losses += [step.losses["loss"] for step in steps]
        super()._count(steps, clock)

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def figures(self) -> dict[str, Any]:
        """What the second epoch took."""
        if self.cuda:
            torch.cuda.synchronize()
        # The last step of all has no end: nothing asks for the batch after it.
        second = slice(self.steps, EPOCHS * self.steps - 1)
        steps = [self._seconds(begin, end) for begin, end in zip(self.begins[second], self.ends[second], strict=True)]
        idle = [
            self._seconds(end, begin)
            for end, begin in zip(self.ends[second], self.begins[self.steps + 1 :], strict=True)
        ]
        rate = self.state.progress.history[-1]["train/volumes_per_s"]
        return {
            "step_s": self.config.train.batch_size / rate,
            "volumes_per_s": rate,
            "device_step_s": statistics.median(steps),
            "data_wait_s": statistics.mean(idle),
            "waits": self.waits,
            "volumes_arrive_whole": self.arrived,
            "losses": [self.losses[0], self.losses[-1]],
        }

    def _seconds(self, a: Any, b: Any) -> float:
        return a.elapsed_time(b) / 1000 if self.cuda else b - a


def write_index(folder: Path, splits: Sequence[str], per_shard: int, shape: Sequence[int]) -> IngestBatch:
    """Write all of a store but its shards, and tell their names: a scan of one volume for each name of a split."""
    rows, rng = np.arange(len(splits)), np.random.default_rng(0)
    names = [f"v{row}" for row in rows]
    columns = {
        "volume_id": names,
        "scan_id": names,
        "patient_id": names,
        "split": list(splits),
        "report": [" ".join(rng.choice(WORDS, rng.integers(5, 120))) for _ in rows],
        "shard": rows // per_shard,
        "row_group": rows % per_shard,
        "labels": pa.array([None] * len(rows), pa.struct([("Nodule", pa.int8())])),
        "flags": pa.array([[]] * len(rows), pa.list_(pa.string())),
        "source_spacing": [list(SPACING)] * len(rows),
        "source_shape": [list(shape)] * len(rows),
        "hu": [[1] * HU_BINS] * len(rows),
    }
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "index.parquet")
    geometry = Geometry(SPACING, tuple(shape))
    batch = IngestBatch("manifest", len(rows), per_shard, 0, complete=True)
    meta = Meta({"geometry": geometry.to_dict()}, batches=(batch,), fingerprint="synthetic")
    (folder / "store.json").write_text(meta.to_json())
    return batch


def make_bert(folder: Path, smoke: bool) -> None:
    """A BERT-base with random weights, or a tiny one, as Hugging Face keeps it."""
    from transformers import BertConfig, BertModel

    tiny = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    torch.manual_seed(0)
    BertModel(BertConfig(**(tiny if smoke else {}))).save_pretrained(folder)
    train_tokenizer(WORDS * 2, 300).save_pretrained(folder)


def config_of(arm: str, bert: Path, smoke: bool) -> RunConfig:
    """An arm's configuration: the paper's but for what the arm says."""
    settings = [AUGMENTATION, f"train={{workers: 0, precision: auto, epochs: {EPOCHS}, log_every: 4}}"]
    settings += [f"model.text={{name: {bert}, layers_summed: 4}}", *(SMOKE_ARMS if smoke else ARMS)[arm]]
    if smoke:
        settings += ["train.compile=false", "train.batch_size=4"]
    return load_config("paper-smoke" if smoke else "paper", overrides=settings)


def run(arm: str, scratch: Path, volumes: list[np.ndarray], device: torch.device, smoke: bool) -> dict[str, Any]:
    """Figures of an arm."""
    from brgsa_platform.store.store import Store

    config, out = config_of(arm, scratch / "bert", smoke), scratch / arm
    budget = budget_of(config, on_gpu=device.type == "cuda")
    figures: dict[str, Any] = {"predicted_gib": budget.peak_gib, "predicted_parts": budget.memory}
    figures["predicted_step_s"] = budget.computed_flops / (MATRIX_TFLOPS * 1e12) / MFU
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    write_run(out, Store.open(scratch / "store"), config, "")
    task = TrainingTask(config, str(scratch / "store"), str(out), {}, "", "")
    try:
        trainer = SyntheticTrainer(task, WorkerContext(device=device), volumes)
        trainer.fit()
    except RuntimeError as error:  # out of memory too: the other arms are still worth their time
        return figures | {"failed": f"{type(error).__name__}: {error}"[:500]}
    figures |= trainer.figures()
    figures["mfu"] = budget.step_flops / figures["step_s"] / (MATRIX_TFLOPS * 1e12)
    if device.type == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        figures["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        figures["predicted_over_peak"] = figures["predicted_gib"] / figures["peak_gib"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options = options_of(parser, ARMS)

    started = time.perf_counter()
    device = torch.device("cpu") if options.smoke else torch.device("cuda", 0)
    card = "cpu" if options.smoke else torch.cuda.get_device_name()
    figures: dict[str, Any] = {"card": card, "torch": torch.__version__, "arms": {}}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        make_bert(scratch / "bert", options.smoke)
        config = config_of("whole", scratch / "bert", options.smoke)
        scans = STEPS * config.train.batch_size
        # Only the index is there, for nothing reads the volumes.
        write_index(scratch / "store", ["train"] * scans, scans, config.model.vision.volume)
        rng = np.random.default_rng(0)
        shape = (config.train.batch_size, *config.model.vision.volume)
        volumes = [rng.integers(-1000, 1000, shape, dtype=np.int16) for _ in range(2)]
        print(f"set up in {time.perf_counter() - started:.0f} s", flush=True)
        for arm in options.arms.split(","):
            if time.perf_counter() - started > LAST_START:
                figures["arms"][arm] = {"left_out": "no time"}
                continue
            begun = time.perf_counter()
            figures["arms"][arm] = found = run(arm, scratch, volumes, device, options.smoke)
            found["arm_s"] = time.perf_counter() - begun
            print(arm, json.dumps(found), flush=True)
            result = {"benchmark": "gpu_training", "figures": figures}
            if not options.smoke:
                write_result(options.results, result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
