"""Runs that are written: a driver makes and ends them, a training worker gets a run's id and appends metrics.

No report text and no patient identifiers are logged.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brgsa_platform.config import flatten
from brgsa_platform.runtime.version import git_commit
from brgsa_platform.tracking import connection, lineage, query
from brgsa_platform.tracking.lineage import POINTS_AT_ONCE, Dataset, KeptModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

TABLES_TAG = "mlflow.loggedArtifacts"  # where the UI looks for tables
CHECKPOINT_TAG = "brgsa.checkpoint"
COMMAND_TAG = "mlflow.source.name"
NOTE_TAG = "mlflow.note.content"  # a run's description
OUR_NOTE_TAG = "brgsa.note"  # the digest of the description that we gave it: a person's own is kept
# What leaves the machine of a checkpoint's folder. An optimiser's state serves only its training, and the tables of an
# evaluation that was written there name volumes.
MODEL_FILES = ("model.json", "model.safetensors", "run.json", "text")
JOB = "BRGSA_JOB"  # the environment variable with the name of the cluster's job that this process belongs to
JOB_TAG = "brgsa.job"
SECONDS_BETWEEN_SENDINGS = 1.0
SECONDS_AFTER_FAILURE = 30.0  # until metrics are tried again: an attempt holds up its caller for some seconds
SECONDS_FOR_RESTART = 60.0  # that everything else waits for a server that is away, and metrics at a run's end
NOT_IN_A_METRIC = re.compile(r"[^\w. :-]")
PARAMETERS_AT_ONCE = 100  # MLflow's limit
PARAMETER_LENGTH = 500  # MLflow's limit on some stores

log = logging.getLogger(__name__)


class Run:
    """One MLflow run: parameters, metrics over steps, tags, tables and pictures.

    Metrics are sent at most once a second. Those that the server does not take are sent with later ones, so that neither
    many points nor an outage holds up a training; `close` and `finish` send the rest. Everything else waits for a server
    that is being restarted, for `SECONDS_FOR_RESTART` or longer where `connection.patience` says so, and then fails with
    MLflow's exception. Data, models and description say what the run's figures are of; they fail with a warning.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, data: Sequence[Dataset] = (), model: str | None = None
    ) -> None:
        """`data` it works on; `model`: id in MLflow of the model that its metrics are of, measured on the first of `data`."""
        self._client = client
        self.run_id = run_id
        self._data = list(data)
        self._metrics_of = {"model_id": model, **lineage.about(self._data[0] if self._data else None)} if model else {}
        self._description, self._is_away = "", False
        self._unsent: list[Any] = []
        self._next_sending = 0.0  # of time.monotonic()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log a tree of parameters; `{"optim": {"lr": …}}` is the parameter optim.lr. Long values are cut."""
        from mlflow.entities import Param

        entities = [Param(k, str(v)[:PARAMETER_LENGTH]) for k, v in flatten(params).items()]
        for start in range(0, len(entities), PARAMETERS_AT_ONCE):
            batch = entities[start : start + PARAMETERS_AT_ONCE]
            self._patiently(functools.partial(self._client.log_batch, self.run_id, params=batch))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, *, at_once: bool = False) -> None:
        """Log the metrics of one step; `at_once` where the process may be ended before it can `close`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._unsent += [Metric(metric_name(k), float(v), now, step, **self._metrics_of) for k, v in metrics.items()]
        if time.monotonic() < self._next_sending and not at_once:
            return
        pause = SECONDS_BETWEEN_SENDINGS
        try:
            self._send()
        except Exception as error:  # whatever fails at the server or its database: metrics wait for a later call
            pause = SECONDS_AFTER_FAILURE
            log.warning(
                "MLflow does not take metrics now (%s); %d points wait", type(error).__name__, len(self._unsent)
            )
        self._next_sending = time.monotonic() + pause

    def _send(self) -> None:
        # A point that is sent twice, because the server's answer was lost, is stored once.
        while self._unsent:
            self._client.log_batch(self.run_id, metrics=self._unsent[:POINTS_AT_ONCE])
            self._unsent = self._unsent[POINTS_AT_ONCE:]

    def close(self) -> None:
        """Send the metrics that wait, and wait for a server that is away; a worker's last call. A loss is only logged."""
        try:
            self._patiently(self._send)
        except Exception as error:
            log.warning("MLflow did not take the last %d points (%s)", len(self._unsent), type(error).__name__)

    def _patiently(self, work: Callable[[], Any]) -> None:
        seconds = max(SECONDS_FOR_RESTART, connection.patience())
        connection.patiently(work, self._client.tracking_uri, seconds)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; a value that was there is replaced."""
        for key, value in tags.items():
            self._patiently(functools.partial(self._client.set_tag, self.run_id, key, str(value)))

    def describe(self, text: str) -> None:
        """Set the description that MLflow shows of the run (Markdown), unless a person has written one meanwhile."""
        self._description = text

        def send() -> None:
            tags = self._client.get_run(self.run_id).data.tags
            if NOTE_TAG in tags and _digest(tags[NOTE_TAG]) != tags.get(OUR_NOTE_TAG):
                return
            self._client.set_tag(self.run_id, OUR_NOTE_TAG, _digest(text))
            self._client.set_tag(self.run_id, NOTE_TAG, text)

        self._told("description", send)

    def describe_failure(self, error: BaseException) -> None:
        """Add to the description why the run ends: the kind of error, whose words may tell of a patient."""
        kind = getattr(error, "code", "") or type(error).__name__
        self.describe(f"{self._description}\n\n**Failed**: {kind}.".strip())

    def log_models(self, models: Sequence[KeptModel]) -> None:
        """Show these checkpoints, and no others of the run, among MLflow's models, with the run's metrics at their steps."""
        self._told("models", lambda: lineage.log_models(self._client, self.run_id, models, self._data))

    def log_origin(self) -> None:
        """Name the data that the run works on, and the model that it measures."""
        from mlflow.entities import LoggedModelInput

        def send() -> None:
            lineage.log_datasets(self._client, self.run_id, self._data)
            if model := self._metrics_of.get("model_id"):
                self._client.log_inputs(self.run_id, models=[LoggedModelInput(model)])

        self._told("data", send)

    def _told(self, what: str, work: Callable[[], Any]) -> None:
        """Do what a reader is told beside the figures: no training is lost over it, as with an older server.

        A server that stays away is waited for once, not for each of them.
        """
        if self._is_away:
            return
        try:
            self._patiently(work)
        except Exception as error:
            self._is_away = connection.is_away(error)
            log.warning("MLflow does not take the %s of a run (%s)", what, type(error).__name__)

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log columns of equal length as a JSON artifact that the MLflow UI shows as a table.

        A table of the same name is replaced. MLflow's own `log_table` appends, and a run that goes on would get each row
        twice.
        """
        import pandas as pd

        text = pd.DataFrame(dict(columns)).to_json(orient="split", index=False)

        def send() -> None:
            self._client.log_text(self.run_id, text, name)
            tables = json.loads(self._client.get_run(self.run_id).data.tags.get(TABLES_TAG, "[]"))
            if (entry := {"path": name, "type": "table"}) not in tables:
                self._client.set_tag(self.run_id, TABLES_TAG, json.dumps([*tables, entry]))

        self._patiently(send)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Log a picture under a name that ends in .png."""
        self._patiently(lambda: self._client.log_figure(self.run_id, figure, name))

    def log_text(self, text: str, name: str) -> None:
        """Log a text as a file of this name."""
        self._patiently(lambda: self._client.log_text(self.run_id, text, name))

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Log a file, into a folder of the run's artifacts."""
        self._patiently(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def finish(self, status: str) -> None:
        """Send what waits and end the run as FINISHED, FAILED or KILLED (a pruned or interrupted run)."""
        self.close()
        self._patiently(lambda: self._client.set_terminated(self.run_id, status))


@contextmanager
def run(
    verb: str,
    *,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    parent: str | None = None,
    run_id: str | None = None,
    data: Sequence[Dataset] = (),
    model: str | None = None,
) -> Iterator[Run]:
    """An MLflow run around a verb's work. It ends as FINISHED, as FAILED (exception) or as KILLED (interrupt).

    Args:
        verb: what makes the run, such as "train" or "trial"; it becomes the tag `brgsa.verb`.
        name: the run's name; by default the verb.
        params, tags: what a new run begins with.
        parent: the run id of the search that a trial belongs to.
        run_id: go on in this run, as a resumed training does, instead of making one.
        data, model: see `Run`.

    Raises:
        UserError: the tracking store cannot be reached, or does not let this user make a run (see `connection.client`).
    """

    def begin() -> Run:
        api = connection.client()
        with connection.permitted(api.tracking_uri):
            if run_id is not None:
                api.update_run(run_id, status="RUNNING")
                return Run(api, run_id, data, model)
            created = api.create_run(
                connection.experiment_id(api), run_name=name or verb, tags=_tags(api, verb, parent, tags or {})
            )
            return Run(api, created.info.run_id, data, model)

    current = connection.patiently(begin, connection.tracking_uri(), connection.patience())
    try:
        if run_id is None:
            current.log_params(params or {})
        current.log_origin()
        yield current
    except SystemExit:  # Tune stops a trial: the search's driver tells how it ended, and the next trial waits for us
        raise
    except KeyboardInterrupt:
        current.finish("KILLED")
        raise
    except BaseException as error:
        current.describe_failure(error)
        current.finish("FAILED")
        raise
    current.finish("FINISHED")


def settle(run_id: str, status: str, tags: Mapping[str, str]) -> None:
    """Give a run of another process, which may have died, its last status and tags.

    A server that is away is not waited for, and a failure is only logged: a search's record is its study, not MLflow.
    """
    api = connection.unchecked_client(connection.tracking_uri())
    try:
        for key, value in tags.items():
            api.set_tag(run_id, key, value)
        if str(api.get_run(run_id).info.status) != status:
            api.set_terminated(run_id, status)
    except Exception as error:
        log.warning("MLflow does not take the status of a run now (%s)", type(error).__name__)


def log_checkpoint(run_id: str, checkpoint: Path) -> None:
    """Copy a checkpoint's model, without its optimiser's state, into a run's artifacts, unless it is there already."""
    api = connection.client()
    if api.get_run(run_id).data.tags.get(CHECKPOINT_TAG) == checkpoint.name:
        return
    run = Run(api, run_id)
    for path in sorted(checkpoint.rglob("*")):
        below = path.relative_to(checkpoint)
        if path.is_file() and below.parts[0] in MODEL_FILES:
            run.log_artifact(path, (Path("checkpoint") / below.parent).as_posix())
    run.set_tags({CHECKPOINT_TAG: checkpoint.name})


def add_text(run_id: str, text: str, name: str) -> bool:
    """Log a text as a file of a run that has ended; False where this tracking store has no such run, or does not take it."""
    uri = connection.tracking_uri()
    file = connection.sqlite_file(uri)
    try:
        if (file is not None and not file.is_file()) or not query.exists(run_id):
            return False
        attach(run_id, uri).log_text(text, name)
    except Exception as error:  # whatever fails there: what is logged lies on the disk as well
        log.warning("MLflow does not take %s (%s)", name, type(error).__name__)
        return False
    return True


def attach(run_id: str, uri: str) -> Run:
    """The run with this id, for a worker process that only appends."""
    return Run(connection.unchecked_client(uri), run_id)


def find_model(run_id: str, name: str) -> str | None:
    """The id of a run's model with this name (see `lineage.model_name`), where the tracking store can tell."""
    try:
        return lineage.find_model(connection.client(), run_id, name)
    except Exception as error:
        log.warning("MLflow does not tell the models of a run (%s)", type(error).__name__)
        return None


def _tags(api: MlflowClient, verb: str, parent: str | None, given: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a new run: those given, and what made it."""
    tags = {"brgsa.verb": verb, **{key: str(value) for key, value in given.items()}}
    # MLflow shows a JOB's name whole, and of a LOCAL one only what follows the last slash.
    tags |= {COMMAND_TAG: _command(api, parent), "mlflow.source.type": "JOB"}
    if commit := git_commit():
        tags |= {"mlflow.source.git.commit": commit, "brgsa.commit": commit}
    if parent:
        tags["mlflow.parentRunId"] = parent
    if job := os.environ.get(JOB):
        tags[JOB_TAG] = job
    return tags


def _command(api: MlflowClient, parent: str | None) -> str:
    """The command behind a run; a trial's process is one of Ray's, and the command is its search's."""
    if parent and (of_search := api.get_run(parent).data.tags.get(COMMAND_TAG)):
        return str(of_search)
    return lineage.command()


def metric_name(key: str) -> str:
    """A metric's name as MLflow takes it: signs that it refuses, as in an abnormality's name, become underscores."""
    parts = ["_" if part in ("", ".", "..") else NOT_IN_A_METRIC.sub("_", part) for part in key.split("/")]
    return "/".join(parts)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
