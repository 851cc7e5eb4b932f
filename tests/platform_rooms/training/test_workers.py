"""Two training workers in two processes: what one refuses all refuse at once, and what they measure is what one would."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
import torch.distributed as dist
from ranks import free_port, run_ranks
from safetensors.torch import load_file

from brgsa.errors import UserError
from brgsa.model import BrgSA
from brgsa.volumes import decode
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading.batches import BatchSource, evaluation_batches
from brgsa_platform.loading.volume_cache import VolumeCache
from brgsa_platform.store.reader import encoded_volume
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection
from brgsa_platform.training import run_checkpoints
from brgsa_platform.training.driver import TrainOptions, checkpoint_record, train
from brgsa_platform.training.encoding import encode_split
from brgsa_platform.training.loop import TrainingTask, run_training
from brgsa_platform.training.parallel.workers import ALONE, WorkerContext
from brgsa_platform.training.run_folder import TOKENIZER, make_tokenizer, write_run
from brgsa_platform.training.state import TrainingState
from brgsa_platform.training.validation import Validation

pytestmark = pytest.mark.ray

SETTINGS = [
    "data={style: report, unit: volume, shuffle_buffer: 20}",
    "model.vision={name: cnn3d, volume: [16, 16, 8], width: 4, norm: batch}",
    "train={epochs: 1, batch_size: 4, threads: 1, workers: 0}",
]

VIT = ["model.vision={name: vit3d, patch: [4, 4, 4], width: 24, depth: 2}", "model.bank={init: kmeans, size: 8}"]
MODEL = "checkpoints/epoch-0001/model.safetensors"
LONGER = [*VIT, "data={sentences: 2, drawn: up_to}", "train={workers: 2, epochs: 3, keep: 3}"]  # of 12 steps each


@dataclass(frozen=True)
class OnDemand(VolumeCache):
    """Volumes decoded when they are asked for, in the process that asks: no Ray in the workers.

    Attributes:
        shards: by rank, the shard files that it reads.
    """

    shards: tuple[tuple[str, ...], ...] = ()

    def volume(self, shard: int, row_group: int) -> npt.NDArray[np.int16]:
        rank = dist.get_rank() if dist.is_initialized() else 0
        return decode(encoded_volume(self.shards[rank][shard], row_group))


def config(*more: str) -> RunConfig:
    return load_config("paper-smoke", overrides=[*SETTINGS, *more])


def task(store: Path, out: Path, settings: RunConfig, damaged: bool = False) -> TrainingTask:
    """A training in a new folder; `damaged` cuts the shards that rank 1 reads."""
    opened = Store.open(store)
    shards = cut = tuple(opened.shards())
    if damaged:
        (out / "cut").mkdir(parents=True)
        cut = tuple(str(out / "cut" / Path(shard).name) for shard in shards)
        for whole, path in zip(shards, cut, strict=True):
            Path(path).write_bytes(Path(whole).read_bytes()[:300])
    with tracking.run("train", name="two workers") as run:
        write_run(out, opened, settings, run.run_id)
    make_tokenizer(out, opened, settings)
    record = checkpoint_record(opened, settings)
    cache = OnDemand((), {}, (shards, cut))
    return TrainingTask(settings, opened.path, str(out), record, connection.tracking_uri(), run.run_id, cache)


def untrained(given: TrainingTask) -> BrgSA:
    """A model that tells volumes apart, on rank 1 with the running statistics of a worker that saw other volumes."""
    torch.manual_seed(0)
    settings = RunConfig.from_tree(given.config)
    model = TrainingState.new(settings, Path(given.out), 1, torch.device("cpu")).model
    rank = dist.get_rank() if dist.is_initialized() else 0
    model.train()
    volumes = torch.rand(8, 1, *settings.model.vision.volume, generator=torch.Generator().manual_seed(rank)) - rank
    for _ in range(20):
        model.embed_volumes(volumes)
    with torch.no_grad():
        model.project_volume.weight *= 10
    return model


def validated(given: TrainingTask, workers: WorkerContext) -> tuple[dict[str, float], npt.NDArray[np.float32]]:
    """Metrics of the untrained model on the validation split, and its embeddings there."""
    settings, store = RunConfig.from_tree(given.config), Store.open(given.store)
    validation = Validation.of(store, settings)
    assert validation is not None
    model = untrained(given)
    source = BatchSource(
        validation.rows,
        settings.model.vision.volume,
        rank=workers.rank,
        world=workers.world,
        cache=given.cache,
    )
    batches = evaluation_batches(source, batch_size=3)
    volumes = encode_split(model, validation.rows, batches, workers=workers).embeddings
    return validation.measure(model, volumes, settings.loss).metrics, volumes.plain.numpy()


def outcome(work: Callable[[], Any]) -> Any:
    """What work gives or refuses, and the seconds that it takes."""
    started = time.monotonic()
    try:
        result = work()
    except UserError as error:
        result = error
    return result, time.monotonic() - started


def one_refuses(workers: WorkerContext) -> str:
    if workers.rank == 1:
        raise UserError("Rank 1 cannot go on.", code="rank-1", field="f", value=(1, "a"))
    return "done"


def worker(rank: int, port: int, folder: str, tasks: dict[str, TrainingTask]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    workers = WorkerContext(rank, 2)
    results = {
        "refused": outcome(lambda: workers.together(lambda: one_refuses(workers))),
        "agreed": outcome(lambda: workers.together(lambda: 10 + rank)),
        "validated": outcome(lambda: validated(tasks["whole"], workers)),
        **{name: outcome(lambda given=given: run_training(given, workers)) for name, given in tasks.items()},
    }
    Path(f"{folder}/{rank}").write_bytes(pickle.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def tasks(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingTask]:
    folder = tmp_path_factory.mktemp("runs")
    too_large = config("model.bank={init: kmeans, size: 97}")  # 48 volumes and their texts are 96 embeddings
    return {
        "whole": task(pairs, folder / "whole", config("model.bank={init: kmeans, size: 8}")),
        "vit": task(pairs, folder / "vit", config(*VIT)),
        "shared out": task(
            pairs, folder / "shared-out", config(*VIT, "train={parallel: fsdp, workers: 2, log_every: 5}")
        ),
        "stopped": task(
            pairs, folder / "stopped", config(*VIT, "train={epochs: 5, stop_after: 1, workers: 2}", "optim.lr=1e-30")
        ),
        "damaged": task(pairs, folder / "damaged", config(), damaged=True),
        "undisturbed": task(pairs, folder / "undisturbed", config(*LONGER)),
        "too large": task(pairs, folder / "too-large", too_large),
    }


@pytest.fixture(scope="module")
def results(tasks: dict[str, TrainingTask], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of each task on each of two gloo workers."""
    folder = tmp_path_factory.mktemp("results")
    run_ranks(worker, free_port(), str(folder), tasks, world=2)
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(2)]


