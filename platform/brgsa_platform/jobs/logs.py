"""Logs of jobs in MLflow: what remains of a job when its cluster is gone."""

from __future__ import annotations

import tempfile
from pathlib import Path

from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection, query

FILE = "job.log"  # among the artifacts of the job's run


def save_log(job: str, path: Path) -> str:
    """Save a job's log with the run that the job has made, or with a run of its own where the job has made none.

    Args:
        path: the log; its name must be `FILE`.

    Returns:
        The run's id.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    runs = _runs_of_job(job)
    if runs:
        tracking.attach(runs[0].run_id, connection.tracking_uri()).log_artifact(path)
        return runs[0].run_id
    with tracking.run("submit", name=job, tags={tracking.JOB_TAG: job}) as own_run:
        own_run.log_artifact(path)
    return own_run.run_id


def load_log(job: str) -> str | None:
    """The log that `save_log` has saved; None where there is none.

    Raises:
        UserError: the tracking store cannot be reached.
    """
    for run in _runs_of_job(job):
        if FILE in query.artifacts(run.run_id):
            with tempfile.TemporaryDirectory(prefix="brgsa-") as scratch:
                path = connection.client().download_artifacts(run.run_id, FILE, scratch)
                return Path(path).read_text(encoding="utf-8")
    return None


def _runs_of_job(job: str) -> list[query.Record]:
    """The runs that a job has made, oldest first, without the trials of a search."""
    runs = query.find(f"tags.`{tracking.JOB_TAG}` = {query.quoted(job)}", order="attributes.start_time ASC")
    return [run for run in runs if run.parent is None]
