"""What the tracking store holds: runs that a filter selects, a run's metrics and files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brgsa_platform.tracking import connection

RUNS_AT_ONCE = 200


@dataclass(frozen=True)
class Record:
    """A run as the tracking store tells it.

    Attributes:
        started, ended: seconds since 1970; `ended` is None while it runs.
        metrics: the last value of each.
    """

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
        """The verb that made it, "trial" for a search's; empty for a run that is not the platform's."""
        return self.tags.get("brgsa.verb", "")

    @property
    def parent(self) -> str | None:
        """The run id of the search that a trial belongs to."""
        return self.tags.get("mlflow.parentRunId")


def find(where: str = "", *, order: str = "attributes.start_time DESC", limit: int | None = None) -> list[Record]:
    """The experiment's runs that a filter selects.

    Args:
        where: a filter in MLflow's language; empty: all runs.
        order: MLflow's; by default the newest come first.
        limit: the number of runs at most.

    Raises:
        UserError: see `connection.client`. Where nothing was ever tracked there are no runs, and no store is made.
    """
    file = connection.sqlite_file(connection.tracking_uri())
    if file is not None and not file.is_file():
        return []
    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    if experiment is None:
        return []
    records: list[Record] = []
    page = None
    while limit is None or len(records) < limit:
        wanted = RUNS_AT_ONCE if limit is None else min(RUNS_AT_ONCE, limit - len(records))
        answer = api.search_runs(
            [experiment.experiment_id], where, max_results=wanted, order_by=[order], page_token=page
        )
        records += [_record(run) for run in answer]
        page = answer.token
        if not page:
            break
    return records


def quoted(text: str) -> str:
    """A value in a filter of `find`; MLflow has no escape for a quote, so it becomes LIKE's sign for any character."""
    return "'" + text.replace("'", "_") + "'"


def exists(run_id: str) -> bool:
    """Whether the tracking store still holds this run.

    Raises:
        MlflowException, UserError: the server cannot tell now.
    """
    from mlflow.exceptions import MlflowException

    uri = connection.tracking_uri()

    def look() -> bool:
        try:
            return str(connection.client().get_run(run_id).info.lifecycle_stage) == "active"
        except MlflowException as error:
            if connection.status(error) >= 500 and connection.is_server(uri):
                raise
            return False

    return connection.patiently(look, uri, connection.patience())


def metric_history(run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of each logged point, in the order of the steps."""
    points = connection.client().get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in points)


def artifacts(run_id: str) -> list[str]:
    """Names of a run's files and (ending in /) folders."""
    return sorted(entry.path + "/" * entry.is_dir for entry in connection.client().list_artifacts(run_id))


def short(metric: str) -> str:
    """A metric as tables name it: auroc of val/auroc."""
    return metric.partition("/")[2]


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
