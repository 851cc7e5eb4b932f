"""`brgsa train`: the driver of a Ray Train run, which can be killed at any moment and started again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brgsa import zeroshot
from brgsa.errors import UserError
from brgsa.volumes import transforms
from brgsa_platform.config import RunConfig
from brgsa_platform.runtime import files
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import cluster_cpus, nodes_for, ray_session
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import client as tracking
from brgsa_platform.training import checkpoints
from brgsa_platform.training.loaders import data_cpus
from brgsa_platform.training.order import steps_per_epoch

if TYPE_CHECKING:
    from brgsa_platform.training.loop import Job
    from brgsa_platform.training.volume_cache import VolumeCache

# A resumed run may differ in these and is still the same training.
FREE_TO_CHANGE = frozenset(
    {
        *(
            f"train.{key}"
            for key in ("epochs", "workers", "gpu", "threads", "keep", "max_failures", "checkpoint_minutes")
        ),
        *(f"data.{key}" for key in ("loader", "cpus", "object_store_share")),
    }
)
CONTROLLER_FAILURES = 3  # of Ray Train's own controller (a start-up that fails), which it would retry for ever


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its folder, best checkpoint, MLflow run and one entry of metrics an epoch."""

    out: Path
    checkpoint: Path
    run_id: str
    history: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        return max(self.history, key=lambda entry: (entry["score"], entry["epoch"]))


def default_out(store: Store, config: RunConfig, preset: str | None) -> Path:
    """runs/NAME-HASH, the same for the same store and configuration: the same command goes on with its run."""
    text = json.dumps([config.to_dict(), store.fingerprint], sort_keys=True)
    return Path("runs") / f"{preset or 'train'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def train(
    store_path: Path | str,
    config: RunConfig,
    *,
    out: Path | None = None,
    preset: str | None = None,
    parent_run: str | None = None,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda metrics: None,
    gpu_share: float | None = None,
    cache: VolumeCache | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train a model on a store; where `out` holds an unfinished run of the same configuration, go on with it.

    Args:
        out: the run's folder; default `default_out`.
        preset: name for the MLflow tag and the default folder.
        parent_run: MLflow run id of the search that this trial belongs to.
        tags: more of them for the MLflow run.
        on_epoch: called with each epoch's metrics; needs `train.workers` 0 (a loop in this process).
        gpu_share: GPUs of each training worker, a fraction too; default one where `train.gpu` says so.
        cache: the store's volumes, decoded beforehand.
        quiet: no progress.

    Raises:
        UserError: the store, the configuration and the cluster do not fit together; nothing was started.
    """
    from brgsa_platform.training.loop import Job

    store = Store.open(store_path)
    out = (out or default_out(store, config, preset)).absolute()
    check_fit(store, config)
    with ray_session():
        if config.train.workers:
            check_resources(config)
        run_id = _previous_run(out, store, config)
        with tracking.run(
            "trial" if parent_run else "train",
            name=name or out.name,
            params=config.to_dict(),
            tags={"brgsa.preset": preset or "", "brgsa.data": store.fingerprint, "brgsa.out": out.name, **(tags or {})},
            parent=parent_run,
            run_id=run_id,
        ) as run:
            _write_run(out, store, config, run.run_id)
            _make_tokenizer(out, store, config)
            job = Job(
                config=config.to_dict(),
                store=store.path,
                out=str(out),
                run=checkpoint_record(store, config),
                tracking_uri=tracking.tracking_uri(),
                run_id=run.run_id,
                cache=cache,
            )
            with contextlib.nullcontext() if quiet else _watch(out, store, config):
                history = _fit(out, config, job, on_epoch, gpu_share)
            best = max(history, key=checkpoints.merit)
            if "val/auroc" in best:
                run.log_metrics({"best/auroc": best["val/auroc"], "best/epoch": best["epoch"]}, step=best["epoch"])
    (out / "progress.json").unlink(missing_ok=True)
    return TrainResult(out, checkpoints.resolve(out), run.run_id, history)


def _fit(
    out: Path, config: RunConfig, job: Job, on_epoch: Callable[[dict[str, Any]], None], gpu_share: float | None
) -> list[dict[str, Any]]:
    """Run the loop where the configuration says: in Ray Train's workers, or in this process."""
    from brgsa_platform.training.loop import train_here

    newest = checkpoints.latest(out)
    if newest is not None:
        done: list[dict[str, Any]] = files.read_json(newest / "training.json")["history"]
        if len(done) >= config.train.epochs:
            return done
    returned = _fit_on_workers(out, config, job, gpu_share) if config.train.workers else train_here(job, on_epoch)
    if "refused" in returned:
        raise UserError(returned["refused"])
    history: list[dict[str, Any]] = returned["history"]
    return history


