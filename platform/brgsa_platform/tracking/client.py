"""MLflow: the only module that imports it.

Runs are made and ended by the driver through `MlflowClient`; a training worker gets the run's id and appends metrics.
Nothing here logs report text or patient identifiers.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brgsa_platform.config import flatten
from brgsa_platform.runtime.addresses import without_credentials
from brgsa_platform.tracking import connection as reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

EXPERIMENT = "brgsa"
STORE_FOLDER = "mlruns-brgsa"
TABLES_TAG = "mlflow.loggedArtifacts"  # where the UI looks for tables
CHECKPOINT_TAG = "brgsa.checkpoint"
OF_TRAINING = ("optimizer.pt", "training.json")  # of a checkpoint's files
PATIENCE = "BRGSA_MLFLOW_PATIENCE_S"
JOB = "BRGSA_JOB"  # the job on a cluster that this process belongs to, in its environment
JOB_TAG = "brgsa.job"
SECONDS_BETWEEN_SENDINGS = 1.0
SECONDS_AFTER_FAILURE = 30.0  # an attempt holds up its caller for some seconds
RESTART_S = 60.0  # what is no metric waits so long for a server that is away, and so does a run's end
POINTS_AT_ONCE = 1000  # MLflow's limit
PAGE = 200  # runs fetched at a time
PARAMETER_LENGTH = 500  # MLflow's limit on some stores

log = logging.getLogger(__name__)


def tracking_uri() -> str:
    """The tracking store: `MLFLOW_TRACKING_URI`, else SQLite in ./mlruns-brgsa/ of the current folder."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    return f"sqlite:///{Path.cwd() / STORE_FOLDER / 'mlflow.db'}"


