"""What a run's figures come from, as MLflow shows it: the data, the command, and the models that they are of."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brgsa_platform.runtime.addresses import hide_credentials, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

COMMAND_LENGTH = 4000
MODELS_AT_ONCE, POINTS_AT_ONCE = 100, 1000  # MLflow's limits
NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")  # of a model, for MLflow
BEST_TAG = "brgsa.best"
VERSIONS_TAG = "mlflow.modelVersions"  # of a model that is registered


@dataclass(frozen=True)
class Dataset:
    """A split of a store.

    Attributes:
        store: the store's path or URL, as the user gave it.
        fingerprint: of the store.
        volumes: their number in the split.
        context: what the run does with it, such as "training".
    """

    store: str
    fingerprint: str
    split: str
    volumes: int
    context: str

    @property
    def name(self) -> str:
        """The store's folder and the split."""
        return f"{without_credentials(self.store).rstrip('/').rpartition('/')[2]}:{self.split}"


@dataclass(frozen=True)
class KeptModel:
    """A checkpoint that a training keeps.

    Attributes:
        name: see `model_name`.
        step: of the run at which it was written; the run's metrics at that step are the model's.
        is_best: whether it is the run's best.
        params: a tree of parameters.
    """

    name: str
    step: int
    is_best: bool
    params: Mapping[str, Any] = field(default_factory=dict)


def model_name(run: str, checkpoint: str) -> str:
    """A checkpoint's name among MLflow's models, which may have neither dots nor slashes."""
    return NOT_IN_A_NAME.sub("-", f"{run}-{checkpoint}")


def command() -> str:
    """The command that this process runs, without passwords; of another program than brgsa only the program's name."""
    program, *arguments = sys.argv or [""]
    path = Path(program)
    if path.name != "brgsa" and path.parts[-3:-1] != ("brgsa_platform", "cli"):
        return path.name
    return shlex.join(["brgsa", *map(hide_credentials, arguments)])[:COMMAND_LENGTH]


def log_datasets(api: MlflowClient, run_id: str, datasets: Iterable[Dataset]) -> None:
    """Name the data that a run works on; said twice, it stands there once."""
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Entity(
                name=one.name,
                digest=one.fingerprint,
                source_type="local" if "://" not in one.store else one.store.partition("://")[0],
                source=json.dumps({"uri": without_credentials(one.store)}),
                profile=json.dumps({"num_rows": one.volumes}),
            ),
            [InputTag("mlflow.data.context", one.context)],
        )
        for one in datasets
    ]
    if inputs:
        api.log_inputs(run_id, inputs)


def log_models(api: MlflowClient, run_id: str, models: Sequence[KeptModel], datasets: Sequence[Dataset]) -> None:
    """Make the models that a run has in MLflow those that it keeps, each with the run's metrics at its step.

    Args:
        datasets: of the run, in the order train, validation: whose figures begin with "train/" and "val/".
    """
    from mlflow.entities import LoggedModelOutput

    from brgsa_platform.config import flatten

    run = api.get_run(run_id)
    found = _models(api, run.info.experiment_id, run_id)
    there, kept = {one.name: one.model_id for one in found}, {model.name for model in models}
    for one in found:
        if one.name not in kept and VERSIONS_TAG not in one.tags:
            api.delete_logged_model(one.model_id)
    ids: dict[int, str] = {}
    for model in models:
        known = there.get(model.name)
        if known is None:
            made = api.create_logged_model(
                run.info.experiment_id,
                name=model.name,
                source_run_id=run_id,
                params={key: str(value) for key, value in flatten(model.params).items()},
                model_type="checkpoint",
            )
            known = made.model_id
            api.finalize_logged_model(known, "READY")
            api.log_outputs(run_id, [LoggedModelOutput(known, model.step)])
        api.set_logged_model_tags(known, {BEST_TAG: str(model.is_best).lower(), "mlflow.model.isExternal": "true"})
        ids[model.step] = known
    _give_metrics(api, run, ids, datasets)


def _give_metrics(api: MlflowClient, run: Any, ids: Mapping[int, str], datasets: Sequence[Dataset]) -> None:
    """Log a run's points at the models' steps again, as the models'; MLflow keeps a point of a run once."""
    from mlflow.entities import Metric

    by_prefix = {{"training": "train/", "validation": "val/"}.get(one.context): one for one in datasets}
    points = []
    for key in run.data.metrics:
        prefix = key.partition("/")[0] + "/"
        if prefix not in ("train/", "val/"):
            continue
        of = about(by_prefix.get(prefix))
        points += [
            Metric(key, point.value, point.timestamp, point.step, model_id=ids[point.step], **of)
            for point in api.get_metric_history(run.info.run_id, key)
            if point.step in ids
        ]
    log_points(api, run.info.run_id, points)


def copy_figures(api: MlflowClient, source: Any, target: str) -> None:
    """Give a model the metrics of another of the same checkpoint, each still a metric of the run that measured it."""
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    by_run: dict[str, list[Any]] = {}
    for one in source.metrics or []:
        of = {"model_id": target, "dataset_name": one.dataset_name, "dataset_digest": one.dataset_digest}
        by_run.setdefault(one.run_id, []).append(Metric(one.key, one.value, one.timestamp, one.step, **of))
    for run_id, points in by_run.items():
        with contextlib.suppress(MlflowException):  # a run that was deleted takes no more
            log_points(api, run_id, points)


def log_points(api: MlflowClient, run_id: str, points: Sequence[Any]) -> None:
    """Log metrics of a run, as many at once as MLflow takes."""
    for start in range(0, len(points), POINTS_AT_ONCE):
        api.log_batch(run_id, metrics=points[start : start + POINTS_AT_ONCE])


def about(dataset: Dataset | None) -> dict[str, str]:
    """What a metric says of the data that it was measured on."""
    return {} if dataset is None else {"dataset_name": dataset.name, "dataset_digest": dataset.fingerprint}


def find_model(api: MlflowClient, run_id: str, name: str) -> str | None:
    """The id of a run's model with this name."""
    from mlflow.exceptions import MlflowException

    try:
        experiment = api.get_run(run_id).info.experiment_id
    except MlflowException:
        return None  # the run is another store's, or gone
    return next((model.model_id for model in _models(api, experiment, run_id) if model.name == name), None)


def _models(api: MlflowClient, experiment: str, run_id: str) -> list[Any]:
    found: list[Any] = []
    token: str | None = None
    while True:
        page = api.search_logged_models(
            [experiment], f"source_run_id = '{run_id}'", max_results=MODELS_AT_ONCE, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found
