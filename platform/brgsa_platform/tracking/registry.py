"""MLflow's model registry: a folder of files and a loader become a version of a model that MLflow can serve."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brgsa.errors import UserError
from brgsa_platform.tracking import connection
from brgsa_platform.tracking.lineage import VERSIONS_TAG, copy_figures

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"
CARD = "MODEL_CARD.md"


@dataclass(frozen=True)
class ServedModel:
    """What MLflow needs to load and to serve a model.

    Attributes:
        loader: module with `_load_pyfunc(path)`, which gives an object whose `predict(table)` answers with a table.
        files: folder that the loader is given.
        code: packages' folders that go with the model.
        requirements: pip's, as `name==version`.
        inputs, outputs: column → its type in MLflow's words, "string" or "double" say; "[string]" is a list; a name that ends
            in "?" may be missing.
        example: column → value, of one row.
        card: what it is made of, can do and cannot do, in Markdown.
        metadata: more of it, as JSON values.
    """

    loader: str
    files: Path
    code: Sequence[Path]
    requirements: Sequence[str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    example: Mapping[str, Any]
    card: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Version:
    """A registered version; `run_id` is that of its training, where MLflow knows it."""

    name: str
    number: str
    run_id: str | None

    @property
    def uri(self) -> str:
        """What MLflow's commands take."""
        return f"models:/{self.name}@{ALIAS}"


def register(model: ServedModel, name: str, *, logged_as: str, run_id: str | None, model_id: str | None) -> Version:
    """Make a model the next version, and the champion, of a name in the registry.

    Args:
        logged_as: its name among MLflow's models, where it is not one of them yet.
        run_id, model_id: of its training and of itself in MLflow, where it has them.

    Raises:
        UserError: the name cannot be one ("model-name"); see also `connection.client`.
    """
    from mlflow.exceptions import MlflowException

    if not name or set(name) & set("/:.%\"'") or name != name.strip():
        raise UserError(
            f"{name!r} cannot name a model in MLflow: choose a --name of letters, digits, - and _.",
            code="model-name",
            field="--name",
            value=name,
        )
    api = connection.client()
    with connection.permitted(api.tracking_uri), _known_to_mlflow(api.tracking_uri):
        model_id = _unregistered(api, logged_as, run_id, model_id)
        with tempfile.TemporaryDirectory() as folder:
            api.log_model_artifacts(model_id, str(_saved(model, Path(folder) / "model", run_id, model_id)))
        api.finalize_logged_model(model_id, "READY")
        api.set_logged_model_tags(model_id, {"mlflow.model.isExternal": "false"})
        try:
            api.create_registered_model(name, description="A brgsa checkpoint; each version has its model card.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = api.create_model_version(
            name, f"models:/{model_id}", run_id=run_id, model_id=model_id, description=model.card
        )
        api.set_registered_model_alias(name, ALIAS, made.version)
        # Where MLflow's pages look for a model's versions; a server sets it itself.
        api.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps([{"name": name, "version": str(made.version)}])})
        if run_id is not None:
            api.set_tag(run_id, "brgsa.registered", f"{name}/{made.version}")
    return Version(name, str(made.version), run_id)


@contextmanager
def _known_to_mlflow(uri: str) -> Iterator[None]:
    """The store is also that of MLflow's own clients: its registry in a database asks one of them for the model."""
    name = "MLFLOW_TRACKING_URI"
    before = os.environ.get(name)
    os.environ[name] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _unregistered(api: MlflowClient, name: str, run_id: str | None, model_id: str | None) -> str:
    """The id of a model without a version: what stands under a version is never written again."""
    known = None if model_id is None else api.get_logged_model(model_id)
    if known is not None and VERSIONS_TAG not in known.tags:
        return str(known.model_id)
    experiment = connection.experiment_id(api) if known is None else known.experiment_id
    params = None if known is None else known.params
    made = str(api.create_logged_model(experiment, name, run_id, params=params, model_type="checkpoint").model_id)
    if known is not None:
        copy_figures(api, known, made)
    return made


def _saved(model: ServedModel, folder: Path, run_id: str | None, model_id: str) -> Path:
    """The model as MLflow lays it out in a folder."""
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    with warnings.catch_warnings():  # of what MLflow does with pandas
        warnings.simplefilter("ignore")
        pyfunc.save_model(
            str(folder),
            loader_module=model.loader,
            data_path=str(model.files),
            code_paths=[str(path) for path in model.code],
            pip_requirements=list(model.requirements),
            signature=ModelSignature(_schema(model.inputs), _schema(model.outputs)),
            input_example=pd.DataFrame([dict(model.example)]),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            metadata=dict(model.metadata),
        )
    (folder / CARD).write_text(model.card, encoding="utf-8")
    return folder


def _schema(columns: Mapping[str, str]) -> Any:
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    def spec(name: str, kind: str) -> Any:
        element = DataType[kind.strip("[]")]
        return ColSpec(
            Array(element) if kind.startswith("[") else element, name.rstrip("?"), required=not name.endswith("?")
        )

    return Schema([spec(name, kind) for name, kind in columns.items()])