def experiment_name() -> str:
    """The MLflow experiment: `MLFLOW_EXPERIMENT_NAME`, else "brgsa"."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)


def client(uri: str | None = None) -> MlflowClient:
    """A client of the tracking store, checked to be there.

    Raises:
        UserError: the server does not answer or does not let us in, or the SQLite folder cannot be written.
    """
    uri = uri or tracking_uri()
    reach.check(uri)
    if reach.is_server(uri):
        _check_admitted(uri)
    return _client(uri)


@functools.lru_cache
def _client(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    for noisy in ("alembic.runtime.migration", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


@functools.lru_cache
def _check_admitted(uri: str) -> None:
    """A wrong name or password is told before any work; what was right once is not asked again."""
    with _permitted(uri):
        _client(uri).search_experiments(max_results=1)


def shown_uri() -> str:
    """The tracking store as it may stand on a screen: without a password."""
    return without_credentials(tracking_uri())


def short(metric: str) -> str:
    """A metric as tables name it: auroc of val/auroc."""
    return metric.partition("/")[2]


class Run:
    """One MLflow run: metrics over steps, tags, tables and pictures.

    Metrics are sent at most once a second, and those that the server does not take now with later ones: neither many
    points nor an outage holds up a training. What waits is sent by `close` or `finish`. All else waits for a server
    that is being restarted.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id
        self._unsent: list[Any] = []
        self._next_sending = 0.0  # of time.monotonic()

    def log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entities = [Param(k, str(v)[:PARAMETER_LENGTH]) for k, v in flatten(params).items()]
        for start in range(0, len(entities), 100):
            batch = entities[start : start + 100]
            self._patiently(functools.partial(self._client.log_batch, self.run_id, params=batch))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, *, at_once: bool = False) -> None:
        """Points of one step; `at_once` where the process may be ended before it can `close`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._unsent += [Metric(k, float(v), now, step) for k, v in metrics.items()]
        if time.monotonic() < self._next_sending and not at_once:
            return
        pause = SECONDS_BETWEEN_SENDINGS
        try:
            self._send()
        except Exception as error:  # any failure of the server or its database: metrics wait for a later call
            pause = SECONDS_AFTER_FAILURE
            log.warning(
                "MLflow does not take metrics now (%s); %d points wait", type(error).__name__, len(self._unsent)
            )
        self._next_sending = time.monotonic() + pause

    def _send(self) -> None:
        """Points that the server has taken twice, its answer being lost, stand there once."""
        while self._unsent:
            self._client.log_batch(self.run_id, metrics=self._unsent[:POINTS_AT_ONCE])
            self._unsent = self._unsent[POINTS_AT_ONCE:]

    def close(self) -> None:
        """Send what waits, for a while against a server that is away; a worker's last call. A loss is only logged."""
        try:
            self._patiently(self._send)
        except Exception as error:
            log.warning("MLflow did not take the last %d points (%s)", len(self._unsent), type(error).__name__)

    def _patiently(self, work: Callable[[], Any]) -> None:
        reach.patiently(work, self._client.tracking_uri, max(RESTART_S, _patience()))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        for key, value in tags.items():
            self._patiently(functools.partial(self._client.set_tag, self.run_id, key, str(value)))

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A table as a JSON artifact that the MLflow UI shows; columns of equal length.

        It takes the place of an earlier one of this name: a run that goes on would get each row twice from MLflow's own
        `log_table`, which appends.
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
        self._patiently(lambda: self._client.log_figure(self.run_id, figure, name))

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        self._patiently(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def finish(self, status: str) -> None:
        """End the run; status is FINISHED, FAILED or KILLED (a pruned or interrupted run)."""
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
) -> Iterator[Run]:
    """An MLflow run around a verb's work; ends as FINISHED, FAILED (exception) or KILLED (interrupt).

    Args:
        verb: prepare, summarize, train, tune, trial or evaluate; stands in the tag `brgsa.verb`.
        parent: run id of the search that this trial belongs to.
        run_id: go on in this run (a resumed training) instead of making one.

    Raises:
        UserError: the tracking store cannot be reached, or does not let this user make a run.
    """

    def begin() -> Run:
        api = client()
        with _permitted(api.tracking_uri):
            if run_id is not None:
                api.update_run(run_id, status="RUNNING")
                return Run(api, run_id)
            about = {k: str(v) for k, v in _tags(verb, parent, tags).items()}
            return Run(api, api.create_run(_experiment_id(api), run_name=name or verb, tags=about).info.run_id)

    current = reach.patiently(begin, tracking_uri(), _patience())
    try:
        if run_id is None:
            current.log_params(params or {})
        yield current
    except SystemExit:  # a trial that Tune stops: its driver says how it ended, and the next one waits for this process
        raise
    except KeyboardInterrupt:
        current.finish("KILLED")
        raise
    except BaseException:
        current.finish("FAILED")
        raise
    current.finish("FINISHED")


def _patience() -> float:
    """Seconds to wait for a server that is away: `BRGSA_MLFLOW_PATIENCE_S`, default not at all.

    A search sets it for its trials: an hour's training is not to be lost to a server that is being restarted.
    """
    return float(os.environ.get(PATIENCE, "0"))


@contextmanager
def _permitted(uri: str) -> Iterator[None]:
    """What a user may not do is told in a sentence."""
    try:
        yield
    except Exception as error:
        if (refused := reach.refusal(error, uri)) is not None:
            raise refused from error
        raise


def settle(run_id: str, status: str, tags: Mapping[str, str]) -> None:
    """Give a run of another process, which may have died, its last status and tags; a server that is away is not waited for."""
    api = _client(tracking_uri())
    try:
        for key, value in tags.items():
            api.set_tag(run_id, key, value)
        if str(api.get_run(run_id).info.status) != status:
            api.set_terminated(run_id, status)
    except Exception as error:  # the study, not MLflow, is the search's record
        log.warning("MLflow does not take the status of a run now (%s)", type(error).__name__)


def log_checkpoint(run_id: str, checkpoint: Path) -> None:
    """Copy a checkpoint's model into a run's artifacts, once; not what only its training needs to go on."""
    api = client()
    if api.get_run(run_id).data.tags.get(CHECKPOINT_TAG) == checkpoint.name:
        return
    run = Run(api, run_id)  # which waits for a server that is being restarted
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name not in OF_TRAINING:
            below = path.parent.relative_to(checkpoint).as_posix()
            run.log_artifact(path, "checkpoint" if below == "." else f"checkpoint/{below}")
    run.set_tags({CHECKPOINT_TAG: checkpoint.name})


