"""A search's trials: how many of them a cluster holds at a time, and what each does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa_platform.config import RunConfig
from brgsa_platform.search.spaces import drawn_config
from brgsa_platform.search.spec import trial_name
from brgsa_platform.tracking.client import PATIENCE

DRIVER_CPUS = 0.5  # of a trial that starts workers of its own and only waits for them


@dataclass(frozen=True)
class TrialResources:
    """What one trial takes of the cluster, and how many there are at a time.

    Attributes:
        cpus, gpus: that Tune reserves for the trial's own process; its training workers reserve theirs.
        at_once: trials at a time.
        threads: CPU threads of each training worker.
    """

    cpus: float
    gpus: float
    at_once: int
    threads: int

    @classmethod
    def of(
        cls, base: RunConfig, concurrent: int | None, gpu_share: float, cluster: Mapping[str, float]
    ) -> TrialResources:
        """Plan from what the cluster has.

        A trial with `train.workers` 0 or 1 trains in its own process; one with more starts them with Ray Train. Each
        training process wants a CPU and one more for its data, so trials never wait for each other's.

        Args:
            concurrent: wanted; None for as many as there is room for.
            gpu_share: GPUs of each training process; a fraction lets trials share one.
            cluster: logical CPU and GPU, as Ray counts them.

        Raises:
            UserError: the cluster has no room for one trial, or not for as many as were wanted; names the numbers.
        """
        workers = max(1, base.train.workers)
        inside = base.train.workers <= 1
        need = 2.0 * workers + (0 if inside else DRIVER_CPUS)
        cpus, gpus = float(cluster.get("CPU", 0)), float(cluster.get("GPU", 0))
        room = int(cpus // need)
        if gpu_share:
            room = min(room, int(gpus / (gpu_share * workers) + 1e-6))
        if room < 1:
            raise UserError(
                f"A trial with train.workers={base.train.workers} needs {need:g} CPUs and {gpu_share * workers:g} GPUs, and "
                f"the cluster has {cpus:g} and {gpus:g}: lower train.workers or join a larger cluster with RAY_ADDRESS."
            )
        if concurrent is not None and concurrent > room:
            raise UserError(
                f"--concurrent {concurrent} trials need {concurrent * need:g} CPUs and "
                f"{concurrent * gpu_share * workers:g} GPUs, and the cluster has {cpus:g} and {gpus:g}: at most {room} fit."
            )
        at_once = concurrent or room
        threads = base.train.threads or max(1, (os.cpu_count() or 1) // (at_once * workers))
        return cls(1.0 if inside else DRIVER_CPUS, gpu_share if inside else 0.0, at_once, threads)


def run_trial(drawn: dict[str, Any], settings: dict[str, Any]) -> None:
    """One trial, in a process of Tune's: a training that reports each epoch.

    Args:
        drawn: `number` of the trial and `values` by field.
        settings: what all trials share; see `driver._search`.
    """
    from ray import tune as ray_tune

    from brgsa_platform.training.driver import TrainOptions, train

    os.environ["MLFLOW_TRACKING_URI"] = settings["uri"]
    os.environ["MLFLOW_EXPERIMENT_NAME"] = settings["experiment"]
    os.environ[PATIENCE] = settings["patience"]
    base = RunConfig.from_tree(settings["base"])
    train(
        settings["store"],
        drawn_config(base, drawn["values"]),
        out=trial_folder(Path(settings["folder"]), drawn["number"]),
        preset=settings["preset"],
        options=TrainOptions(
            name=trial_name(drawn["number"]),
            tags={"brgsa.space": settings["space"]},
            parent_run=settings["parent_run"],
            on_epoch=ray_tune.report,
            gpus=settings["gpu_share"],
            cache=settings["cache"],
            quiet=True,
        ),
    )


def trial_folder(search: Path, number: int) -> Path:
    """A trial's run folder."""
    return search / "trials" / trial_name(number)
