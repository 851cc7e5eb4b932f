"""`brgsa train`: the driver of a Ray Train run, which can be killed at any moment and started again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brgsa import files
from brgsa.errors import UserError
from brgsa.volumes import transforms
from brgsa_platform.config import RunConfig
from brgsa_platform.loading.batches import split_index
from brgsa_platform.loading.items import items_of, training_steps
from brgsa_platform.loading.supervision import SupervisedLabels, check_supervision, supervised_labels
from brgsa_platform.loading.unseen import training_view
from brgsa_platform.runtime.progress import following, progress
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.runtime.version import git_commit
from brgsa_platform.store import lineage
from brgsa_platform.store.doubts import warn_of_doubts
from brgsa_platform.store.store import Store
from brgsa_platform.store.training_range import training_range
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection
from brgsa_platform.training import account, run_checkpoints
from brgsa_platform.training.parallel import stopping
from brgsa_platform.training.resources import local_device, room_for
from brgsa_platform.training.run_folder import PROGRESS, claimed, default_out, make_tokenizer, previous_run, write_run

if TYPE_CHECKING:
    from brgsa_platform.loading.volume_cache import VolumeCache
    from brgsa_platform.training.loop import TrainingTask

SECONDS_FOR_A_TRIAL = 60.0  # to wait for another process to leave a trial's folder


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its folder, best checkpoint, MLflow run and one entry of metrics an epoch."""

    out: Path
    checkpoint: Path
    run_id: str
    history: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        """The entry of the epoch whose checkpoint is the best."""
        return max(self.history, key=run_checkpoints.merit)


@dataclass(frozen=True)
class TrainOptions:
    """How a training is run and recorded; nothing here changes what is learned.

    Attributes:
        name: of the MLflow run; default the folder's.
        tags: more of them for the MLflow run.
        parent_run: MLflow run id of the search that this trial belongs to.
        on_epoch: with `train.workers` 0 called with each epoch's metrics. A run that goes on tells its last epoch again, for
            a kill may have come before it was told.
        gpus: GPUs of each training process, a fraction too; 0 trains on CPUs, None leaves it to `train.gpu`. A training in
            this process takes the GPU that Ray gave the process.
        cache: the store's volumes, decoded beforehand.
        quiet: show no progress.
    """

    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    parent_run: str | None = None
    on_epoch: Callable[[dict[str, Any]], None] = lambda metrics: None
    gpus: float | None = None
    cache: VolumeCache | None = None
    quiet: bool = False


def train(
    store_path: Path | str,
    config: RunConfig,
    *,
    out: Path | None = None,
    preset: str | None = None,
    options: TrainOptions = TrainOptions(),
) -> TrainResult:
    """Train a model on a store; where `out` holds an unfinished run of the same configuration, go on with it.

    Args:
        out: the run's folder; default `default_out`.
        preset: name for the MLflow tag and the default folder.

    Raises:
        UserError: the store, the configuration and the cluster do not fit together, or another process trains in `out`
            (nothing was started); or a shard turns out to be damaged.
    """
    store = training_view(Store.open(store_path), config.data)
    out = (out or default_out(store, config, preset)).absolute()
    check_fit(store, config)
    if not options.parent_run:  # a search's trials say it once, in its driver
        warn_of_doubts(store)
    # An earlier process of a search's trial may still be about to end.
    # Claimed before Ray starts and until its workers are gone: they write to the folder.
    with claimed(out, wait_s=SECONDS_FOR_A_TRIAL if options.parent_run else 0), ray_session():
        if config.train.workers:
            room_for(config, options.gpus)
        tags = {"brgsa.preset": preset or "", "brgsa.data": store.fingerprint, "brgsa.out": out.name, **options.tags}
        data = lineage.datasets(store, train="training", validation="validation")
        with tracking.run(
            "trial" if options.parent_run else "train",
            name=options.name or out.name,
            params=config.to_dict(),
            tags=tags,
            parent=options.parent_run,
            run_id=previous_run(out, store, config),
            data=data,
        ) as run:
            run.describe(account.description(config, data))
            supervised = supervised_labels(store, config)
            if supervised is not None:
                run.set_tags({"brgsa.supervised": ", ".join(supervised.names), "brgsa.labels": supervised.source})
            write_run(out, store, config, run.run_id)
            make_tokenizer(out, store, config)
            task = _task(out, store, config, run.run_id, options, supervised)
            with contextlib.nullcontext() if options.quiet else _shown(out, store, config):
                history = _fit(out, config, task, options)
            result = TrainResult(out, run_checkpoints.resolve(out), run.run_id, history)
            if "val/auroc" in result.best:
                best = {"best/auroc": result.best["val/auroc"], "best/epoch": result.best["epoch"]}
                run.log_metrics(best, step=result.best["epoch"])
            run.log_models(account.kept_models(out, config, _steps(store, config)))
            run.describe(account.description(config, data, history))
        (out / PROGRESS).unlink(missing_ok=True)
        return result


