"""A training on Ray Train's workers: started, and started again, with as many as there is room for."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train import ControllerError, FailureConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from brgsa.errors import UserError
from brgsa_platform.config import RunConfig
from brgsa_platform.runtime import placement_groups
from brgsa_platform.runtime.session import nodes_for
from brgsa_platform.training.parallel import stopping
from brgsa_platform.training.parallel.workers import WorkerContext
from brgsa_platform.training.resources import gpus_per_worker, is_free, room_for

if TYPE_CHECKING:
    from brgsa_platform.training.loop import TrainingTask

CONTROLLER_FAILURES = 3  # starts in a row that fail, which Ray Train would try again for ever
SECONDS_BETWEEN_COUNTS = 30.0  # of what the cluster has, while a training has fewer workers than it may have
SECONDS_TO_LET_GO = 15.0  # that workers which have ended may still hold what they had
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


def fit_on_workers(task: TrainingTask, gpus: float | None) -> list[dict[str, Any]]:
    """Train on workers until the training is at its end; gives the history.

    A training that has stopped because a node is about to go, or because there is room for more workers, is started again.
    So is one with a range of workers that has lost one: Ray Train itself waits for as many as there were.

    Args:
        gpus: see `resources.gpus_per_worker`.

    Raises:
        UserError: something that the user can mend stops the training.
        Terminated: SIGTERM came to this process, and the training has stopped.
        TrainingFailedError: workers were lost more often than `train.max_failures`, or cannot be started.
    """
    config, out, failures, false_starts = task.config, Path(task.out), 0, 0
    is_elastic = len(config.train.worker_counts) > 1
    with stopping.sigterm_asks(out) as sigterm:
        while True:
            stopping.take_back(out)
            if sigterm.is_set():
                raise stopping.Stopped
            try:
                returned = _fit(task, _room(config, gpus, sigterm), gpus, is_elastic)
            except TrainingFailedError as error:
                failures += isinstance(error, WorkerGroupError) and not _is_preemption(error)
                false_starts = false_starts + 1 if isinstance(error, ControllerError) else 0
                is_over = failures > config.train.max_failures or false_starts > CONTROLLER_FAILURES
                if is_over or not is_elastic:
                    raise
                placement_groups.release(out)  # Ray keeps that of workers which could not be set up
                continue
            if "refused" in returned:
                raise returned["refused"]
            if "history" in returned:
                history: list[dict[str, Any]] = returned["history"]
                return history


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Entry point of a Ray Train worker.

    Returns:
        {"history": …}, {"stopped": True}, or {"refused": UserError}: raised, it would make Ray Train start the workers again.
    """
    # Ray Train's controller, a process of its own, imports this module and never the loop: that saves it two seconds.
    from brgsa_platform.training.loop import run_training

    task: TrainingTask = settings["task"]
    context = ray.train.get_context()
    workers = WorkerContext(
        context.get_world_rank(),
        context.get_world_size(),
        get_device(),
        ray.train.report,
        context.get_local_world_size(),
        context.get_node_rank(),
        context.get_local_rank() == 0,
        _is_preempted if os.environ.get(WATCHER, "1") != "0" else None,
    )
    try:
        with stopping.training_here():
            return {"history": run_training(task, workers)}
    except stopping.Stopped:
        return {"stopped": True}
    except UserError as error:
        return {"refused": error}


def _is_preempted() -> bool:
    return ray.train.get_preemption_info() is not None