def test_what_one_refuses_all_refuse(results: list[dict[str, Any]]) -> None:
    for of_rank in results:
        error, _ = of_rank["refused"]
        assert (error.code, error.field, error.value) == ("rank-1", "f", (1, "a"))
    assert [of_rank["agreed"][0] for of_rank in results] == [10, 11]


def test_a_shard_that_one_cannot_read_stops_all(results: list[dict[str, Any]], tasks: dict[str, TrainingTask]) -> None:
    errors = [of_rank["damaged"][0] for of_rank in results]
    assert all(isinstance(error, UserError) for error in errors)
    assert str(errors[0]) == str(errors[1])
    assert str(Path(tasks["damaged"].out) / "cut") in str(errors[0])
    assert "\n" not in str(errors[0])


def test_a_bank_that_the_split_cannot_fill_stops_all(results: list[dict[str, Any]]) -> None:
    assert [of_rank["too large"][0].code for of_rank in results] == ["too-few-embeddings"] * 2


def test_a_refusal_takes_seconds(results: list[dict[str, Any]]) -> None:
    """Torch's own limit is half an hour; a whole training, just before on the same machine, took seconds."""
    for of_rank in results:
        _, training_seconds = of_rank["whole"]
        assert max(of_rank[name][1] for name in ("refused", "damaged", "too large")) < 10 * training_seconds


def test_two_workers_measure_what_one_does(results: list[dict[str, Any]], tasks: dict[str, TrainingTask]) -> None:
    """Their rows come back in the split's order, and both use the statistics of rank 0, which a checkpoint holds."""
    metrics, embeddings = validated(tasks["whole"], ALONE)
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
    assert distances[~np.eye(len(embeddings), dtype=bool)].min() > 0.01  # or their order made no difference
    for of_rank in results:
        (theirs, their_embeddings), _ = of_rank["validated"]
        np.testing.assert_allclose(their_embeddings, embeddings, atol=1e-5)
        assert theirs == pytest.approx(metrics, abs=1e-5)