def _task(
    out: Path,
    store: Store,
    config: RunConfig,
    run_id: str,
    options: TrainOptions,
    supervised: SupervisedLabels | None,
) -> TrainingTask:
    from brgsa_platform.training.loop import TrainingTask

    return TrainingTask(
        config=config,
        store=store.path,
        out=str(out),
        run=checkpoint_record(store, config, supervised),
        tracking_uri=connection.tracking_uri(),
        run_id=run_id,
        cache=options.cache,
        supervised=supervised,
    )


def _fit(out: Path, config: RunConfig, task: TrainingTask, options: TrainOptions) -> list[dict[str, Any]]:
    """Run the loop where the configuration says: in Ray Train's workers, or in this process. Gives the history."""
    history = run_checkpoints.mend(out, config.train.keep)
    if run_checkpoints.is_over(history, config.train):
        options.on_epoch(run_checkpoints.report_of(history[-1]))
        return history
    if config.train.workers:
        from brgsa_platform.training.ray_workers import fit_on_workers

        return fit_on_workers(task, options.gpus)
    from brgsa_platform.training.loop import train_here

    with stopping.sigterm_asks(out):
        return train_here(task, options.on_epoch, local_device(config, options.gpus))


def checkpoint_record(store: Store, config: RunConfig, supervised: SupervisedLabels | None = None) -> dict[str, Any]:
    """What a checkpoint's run.json says: enough to prepare a scan as the training's were, and to repeat the run.

    `supervised` are the abnormalities that the model is no zero-shot model of.
    """
    return {
        "config": config.to_dict(),
        "data": {
            "geometry": store.geometry.to_dict(),
            "style": config.data.style,
            "fingerprint": store.fingerprint,
            "phantom": store.phantom,
            "seen": training_range(store),
        },
        "labels": list(store.labels),
        "supervised": [] if supervised is None else list(supervised.names),
        "commit": git_commit(),
    }


def check_fit(store: Store, config: RunConfig) -> None:
    """Refuse a configuration that this store cannot serve, before anything starts.

    Raises:
        UserError: the crop is larger than the volumes, or these do not divide into patches; the text style is missing; the
            training split is smaller than a batch; there is no validation split to stop early by; a transform is unknown; or
            there are no labels for the loss (`supervision.check_supervision`).
    """
    vision = config.model.vision
    crop, shape = config.model.vision.volume, store.geometry.shape
    if any(want > have for want, have in zip(crop, shape, strict=True)):
        raise UserError(
            f"model.vision.volume {tuple(crop)} is larger than the volumes of {store.path}, {tuple(shape)}: choose a smaller "
            "one or prepare the store with a larger --shape.",
            code="crop-too-large",
            field="model.vision.volume",
            value=tuple(crop),
        )
    if vision.name == "vit3d" and any(n % p for n, p in zip(vision.evaluated(shape), vision.patch, strict=True)):
        raise UserError(
            f"The volumes of {store.path}, {tuple(shape)}, do not divide into patches of {tuple(vision.patch)}: set "
            "model.vision.evaluation=centre, or prepare the store with another --shape.",
            code="volumes-not-patches",
            field="model.vision.evaluation",
            value=vision.evaluation,
        )
    splits = store.index(["split"])["split"].to_pylist()
    if config.train.stop_after is not None and "validation" not in splits:
        raise UserError(
            f"{store.path} has no validation split, and train.stop_after={config.train.stop_after} stops a training by it: set "
            "train.stop_after=null, or prepare the store with one.",
            code="no-validation",
            field="train.stop_after",
            value=config.train.stop_after,
        )
    store.texts(config.data.style)  # refuses a style that has not been computed
    _steps(store, config)  # refuses a split too small for a batch
    check_supervision(store, config.loss)
    if config.data.transforms:
        transforms.check([spec.model_dump() for spec in config.data.transforms], crop)


def _steps(store: Store, config: RunConfig) -> int:
    """Steps of an epoch."""
    rows = split_index(store, "train", config.data.style)
    return training_steps(rows, items_of(store, rows, config), config)


@contextlib.contextmanager
def _shown(out: Path, store: Store, config: RunConfig) -> Iterator[None]:
    """Show the progress that rank 0 writes, while the driver waits for the training."""

    def look() -> tuple[int, str] | None:
        try:
            point = files.read_json(out / PROGRESS)
        except UserError:
            return None  # the first step is still to come
        auroc = f", AUROC {point['auroc']:.3f}" if point["auroc"] is not None else ""
        return int(point["step"]), f"loss {point['loss']:.3f}{auroc}"

    total = config.train.epochs * _steps(store, config)
    with progress(total, f"train {out.name}: steps") as advance, following(look, advance):
        yield
