"""`brgsa submit` and `brgsa jobs …`: verbs that run elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brgsa.errors import UserError

if TYPE_CHECKING:
    from brgsa_platform.jobs.base import Jobs

app = typer.Typer(help="Jobs on a cluster: list, status, logs, stop.", no_args_is_help=True, rich_markup_mode=None)

Ray = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="A Ray cluster's dashboard: http://HOST:8265.")
]
KubeRay = Annotated[bool, typer.Option("--kuberay", help="RayJobs on Kubernetes, by kubectl and KUBECONFIG.")]
Namespace = Annotated[str, typer.Option(help="kuberay: the namespace.")]
Context = Annotated[str | None, typer.Option(help="kuberay: a context of KUBECONFIG; default the current one.")]
Name = Annotated[str, typer.Argument(metavar="JOB", help="A job's name, as `brgsa jobs list` has it.")]


def submit(
    about: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- VERB [ARGUMENT]...", help="What to run.", show_default=False)
    ] = None,
    ray: Ray = None,
    kuberay: KubeRay = False,
    overlay: Annotated[str, typer.Option(help="kuberay: an overlay of k8s/overlays, or a folder of RayJobs.")] = "gpu",
    namespace: Namespace = "brgsa",
    context: Context = None,
    name: Annotated[str | None, typer.Option(help="kuberay: the RayJob's name; default a new one.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="kuberay: delete a RayJob of this name first.")] = False,
    working_dir: Annotated[
        Path, typer.Option(help="ray: the folder that goes with the job, without data, runs and caches.")
    ] = Path("."),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the job.")] = False,
) -> None:
    """Run a verb as a job on a cluster, stream its log, and exit with its status (130 when it was stopped)."""
    from brgsa_platform.jobs import kuberay as kubernetes
    from brgsa_platform.jobs import ray_jobs

    _check_one_cluster(ray, kuberay)
    words = command or ()
    verbs = about.find_root().command.commands  # type: ignore[attr-defined]
    if ray:
        status = ray_jobs.submit(words, verbs, ray, working_dir, dry_run=dry_run, wait=not no_wait)
    else:
        kubectl = kubernetes.Kubectl(context, namespace)
        status = kubernetes.submit(
            words, verbs, kubectl, overlay, name=name, replace=replace, dry_run=dry_run, wait=not no_wait
        )
    sys.exit(status)


@app.command("list")
def list_command(
    ray: Ray = None, kuberay: KubeRay = False, namespace: Namespace = "brgsa", context: Context = None
) -> None:
    """Jobs, newest first."""
    from brgsa_platform.jobs.base import print_jobs

    print_jobs(_jobs(ray, kuberay, namespace, context).list())


@app.command("status")
def status_command(
    job: Name, ray: Ray = None, kuberay: KubeRay = False, namespace: Namespace = "brgsa", context: Context = None
) -> None:
    """A job's state; exit status 0 while it runs and after it succeeded, its own after it failed, 130 when it was stopped."""
    state = _jobs(ray, kuberay, namespace, context).get(job)
    typer.echo(state.summary())
    sys.exit(state.exit_status)


@app.command("logs")
def logs_command(
    job: Name,
    ray: Ray = None,
    kuberay: KubeRay = False,
    namespace: Namespace = "brgsa",
    context: Context = None,
    follow: Annotated[bool, typer.Option("--follow", help="To its end; exit with its status.")] = False,
) -> None:
    """What a job has logged; from MLflow where its cluster is gone."""
    from brgsa_platform.jobs.base import follow_to_end, print_log
    from brgsa_platform.jobs.logs import load_log
    from brgsa_platform.tracking import connection

    jobs = _jobs(ray, kuberay, namespace, context)
    if follow:
        sys.exit(follow_to_end(jobs, job))
    if print_log(jobs, job):
        return
    log = load_log(job)
    if log is None:
        raise UserError(
            f"There is no log of {job}, neither on the cluster nor in MLflow ({connection.shown_uri()}).",
            code="no-log",
            value=job,
        )
    typer.echo(log, nl=False)


@app.command("stop")
def stop_command(
    job: Name, ray: Ray = None, kuberay: KubeRay = False, namespace: Namespace = "brgsa", context: Context = None
) -> None:
    """Stop a job. The same verb, started again, goes on from what it has finished.

    A RayJob is deleted with its cluster; its log is kept in MLflow.
    """
    jobs = _jobs(ray, kuberay, namespace, context)
    state = jobs.get(job)
    if state.finished:
        typer.echo(f"{state.summary()}: nothing to stop.")
        return
    jobs.stop(job)
    typer.echo(f"{job} is stopped.")


def _jobs(ray: str | None, kuberay: bool, namespace: str, context: str | None) -> Jobs:
    from brgsa_platform.jobs.kuberay import Kubectl, KubeJobs
    from brgsa_platform.jobs.ray_jobs import RayJobs

    _check_one_cluster(ray, kuberay)
    return RayJobs(ray) if ray else KubeJobs(Kubectl(context, namespace))


def _check_one_cluster(ray: str | None, kuberay: bool) -> None:
    if bool(ray) == kuberay:
        raise UserError("Name the cluster: either --ray http://HOST:8265 or --kuberay.", code="no-cluster")