def _fit(task: TrainingTask, workers: int, gpus: float | None, is_elastic: bool) -> dict[str, Any]:
    """One start of so many workers; gives what rank 0 returns."""
    config, out = task.config, Path(task.out)
    # Ray Train would go on with its own record of an earlier start; ours, the checkpoints, is the one to follow.
    shutil.rmtree(out / "ray", ignore_errors=True)
    failures: Any = FailureConfig(
        max_failures=0 if is_elastic else config.train.max_failures,
        controller_failure_limit=0 if is_elastic else CONTROLLER_FAILURES,
        max_preemption_failures=0 if is_elastic else -1,
    )  # type: ignore[call-arg, unused-ignore]
    share = gpus_per_worker(config, gpus)
    trainer: Any = TorchTrainer(
        train_worker,  # type: ignore[arg-type, unused-ignore]
        train_loop_config={"task": task},
        torch_config=ListeningTorchConfig(run_folder=out),
        scaling_config=ScalingConfig(
            num_workers=workers,
            label_selector=nodes_for("training") or None,
            use_gpu=share > 0,
            resources_per_worker={"CPU": 1, "GPU": share} if share else {"CPU": 1},
        ),
        run_config=RayRunConfig(
            name="ray", storage_path=str(out), failure_config=failures, callbacks=_callbacks_within_a_search()
        ),
    )
    with _watching_for_room(task, workers, gpus):
        returned: dict[str, Any] = trainer.fit().return_value
    return returned


def _callbacks_within_a_search() -> list[Any]:
    """What takes the workers' reports on to Tune, where this training is a trial."""
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.trainable.trainable_fn_utils import _in_tune_session

    return [TuneReportCallback()] if _in_tune_session() else []


def _room(config: RunConfig, gpus: float | None, sigterm: threading.Event) -> int:
    """How many workers to start; a range waits until there is room for its fewest.

    What an earlier start held is free again after a moment. What others hold is not, so then fewer are taken.
    """
    counts, begun = config.train.worker_counts, time.monotonic()
    while len(counts) > 1:
        with contextlib.suppress(UserError):
            most = room_for(config, gpus)
            free = [count for count in counts if count <= most and is_free(config, count, gpus)]
            if most in free or (free and time.monotonic() - begun > SECONDS_TO_LET_GO):
                return free[-1]
        if sigterm.wait(0.5):
            raise stopping.Stopped
    return counts[0]


@contextlib.contextmanager
def _watching_for_room(task: TrainingTask, workers: int, gpus: float | None) -> Iterator[None]:
    """While the block runs, ask the training to stop where the cluster has room for more workers than it has."""
    config, over = task.config, threading.Event()

    def watch() -> None:
        while not over.wait(SECONDS_BETWEEN_COUNTS):
            with contextlib.suppress(UserError):  # fewer nodes than ever: the training is about to fail
                more = room_for(config, gpus) - workers
                if more > 0 and is_free(config, more, gpus):
                    stopping.ask(Path(task.out))

    watcher = threading.Thread(target=watch, daemon=True)
    if workers < config.train.worker_counts[-1]:
        watcher.start()
    try:
        yield
    finally:
        over.set()
        if watcher.ident is not None:
            watcher.join()


def _is_preemption(error: TrainingFailedError) -> bool:
    """Whether the workers were lost with a node that Ray knew to be going."""
    if not isinstance(error, WorkerGroupError):
        return isinstance(error, ray.train.PreemptionError)
    deaths = [getattr(death, "health_check_failure", death) for death in error.worker_failures.values()]
    return any(getattr(death, "preempted", False) for death in deaths)


class _ListeningBackend(TorchConfig().backend_cls):  # type: ignore[misc, unused-ignore]
    """Ray Train's torch backend, whose workers take SIGTERM: their training runs in a thread, which cannot set a handler."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the workers."""
        worker_group.execute_single(0, placement_groups.remember, backend_config.run_folder)
        super().on_start(worker_group, backend_config)
        worker_group.execute(stopping.listen)


@dataclass
class ListeningTorchConfig(TorchConfig):  # type: ignore[misc, unused-ignore]
    """Ray Train's torch configuration with workers that take SIGTERM, and whose placement group is written down."""

    run_folder: Path = Path()

    @property
    def backend_cls(self) -> Any:
        """What sets up the workers."""
        return _ListeningBackend
