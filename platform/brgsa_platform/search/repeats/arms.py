"""Named configurations, each trained on several seeds through Tune and then measured: what ablation and confirmation share.

Everything is kept in a folder. The same call goes on: a finished training is not begun again, an unfinished one goes on from
its checkpoint, and what was encoded is not encoded again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brgsa.errors import UserError
from brgsa.protocols import Protocol
from brgsa_platform.config import RunConfig
from brgsa_platform.evaluation.embeddings import embeddings_file
from brgsa_platform.evaluation.evaluate import evaluate
from brgsa_platform.evaluation.options import EvaluateOptions
from brgsa_platform.evaluation.result import EvaluationResult
from brgsa_platform.loading.volume_cache import decode_once
from brgsa_platform.runtime.placement_groups import PlacementGroupReaper
from brgsa_platform.runtime.progress import progress
from brgsa_platform.search.spec import SearchOptions
from brgsa_platform.search.trials import TrialResources, TrialSettings, placement, run_trial, trial_folder
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import connection
from brgsa_platform.training import run_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable

DONE = "arm-done"  # a file in the folder of a training that has ended
ARM_TAG = "brgsa.arm"
MLFLOW_PATIENCE = 300.0  # seconds that a training waits for an MLflow server that is away


@dataclass(frozen=True)
class Arm:
    """A configuration that is compared with others.

    Attributes:
        name: in tables.
        values: by field, over the base.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """An arm with one of the seeds."""

    number: int
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Of its run in MLflow."""
        return f"{self.arm.name}, seed {self.seed}"

    def drawn(self) -> dict[str, Any]:
        """What `run_trial` takes."""
        values = {**self.arm.values, "train.seed": self.seed}
        return {"number": self.number, "values": values, "name": self.name, "tags": {ARM_TAG: self.arm.name}}


def trainings_of(arms: Sequence[Arm], seeds: Sequence[int]) -> list[Training]:
    """Every arm with every seed, all arms of a seed before the next: a killed run has compared something."""
    pairs = [(arm, seed) for seed in seeds for arm in arms]
    return [Training(number, arm, seed) for number, (arm, seed) in enumerate(pairs)]


def arm_settings(
    store: Store,
    base: RunConfig,
    folder: Path,
    parent_run: str,
    options: SearchOptions,
    *,
    preset: str | None = None,
) -> TrialSettings:
    """What all trainings of some arms share; needs a Ray session.

    Args:
        folder: of the trainings.
        options: of these `concurrent`, `gpu_share` and `cache` count.

    Raises:
        UserError: cluster-too-small, options-conflict.
    """
    import ray

    return TrialSettings(
        base=base,
        store=store.path,
        folder=folder,
        preset=preset,
        space="",
        parent_run=parent_run,
        tracking_uri=connection.tracking_uri(),
        experiment=connection.experiment_name(),
        patience=MLFLOW_PATIENCE,
        resources=TrialResources.of(base, options, ray.cluster_resources()),
        cache=options.cache or decode_once(store),
    )


def train_arms(settings: TrialSettings, trainings: Sequence[Training]) -> None:
    """Train what has not been trained, as many at a time as the cluster holds; needs a Ray session.

    Raises:
        UserError: arm-failed, with the first reason, once all others have ended.
    """
    missing = [one for one in trainings if not (trial_folder(settings.folder, one.number) / DONE).is_file()]
    if not missing:
        return
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's handler would make Ctrl-C wait for the trainings
    from ray import tune as ray_tune
    from ray.tune import RunConfig as TuneRunConfig
    from ray.tune import TuneConfig, Tuner

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with progress(len(missing), "train arms") as advance:
        found = Tuner(
            ray_tune.with_resources(
                ray_tune.with_parameters(_run, settings=settings, trainings={one.number: one for one in missing}),
                placement(settings.resources),
            ),
            param_space={"number": ray_tune.grid_search([one.number for one in missing])},
            tune_config=TuneConfig(
                max_concurrent_trials=settings.resources.at_once,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
                reuse_actors=settings.resources.inside,  # as in a search
            ),
            run_config=TuneRunConfig(
                name="ray",
                storage_path=str(settings.folder),
                verbose=0,
                callbacks=[_watch(settings.folder, advance)],
                log_to_file=True,
            ),
        ).fit()
    failed = [result for result in found if result.error is not None]
    if failed:
        last = [line.strip() for line in str(failed[0].error).splitlines() if line.strip()][-1]
        raise UserError(
            f"{len(failed)} of {len(missing)} trainings failed; the first: {last} The same command goes on.",
            code="arm-failed",
            field=str(settings.folder),
            value=len(failed),
        )


def _run(config: dict[str, Any], settings: TrialSettings, trainings: Mapping[int, Training]) -> None:
    """One training, in a process of Tune's."""
    one = trainings[config["number"]]
    run_trial(one.drawn(), settings)
    (trial_folder(settings.folder, one.number) / DONE).touch()


def _watch(folder: Path, advance: Callable[[int], None]) -> Any:
    """A callback of Tune's that counts ended trainings and releases what their workers held."""
    from ray.tune import Callback

    class Watch(Callback):  # type: ignore[misc, unused-ignore]
        reaper = PlacementGroupReaper()

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks; nothing reads the copy

        def _ended(self, trial: Any) -> None:
            self.reaper.add(trial_folder(folder, trial.config["number"]))
            advance(1)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._ended(trial)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._ended(trial)

        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            self.reaper.sweep()

    return Watch()


def measure_arms(
    settings: TrialSettings, trainings: Sequence[Training], split: str, protocol: Protocol
) -> dict[str, list[EvaluationResult]]:
    """Arm → its results on a split, a seed each, from the best checkpoints; all on the same draws.

    Raises:
        UserError: see `evaluate`.
    """
    results: dict[str, list[EvaluationResult]] = {}
    for one in trainings:
        run = trial_folder(settings.folder, one.number)
        out = run / f"evaluation-{split}"
        options = EvaluateOptions(protocol=protocol, save_embeddings=True)
        if embeddings_file(out, split).is_file():
            options = replace(options, save_embeddings=False, embeddings=out)
        found = evaluate(
            run_checkpoints.resolve(run),
            settings.store,
            split,
            options,
            out=out,
            parent_run=settings.parent_run,
            name=f"{one.name} on {split}",
        )
        results.setdefault(one.arm.name, []).append(found)
    return results
