"""A search's trials: what each takes of the cluster, how many run at a time, and what one does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from brgsa.errors import UserError
from brgsa_platform.config import RunConfig
from brgsa_platform.runtime.session import nodes_for
from brgsa_platform.search.spaces import drawn_config
from brgsa_platform.search.spec import SearchOptions, trial_name
from brgsa_platform.tracking.connection import PATIENCE

if TYPE_CHECKING:
    from brgsa_platform.loading.volume_cache import VolumeCache

DRIVER_CPUS = 0.5  # of a trial that starts workers of its own and only waits for them
PROCESS_CPUS = 2.0  # of a training process: one for itself, one for its data


@dataclass(frozen=True)
class TrialResources:
    """What one trial takes of the cluster, and how many run at a time.

    Attributes:
        inside: whether the trial trains in its own process, not in workers of Ray Train.
        cpus, gpus: that Tune reserves for the trial's own process; workers reserve theirs.
        gpu_share: GPUs of each training process; 0 trains on the CPU.
        at_once: trials at a time; processes: their training processes together.
    """

    inside: bool
    cpus: float
    gpus: float
    gpu_share: float
    at_once: int
    processes: int

    @classmethod
    def of(cls, base: RunConfig, options: SearchOptions, cluster: Mapping[str, float]) -> TrialResources:
        """Work out from what the cluster has.

        A trial with `train.workers` 0 or 1 trains in its own process; one with more starts them with Ray Train. Each
        training process wants a CPU and one more for its data, so trials never wait for each other's.

        Args:
            cluster: logical CPU and GPU, as Ray counts them.

        Raises:
            UserError: elastic-trial for a range of workers; cluster-too-small for one trial, or for as many as
                `options.concurrent` wants; options-conflict between `train.gpu` and the share.
        """
        if not isinstance(base.train.workers, int):
            raise UserError(
                f"A search's trials have a fixed number of workers, not train.workers={list(base.train.workers)}: set one.",
                code="elastic-trial",
                field="train.workers",
                value=base.train.workers,
            )
        workers = max(1, base.train.workers)
        inside = base.train.workers <= 1
        cpus, gpus = float(cluster.get("CPU", 0)), float(cluster.get("GPU", 0))
        share = gpus_per_process(base.train.gpu, options.gpu_share, gpus)
        need_cpus, need_gpus = PROCESS_CPUS * workers + (0 if inside else DRIVER_CPUS), share * workers
        room = int(cpus // need_cpus)
        if share:
            room = min(room, int(gpus / need_gpus + 1e-6))
        if room < 1:
            raise UserError(
                f"A trial with train.workers={base.train.workers} needs {need_cpus:g} CPUs and {need_gpus:g} GPUs, and the "
                f"cluster has {cpus:g} and {gpus:g}: lower train.workers or join a larger cluster with RAY_ADDRESS.",
                code="cluster-too-small",
                field="train.workers",
                value=base.train.workers,
            )
        wanted = options.concurrent
        if wanted is not None and wanted > room:
            raise UserError(
                f"--concurrent {wanted} trials need {wanted * need_cpus:g} CPUs and {wanted * need_gpus:g} GPUs, and the "
                f"cluster has {cpus:g} and {gpus:g}: at most {room} fit.",
                code="cluster-too-small",
                field="--concurrent",
                value=wanted,
            )
        at_once = wanted or room
        return cls(
            inside=inside,
            cpus=1.0 if inside else DRIVER_CPUS,
            gpus=share if inside else 0.0,
            gpu_share=share,
            at_once=at_once,
            processes=at_once * workers,
        )

    def threads_on(self, node: Mapping[str, float], cores: int | None = None) -> int:
        """CPU threads of each training process on a node, where as many run beside each other as it has room for.

        Args:
            node: logical CPU and GPU of the node.
            cores: of its machine, where they are known: Ray may have been told of more CPUs than there are.
        """
        cpus = int(node.get("CPU", 0))
        beside = min(self.processes, int(cpus // PROCESS_CPUS))
        if self.gpu_share:
            beside = min(beside, int(node.get("GPU", 0.0) / self.gpu_share + 1e-6))
        return max(1, min(cpus, cores or cpus) // max(1, beside))


def gpus_per_process(wanted: bool | Literal["auto"], share: float | None, gpus: float) -> float:
    """GPUs of each training process.

    Args:
        wanted: `train.gpu`.
        share: `--gpus-per-trial`; None where it was not given.
        gpus: of the cluster.

    Raises:
        UserError: options-conflict where the two contradict each other.
    """
    if share is None:
        return float(gpus > 0 if wanted == "auto" else wanted)
    if wanted != "auto" and wanted != (share > 0):
        raise UserError(
            f"--gpus-per-trial {share:g} contradicts train.gpu={str(wanted).lower()}: give one of the two.",
            code="options-conflict",
            field="--gpus-per-trial",
            value=share,
        )
    return share


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a search share; travels to the process of each.

    Attributes:
        base: the configuration over which values are drawn.
        store: the store's path or URL.
        folder: of the search.
        preset, space, parent_run: for the trial's run in MLflow.
        tracking_uri, experiment: where that run is kept.
        patience: seconds that a trial waits for an MLflow server that is away.
        resources: what each trial takes.
        cache: the store's volumes in Ray's object store; None where each trial reads the shards.
    """

    base: RunConfig
    store: str
    folder: Path
    preset: str | None
    space: str
    parent_run: str
    tracking_uri: str
    experiment: str
    patience: float
    resources: TrialResources
    cache: VolumeCache | None