def _fit_on_workers(out: Path, config: RunConfig, job: Job, gpu_share: float | None) -> dict[str, Any]:
    from ray.train import FailureConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    from brgsa_platform.training.loop import train_worker

    # Ray Train would go on with its own record of an earlier driver's run; ours, the checkpoints, is the one to follow.
    shutil.rmtree(out / "ray", ignore_errors=True)
    failures: Any = FailureConfig(max_failures=config.train.max_failures, controller_failure_limit=CONTROLLER_FAILURES)  # type: ignore[call-arg, unused-ignore]
    trainer: Any = TorchTrainer(
        train_worker,  # type: ignore[arg-type, unused-ignore]
        train_loop_config={"job": job},
        scaling_config=_scaling(config, gpu_share),
        run_config=RayRunConfig(
            name="ray", storage_path=str(out), failure_config=failures, callbacks=_callbacks_within_a_search()
        ),
    )
    returned: dict[str, Any] = trainer.fit().return_value
    return returned


def _scaling(config: RunConfig, gpu_share: float | None) -> Any:
    from ray.train import ScalingConfig

    where: dict[str, Any] = {"num_workers": config.train.workers, "label_selector": nodes_for("training") or None}
    if gpu_share and gpu_share != 1:
        return ScalingConfig(**where, use_gpu=True, resources_per_worker={"CPU": 1, "GPU": gpu_share})
    return ScalingConfig(**where, use_gpu=_use_gpu(config))


def _callbacks_within_a_search() -> list[Any]:
    """What takes the workers' reports on to Tune, where this training is a trial."""
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.trainable.trainable_fn_utils import _in_tune_session

    return [TuneReportCallback()] if _in_tune_session() else []


def checkpoint_record(store: Store, config: RunConfig) -> dict[str, Any]:
    """What a checkpoint's run.json says: enough to prepare a scan as the training's were, and to repeat the run."""
    return {
        "config": config.to_dict(),
        "data": {
            "geometry": store.geometry.to_dict(),
            "crop": list(config.model.vision.volume),
            "style": config.data.style,
            "fingerprint": store.fingerprint,
        },
        "labels": list(store.labels),
        "commit": tracking.git_commit(),
    }


def check_fit(store: Store, config: RunConfig) -> None:
    """Refuse a configuration that this store cannot serve, before anything starts."""
    crop, shape = config.model.vision.volume, store.geometry.shape
    if any(want > have for want, have in zip(crop, shape, strict=True)):
        raise UserError(
            f"model.vision.volume {tuple(crop)} is larger than the volumes of {store.path}, {tuple(shape)}: choose a smaller "
            "one or prepare the store with a larger --shape."
        )
    store.texts(config.data.style)  # refuses a style that has not been computed
    _steps(store, config)  # refuses a split too small for a batch
    if config.data.transforms:
        transforms.check([spec.model_dump() for spec in config.data.transforms], crop)


def _steps(store: Store, config: RunConfig) -> int:
    """Steps of an epoch."""
    index = store.index(["split", "scan_id"])
    scans = np.array(index["scan_id"].to_pylist())[np.array(index["split"].to_pylist()) == "train"]
    return steps_per_epoch(scans, config.train.batch_size)


def check_resources(config: RunConfig) -> None:
    """Refuse a run that would wait for ever: each worker needs a CPU (and a GPU), and another for its data tasks."""
    import ray

    workers = config.train.workers
    data = data_cpus(config.data, workers)
    if config.data.loader == "torch":  # its processes are the workers' own, of which Ray does not know
        room = cluster_cpus("training")
        if room < workers:
            raise UserError(
                f"train.workers={workers} needs as many CPUs and the cluster has {room:.0f} for training: lower train.workers.",
                code="too-few-cpus",
                field="train.workers",
                value=workers,
            )
    elif nodes_for("data"):  # they do nothing else
        room, mine = cluster_cpus("training"), cluster_cpus("data")
        if room < workers or not workers <= data <= mine:
            raise UserError(
                f"train.workers={workers} needs as many CPUs of training nodes and of data nodes, data.cpus at most the "
                f"latter; the cluster has {room:.0f} and {mine:.0f}: lower train.workers or data.cpus, or add nodes."
            )
    else:
        cpus = cluster_cpus()
        # A data task keeps its CPU while its worker waits for another one, whose data must not wait for that same CPU.
        if cpus < 2 * workers:
            raise UserError(
                f"train.workers={workers} needs {2 * workers} CPUs (one a worker, one for the data of each) and the cluster "
                f"has {cpus:.0f}: lower train.workers or join a larger cluster with RAY_ADDRESS."
            )
        if not workers <= data <= cpus - workers:
            raise UserError(
                f"data.cpus={data:g} must be between {workers}, one for each of train.workers, and the "
                f"{cpus - workers:.0f} CPUs that they leave free."
            )
    gpus = ray.cluster_resources().get("GPU", 0)
    if _use_gpu(config) and gpus < workers:
        raise UserError(
            f"train.workers={workers} needs as many GPUs and the cluster has {gpus:.0f}: lower train.workers."
        )