def attach(run_id: str, uri: str) -> Run:
    """The run with this id, for a worker process that only appends."""
    return Run(_client(uri), run_id)


def exists(run_id: str) -> bool:
    """Whether the tracking store still holds this run; a server that cannot tell now is no answer."""
    from mlflow.exceptions import MlflowException

    def look() -> bool:
        try:
            return str(client().get_run(run_id).info.lifecycle_stage) == "active"
        except MlflowException as error:
            if reach.status(error) >= 500 and reach.is_server(tracking_uri()):
                raise
            return False

    return reach.patiently(look, tracking_uri(), _patience())


@dataclass(frozen=True)
class Record:
    """A run as the tracking store tells it; `started` and `ended` are seconds since 1970, a metric is its last value."""

    run_id: str
    name: str
    status: str
    started: float
    ended: float | None
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]

    @property
    def verb(self) -> str:
        return self.tags.get("brgsa.verb", "")

    @property
    def parent(self) -> str | None:
        return self.tags.get("mlflow.parentRunId")


def find(where: str = "", *, order: str = "attributes.start_time DESC", limit: int | None = None) -> list[Record]:
    """The experiment's runs that MLflow's filter `where` takes, newest first; none where nothing was ever tracked."""
    uri = tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return []  # a look makes no store
    api = client()
    experiment = api.get_experiment_by_name(experiment_name())
    if experiment is None:
        return []
    found: list[Record] = []
    page = None
    while limit is None or len(found) < limit:
        wanted = PAGE if limit is None else min(PAGE, limit - len(found))
        answer = api.search_runs(
            [experiment.experiment_id], where, max_results=wanted, order_by=[order], page_token=page
        )
        found += [_record(run) for run in answer]
        page = answer.token
        if not page:
            break
    return found


def quoted(text: str) -> str:
    """A value in a filter of `find`; MLflow has no escape for a quote, so it becomes LIKE's sign for any character."""
    return "'" + text.replace("'", "_") + "'"


def runs_page() -> str:
    """Where MLflow's UI shows the experiment's runs; its start page is one for traces of language models."""
    return f"/#/experiments/{_experiment_id(client())}/runs?workflowType=machine_learning"


def metric_history(run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of each logged point, in the order of the steps."""
    points = client().get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in points)


def artifacts(run_id: str) -> list[str]:
    """Names of a run's files and (ending in /) folders."""
    return sorted(entry.path + "/" * entry.is_dir for entry in client().list_artifacts(run_id))


def _record(run: Any) -> Record:
    info, data = run.info, run.data
    return Record(
        run_id=info.run_id,
        name=info.run_name or "",
        status=info.status,
        started=info.start_time / 1000,
        ended=info.end_time / 1000 if info.end_time else None,
        params=dict(data.params),
        metrics=dict(data.metrics),
        tags=dict(data.tags),
    )


def _experiment_id(api: MlflowClient) -> str:
    from mlflow.exceptions import MlflowException

    name = experiment_name()
    experiment = api.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    uri = api.tracking_uri
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    try:
        return str(api.create_experiment(name, artifact_location=location))
    except MlflowException:
        # Another process made it between the two calls.
        experiment = api.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def _tags(verb: str, parent: str | None, tags: Mapping[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"brgsa.verb": verb, **(tags or {})}
    commit = git_commit()
    if commit:
        found["mlflow.source.git.commit"] = commit
        found["brgsa.commit"] = commit
    if parent:
        found["mlflow.parentRunId"] = parent
    if job := os.environ.get(JOB):
        found[JOB_TAG] = job
    return found


@functools.lru_cache
def git_commit() -> str | None:
    """Commit of the code that runs: `BRGSA_COMMIT` (set in images), else of the checkout that holds this file."""
    given = os.environ.get("BRGSA_COMMIT")
    if given:
        return given
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