def run_trial(drawn: dict[str, Any], settings: TrialSettings) -> None:
    """One trial, in a process of Tune's: a training that reports each epoch.

    Args:
        drawn: `number` of the trial and `values` by field; perhaps also `name` and `tags` of its run in MLflow.
        settings: what all trials share.
    """
    from ray import tune as ray_tune

    from brgsa_platform.training.driver import TrainOptions, train

    os.environ["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    os.environ["MLFLOW_EXPERIMENT_NAME"] = settings.experiment
    os.environ[PATIENCE] = str(settings.patience)
    train(
        settings.store,
        drawn_config(settings.base, {**_of_this_node(settings), **drawn["values"]}),
        out=trial_folder(settings.folder, drawn["number"]),
        preset=settings.preset,
        options=TrainOptions(
            name=drawn.get("name") or trial_name(drawn["number"]),
            tags={"brgsa.space": settings.space, **drawn.get("tags", {})},
            parent_run=settings.parent_run,
            on_epoch=ray_tune.report,
            gpus=settings.resources.gpu_share,
            cache=settings.cache,
            quiet=True,
        ),
    )


def placement(resources: TrialResources) -> Any:
    """Tune's form of what a trial takes: a trial that trains in its own process belongs on a node for training."""
    from ray.tune import PlacementGroupFactory

    bundle = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    where = nodes_for("training") if resources.inside else {}
    return PlacementGroupFactory([bundle], bundle_label_selector=[where] if where else None)


def trial_folder(search: Path, number: int) -> Path:
    """A trial's run folder."""
    return search / "trials" / trial_name(number)


def _of_this_node(settings: TrialSettings) -> dict[str, Any]:
    """The fields of the configuration that depend on where the trial runs, by field."""
    fields: dict[str, Any] = {"train.workers": 0} if settings.resources.inside else {}
    if settings.base.train.threads is None:
        fields["train.threads"] = _threads(settings.resources)
    return fields


def _threads(resources: TrialResources) -> int | None:
    """CPU threads of a training process of this trial: in this process, or on any node where its workers may run.

    None where no such node has been started yet; each worker then looks at its own.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if resources.inside:
        here = ray.get_runtime_context().get_node_id()
        (node,) = (node for node in nodes if node["NodeID"] == here)
        return resources.threads_on(node["Resources"], os.cpu_count())
    role = nodes_for("training").items()
    # The smallest node that may get a worker must not be overloaded.
    nodes = [node for node in nodes if role <= node.get("Labels", {}).items()]
    return min((resources.threads_on(node["Resources"]) for node in nodes), default=None)
