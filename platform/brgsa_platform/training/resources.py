"""The CPUs and GPUs that a training takes of a cluster."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from brgsa.errors import UserError
from brgsa_platform.config import RunConfig
from brgsa_platform.loading.loaders import data_cpus
from brgsa_platform.runtime.session import cluster_cpus, cluster_gpus, nodes_for

if TYPE_CHECKING:
    import torch


def gpus_per_worker(config: RunConfig, gpus: float | None = None) -> float:
    """GPUs that each training worker takes; 0 trains on CPUs.

    `train.gpu=false` is always obeyed. Otherwise the share counts, and without one what `train.gpu` says: true a whole GPU,
    "auto" a whole one where the cluster (for `train.workers` 0 this process) has as many as workers.

    Args:
        gpus: the share; a fraction lets trainings share a GPU, 0 is none, None leaves it to the configuration.
    """
    if config.train.gpu is False:
        return 0.0
    if gpus is not None:
        return gpus
    return 1.0 if config.train.gpu is True or _gpus_are_there(config.train.worker_counts[0]) else 0.0


def _gpus_are_there(workers: int) -> bool:
    if not workers:
        import torch

        return torch.cuda.is_available()
    return cluster_gpus() >= workers


def local_device(config: RunConfig, gpus: float | None = None) -> torch.device:
    """The device of a training in this process: the CPU, or the GPU that Ray gave the process, else torch's first.

    Args:
        gpus: as in `gpus_per_worker`.

    Raises:
        UserError: a GPU is wanted, and torch sees none here.
    """
    import torch

    if not gpus_per_worker(config, gpus):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "train.gpu asks for a GPU and torch sees none in this process: set train.gpu=false, or train where one is.",
            code="no-gpu",
            field="train.gpu",
            value=config.train.gpu,
        )
    return torch.device("cuda", _gpu_given_by_ray())


def _gpu_given_by_ray() -> int:
    """Torch's number of the GPU that Ray gave this process; 0 where Ray gave none.

    Ray makes a process see its own GPUs alone, as a rule (CUDA_VISIBLE_DEVICES), and torch counts those that it sees.
    """
    import ray

    given = [str(gpu) for gpu in ray.get_gpu_ids()] if ray.is_initialized() else []
    if not given:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return int(given[0])
    seen = visible.split(",")
    return seen.index(given[0]) if given[0] in seen else 0


def room_for(config: RunConfig, gpus: float | None = None) -> int:
    """The most workers of `train.workers` that the cluster has room for.

    Args:
        gpus: as in `gpus_per_worker`.

    Raises:
        UserError: there is no room for the fewest (too-few-cpus, too-few-gpus, data-cpus-out-of-range).
    """
    share = gpus_per_worker(config, gpus)
    fewest, *more = config.train.worker_counts
    for workers in reversed(more):
        with contextlib.suppress(UserError):
            _check_room(config, workers, share)
            return workers
    _check_room(config, fewest, share)
    return fewest


def is_free(config: RunConfig, workers: int, gpus: float | None = None) -> bool:
    """Whether nobody else holds what so many workers take; `room_for` counts what there is."""
    import ray

    free = ray.available_resources()
    share = gpus_per_worker(config, gpus)
    return bool(free.get("CPU", 0.0) >= workers and free.get("GPU", 0.0) >= workers * share)


def _check_room(config: RunConfig, workers: int, share: float) -> None:
    """Refuse a run that would wait for ever: each worker needs a CPU (and GPUs), and another for its data tasks.

    Args:
        share: GPUs of each worker.

    Raises:
        UserError: the cluster has too few of them; names the numbers.
    """
    data = data_cpus(config.data, workers)
    if config.data.loader == "torch":
        _check_cpus_of_workers(workers)
    elif nodes_for("data"):
        _check_cpus_by_role(workers, data)
    else:
        _check_cpus(workers, data)
    gpus = cluster_gpus()
    if gpus < share * workers:
        raise UserError(
            f"train.workers={workers} needs {share * workers:g} GPUs and the cluster has {gpus:g}: lower train.workers.",
            code="too-few-gpus",
            field="train.workers",
            value=workers,
        )


def _check_cpus_of_workers(workers: int) -> None:
    """The processes of torch's loader are the workers' own: Ray does not know of them."""
    for_training = cluster_cpus("training")
    if for_training < workers:
        raise UserError(
            f"train.workers={workers} needs as many CPUs and the cluster has {for_training:.0f} for training: lower "
            "train.workers or join a larger cluster with RAY_ADDRESS.",
            code="too-few-cpus",
            field="train.workers",
            value=workers,
        )


def _check_cpus_by_role(workers: int, data: float) -> None:
    """Where nodes have roles, those for data do nothing else."""
    for_training, for_data = cluster_cpus("training"), cluster_cpus("data")
    if for_training < workers or not workers <= data <= for_data:
        raise UserError(
            f"train.workers={workers} needs as many CPUs of training nodes and of data nodes, data.cpus at most the "
            f"latter; the cluster has {for_training:.0f} and {for_data:.0f}: lower train.workers or data.cpus, or add nodes.",
            code="too-few-cpus",
            field="train.workers",
            value=workers,
        )


def _check_cpus(workers: int, data: float) -> None:
    cpus = cluster_cpus()
    # A data task keeps its CPU while its worker waits for another one, whose data must not wait for that same CPU.
    if cpus < 2 * workers:
        raise UserError(
            f"train.workers={workers} needs {2 * workers} CPUs (one a worker, one for the data of each) and the cluster "
            f"has {cpus:.0f}: lower train.workers or join a larger cluster with RAY_ADDRESS.",
            code="too-few-cpus",
            field="train.workers",
            value=workers,
        )
    if not workers <= data <= cpus - workers:
        raise UserError(
            f"data.cpus={data:g} must be between {workers}, one for each of train.workers, and the "
            f"{cpus - workers:.0f} CPUs that they leave free.",
            code="data-cpus-out-of-range",
            field="data.cpus",
            value=data,
        )