def test_two_workers_train_and_agree(results: list[dict[str, Any]], tasks: dict[str, TrainingTask]) -> None:
    (history, _), (other, _) = (of_rank["whole"] for of_rank in results)
    assert [entry["epoch"] for entry in history] == [1]
    rates = {"train/volumes_per_s"}
    assert {k: v for k, v in history[0].items() if k not in rates} == {
        k: v for k, v in other[0].items() if k not in rates
    }
    assert np.isfinite(history[0]["val/loss"])
    assert (Path(tasks["whole"].out) / "checkpoints" / "best.json").is_file()
    assert (Path(tasks["whole"].out) / TOKENIZER).is_dir()


def test_two_workers_stop_early_together(results: list[dict[str, Any]]) -> None:
    """No epoch is better than the first, for the weights stay as they are."""
    assert [len(of_rank["stopped"][0]) for of_rank in results] == [2, 2]


def test_weights_that_are_shared_out_train_alike(results: list[dict[str, Any]], tasks: dict[str, TrainingTask]) -> None:
    """Validation and the checkpoint hold the whole model, though each worker trains a part of it."""
    for of_rank in results:
        history, of_ddp = of_rank["shared out"][0], of_rank["vit"][0]
        for name in ("train/loss", "val/loss"):
            assert history[0][name] == pytest.approx(of_ddp[0][name], rel=1e-3)
    names = [path.name for path in sorted((Path(tasks["shared out"].out) / "checkpoints").iterdir())]
    assert names == ["best.json", "epoch-0001"]
    shapes = [
        {name: weight.shape for name, weight in load_file(Path(tasks[name].out) / MODEL).items()}
        for name in ("vit", "shared out")
    ]
    assert shapes[0] == shapes[1]


def step_of(out: Path) -> int:
    """Of the run's newest checkpoint."""
    newest = run_checkpoints.latest(out)
    with contextlib.suppress(OSError):  # it has just been replaced
        return 0 if newest is None else int(json.loads((newest / "training.json").read_text())["step"])
    return 0


def ray_workers() -> set[int]:
    """Process ids of this process's Ray Train workers."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.cmdline()[0].startswith("ray::RayTrainWorker"):
                found.add(child.pid)
    return found


def when(over: threading.Event, is_so: Callable[[], bool]) -> bool:
    while not is_so():
        if over.wait(0.01):
            return False
    return True


def test_a_worker_is_told_to_end_and_another_one_dies(
    pairs: Path, results: list[dict[str, Any]], tasks: dict[str, TrainingTask], tmp_path: Path
) -> None:
    """SIGTERM to one of two of Ray Train's in the second epoch, SIGKILL to one in the third, which alone is a failure: to
    1e-5 the weights of the training that nothing happened to. Epochs that are whole are not trained again.
    """
    out, over = tmp_path / "run", threading.Event()
    told: list[int] = []
    killed: list[int] = []
    made_at: dict[int, int] = {}

    def look(epoch: int) -> int:
        return (run_checkpoints.folder_of(out, epoch) / "training.json").stat().st_mtime_ns

    def disturb() -> None:
        if not when(over, lambda: step_of(out) > 12):
            return
        first, made_at[1] = ray_workers(), look(1)
        told.append(max(first))
        os.kill(told[0], signal.SIGTERM)
        if not when(over, lambda: step_of(out) > 24 and len(ray_workers() - first) == 2):
            return
        made_at[2] = look(2)
        killed.append(max(ray_workers() - first))
        os.kill(killed[0], signal.SIGKILL)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    each_step = ["data={loader: torch, cpus: 2}", "train={checkpoint_minutes: 1e-9, log_every: 1, max_failures: 1}"]
    try:
        result = train(pairs, config(*LONGER, *each_step), out=out, options=TrainOptions(quiet=True))
    finally:
        over.set()
        disturber.join()
    assert told, "the training was over before a worker was told to end"
    assert killed, "the training was over before a worker was killed"
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert {epoch: look(epoch) for epoch in made_at} == made_at
    for epoch in (1, 2, 3):
        ours, theirs = (
            load_file(run_checkpoints.folder_of(run, epoch) / "model.safetensors")
            for run in (out, Path(tasks["undisturbed"].out))
        )
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-5)