def _use_gpu(config: RunConfig) -> bool:
    import ray

    if config.train.gpu == "auto":
        return config.train.workers > 0 and ray.cluster_resources().get("GPU", 0) >= max(1, config.train.workers)
    return bool(config.train.gpu)


def _previous_run(out: Path, store: Store, config: RunConfig) -> str | None:
    """MLflow run id of an unfinished run in `out`, if it is a run of this configuration on this data."""
    file = out / "run.json"
    if not file.is_file():
        return None
    before = files.read_json(file)
    was, now = tracking.flatten(before["config"]), tracking.flatten(config.to_dict())
    changed = sorted(
        key for key in was.keys() | now.keys() if was.get(key) != now.get(key) and key not in FREE_TO_CHANGE
    )
    if changed:
        key = changed[0]
        raise UserError(
            f"{out} holds a run of another configuration ({key} was {was.get(key)}, now {now.get(key)}): choose another "
            "--out or the same configuration."
        )
    if before["data"] != store.fingerprint:
        raise UserError(f"{out} holds a run on other data than {store.path}: choose another --out.")
    run_id = str(before["mlflow_run_id"])
    return run_id if tracking.exists(run_id) else None


def _write_run(out: Path, store: Store, config: RunConfig, run_id: str) -> None:
    try:
        (out / checkpoints.FOLDER).mkdir(parents=True, exist_ok=True)
        files.write_json(
            out / "run.json",
            {"config": config.to_dict(), "store": store.path, "data": store.fingerprint, "mlflow_run_id": run_id},
        )
        for aside in (out / checkpoints.FOLDER).glob(".epoch-*"):
            shutil.rmtree(aside)  # a checkpoint that a killed run had not finished
    except OSError as error:
        raise UserError(f"The run folder {out} cannot be written ({error.strerror}): choose another --out.") from error


def _make_tokenizer(out: Path, store: Store, config: RunConfig) -> None:
    """Train the small text tower's vocabulary once, on the training split's texts and the zero-shot prompts."""
    if config.model.text.name != "small" or (out / "tokenizer").is_dir():
        return
    from brgsa.text import train_tokenizer

    index = store.index(["volume_id", "split"])
    texts = store.texts(config.data.style)
    corpus = [
        texts[volume]
        for volume, split in zip(index["volume_id"].to_pylist(), index["split"].to_pylist(), strict=True)
        if split == "train"
    ]
    # Twice: the vocabulary keeps what it saw at least twice, and a prompt's words must be in it.
    tokenizer = train_tokenizer(corpus + 2 * zeroshot.prompts(store.labels), config.model.text.vocabulary)
    aside = out / f".tokenizer.{os.getpid()}"
    tokenizer.save_pretrained(str(aside))
    os.replace(aside, out / "tokenizer")


@contextlib.contextmanager
def _watch(out: Path, store: Store, config: RunConfig) -> Iterator[None]:
    """Show the progress that rank 0 writes, from a thread: the driver itself waits in Ray Train."""
    total = config.train.epochs * _steps(store, config)
    stop = threading.Event()

    def follow() -> None:
        done = 0
        with progress(total, f"train {out.name}: steps") as advance:
            while not stop.wait(1.0):
                done = tell(advance, done)

    def tell(advance: Callable[..., None], done: int) -> int:
        try:
            state = files.read_json(out / "progress.json")
        except UserError:
            return done
        auroc = f", AUROC {state['auroc']:.3f}" if state["auroc"] is not None else ""
        advance(max(0, state["step"] - done), f"loss {state['loss']:.3f}{auroc}")
        return max(done, int(state["step"]))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
