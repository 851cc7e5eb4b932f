"""Logs of jobs in MLflow: what is left of one when its cluster is gone."""

from __future__ import annotations

import tempfile
from pathlib import Path

from brgsa_platform.tracking import client as tracking

FILE = "job.log"  # among the artifacts of its run


def save_log(job: str, path: Path) -> str:
    """Keep a job's log (a file named `FILE`) with the run that the job made, or with one of its own where it made none.

    Returns the run's id. Raises UserError where the tracking store cannot be reached.
    """
    made = _runs_of_job(job)
    if made:
        tracking.attach(made[0].run_id, tracking.tracking_uri()).log_artifact(path)
        return made[0].run_id
    with tracking.run("submit", name=job, tags={tracking.JOB_TAG: job}) as own:
        own.log_artifact(path)
    return own.run_id


def load_log(job: str) -> str | None:
    """The log that `save_log` kept, None where there is none."""
    for record in _runs_of_job(job):
        if FILE in tracking.artifacts(record.run_id):
            with tempfile.TemporaryDirectory(prefix="brgsa-") as scratch:
                path = tracking.client().download_artifacts(record.run_id, FILE, scratch)
                return Path(path).read_text(encoding="utf-8")
    return None


def _runs_of_job(job: str) -> list[tracking.Record]:
    """Oldest first, without the trials of a search."""
    made = tracking.find(f"tags.`{tracking.JOB_TAG}` = {tracking.quoted(job)}", order="attributes.start_time ASC")
    return [record for record in made if record.parent is None]
