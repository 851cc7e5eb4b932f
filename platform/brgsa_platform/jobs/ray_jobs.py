"""Jobs on a running Ray cluster, through its dashboard's job server.

Ray shows a job's runtime environment in the cluster's process lists (`setup_worker.py`), in its logs and in the job's
description, and the job's command too. So passwords go by neither: the cluster's own nodes have them in their environment
(docs/submit.md).
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from brgsa.errors import UserError
from brgsa_platform.jobs.base import ClusterUnreachable, Job, JobNotFound, Log, follow_to_end, next_steps, notify
from brgsa_platform.jobs.commands import Command, Verbs, check_no_credentials, check_paths, new_name, parse
from brgsa_platform.jobs.packing import SOURCE_ROOT, JobFiles, collect_files
from brgsa_platform.runtime.addresses import has_credentials, is_loopback, without_credentials
from brgsa_platform.runtime.version import git_commit
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection

DASHBOARD_PORT = 8265
OTHER_PORTS = {6379: "Ray's GCS", 10001: "the Ray client"}
FORWARDED = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
FIRST_ANSWER_SECONDS = 30.0  # a cluster at work answers late
ANSWER_SECONDS = 60.0  # Ray's own client would wait for ever
STOP_SECONDS = 60.0  # how long a job may take to end after it was told to

T = TypeVar("T")


@dataclass(frozen=True)
class Submission:
    """A job as it is sent.

    Attributes:
        entrypoint: the command line that the cluster runs.
        environment: its environment variables.
        files: its working folder.
    """

    name: str
    entrypoint: str
    environment: dict[str, str]
    files: JobFiles

    def as_json(self, address: str) -> str:
        """The submission for a reader. It holds no password, because none is sent."""
        folder = {"folder": str(self.files.folder), "files": len(self.files.files), "bytes": self.files.size}
        tree: dict[str, Any] = {"address": address, "submission_id": self.name, "entrypoint": self.entrypoint}
        tree["runtime_env"] = {"working_dir": folder, "env_vars": self.environment}
        tree["not_sent"] = [name for name in CREDENTIALS if os.environ.get(name)]
        return json.dumps(tree, indent=1)


def build_submission(command: Command, folder: Path) -> Submission:
    """What is sent for `brgsa VERB …` with this working folder.

    Raises:
        UserError: see `check_paths`, `check_no_credentials` and `collect_files`; or MLFLOW_TRACKING_URI is a file of this
            machine ("local-tracking") or holds a name or password ("password-in-address").
    """
    check_paths(command)
    check_no_credentials(command)
    name = new_name(command.verb)
    environment = {"PYTHONPATH": SOURCE_ROOT, tracking.JOB: name, **_tracking_environment()}
    if commit := git_commit():
        environment["BRGSA_COMMIT"] = commit  # the job's folder has no repository to ask
    # `python` and not its path here: in a job it is the cluster's, found on PATH.
    entrypoint = shlex.join(["python", "-m", "brgsa_platform.cli", *command.words])
    return Submission(name, entrypoint, environment, collect_files(folder))


def _tracking_environment() -> dict[str, str]:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    shown = without_credentials(uri)
    if uri and not connection.is_server(uri):
        raise UserError(
            f"MLFLOW_TRACKING_URI is {shown}, which a job on another machine cannot reach: start a server and give "
            "its http:// address, or unset it where the cluster's nodes have their own.",
            code="local-tracking",
            field="MLFLOW_TRACKING_URI",
            value=shown,
        )
    if has_credentials(uri):
        raise UserError(
            "MLFLOW_TRACKING_URI holds a name or password, which process lists and logs would show: take it out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster's nodes.",
            code="password-in-address",
            field="MLFLOW_TRACKING_URI",
        )
    return {name: os.environ[name] for name in FORWARDED if os.environ.get(name)}


def warnings(address: str) -> list[str]:
    """What the user should know before a job is sent, a sentence each."""
    sentences = []
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        sentences.append(
            "MLFLOW_TRACKING_URI is not set: the job tracks where the cluster's nodes say, or else in a file that is deleted "
            "with it."
        )
    elif is_loopback(uri) and not is_loopback(address):
        sentences.append(f"MLFLOW_TRACKING_URI is {uri}: on the cluster that is another machine than this one.")
    held = [name for name in CREDENTIALS if os.environ.get(name)]
    if held:
        sentences.append(
            f"{' and '.join(held)}: not sent, the cluster's nodes need them in their environment (docs/submit.md)."
        )
    return sentences


def parse_address(given: str) -> str:
    """The http(s) address of a cluster's job server.

    `HOST` and `HOST:PORT` count as http. The default port of another of Ray's services is refused.

    Raises:
        UserError: it is not an address ("bad-address"), it holds a password ("password-in-address"), or it is the address
            of another service ("not-a-dashboard").
    """
    text = given.strip().rstrip("/")
    scheme, sign, rest = text.partition("://")
    if not sign:
        scheme, rest = "http", text
    example = f"give the dashboard's address, such as http://HOST:{DASHBOARD_PORT}"
    if has_credentials(f"{scheme}://{rest}"):
        raise UserError(
            f"--ray holds a name or password: {example}, and set RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH instead.",
            code="password-in-address",
            field="--ray",
        )
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _bad_address(given, f"is not an address ({error}): {example}") from error
    if not host or given in ("auto", "local") or " " in text:
        raise _bad_address(given, f"is not the address of a cluster: {example}")
    if scheme == "ray" or (scheme == "http" and port in OTHER_PORTS):
        service = OTHER_PORTS.get(port or 0, "the Ray client")
        raise UserError(
            f"--ray {given} is the address of {service}, which takes no jobs: give the dashboard's, "
            f"http://{host}:{DASHBOARD_PORT} unless it was moved.",
            code="not-a-dashboard",
            field="--ray",
            value=given,
        )
    if scheme not in ("http", "https"):
        raise _bad_address(given, f"is of an unknown kind: {example}")
    if not sign and port is None:
        return f"http://{parts.netloc}:{DASHBOARD_PORT}"
    return f"{scheme}://{rest}"


def _bad_address(given: str, fault: str) -> UserError:
    return UserError(f"--ray {given!r} {fault}.", code="bad-address", field="--ray", value=given)


class RayJobs:
    """The jobs of one Ray cluster, by the address of its job server; see `Jobs`.

    Raises:
        ClusterUnreachable: nothing answers at the address.
        UserError: see `parse_address`; another server answers ("not-a-dashboard"); the token cannot be read
            ("unreadable-token", "empty-token"), is missing or is refused ("token-needed", "token-refused").
    """

    def __init__(self, address: str) -> None:
        self.address = parse_address(address)
        self.options = f"--ray {self.address}"
        self.saves_logs = bool(os.environ.get("MLFLOW_TRACKING_URI"))  # the head keeps them as long as it lives
        _check_dashboard(self.address)
        _check_token()
        self._client = self._call(lambda: _client(self.address))

    def submit(self, submission: Submission) -> None:
        """Send the folder, unless the cluster has the same one already, and start the job."""
        with tempfile.TemporaryDirectory(prefix="brgsa-") as scratch:
            archive = Path(scratch) / "job.zip"
            submission.files.write_archive(archive)
            runtime = {"working_dir": str(archive), "env_vars": submission.environment}
            self._call(
                lambda: self._client.submit_job(
                    entrypoint=submission.entrypoint, submission_id=submission.name, runtime_env=runtime
                )
            )

    def list(self) -> list[Job]:
        """See `Jobs.list`; without the drivers that were started on a node."""
        return [_job(details) for details in self._call(self._client.list_jobs) if details.submission_id]

    def get(self, name: str) -> Job:
        """See `Jobs.get`."""
        return _job(self._call(lambda: self._client.get_job_info(name), name))

    def log(self, name: str) -> Log:
        """See `Jobs.log`."""
        return _RayLog(self, name)

    def stop(self, name: str) -> None:
        """See `Jobs.stop`.

        Raises:
            RuntimeError: the job has not ended after `STOP_SECONDS`.
        """
        self._call(lambda: self._client.stop_job(name), name)
        end = time.monotonic() + STOP_SECONDS
        while not self.get(name).finished:
            if time.monotonic() > end:
                raise RuntimeError(f"{name} was told to stop and has not after {STOP_SECONDS:.0f} s")
            time.sleep(0.5)

    def text(self, name: str) -> str:
        """All that the job has logged so far."""
        return str(self._call(lambda: self._client.get_job_logs(name), name))

    def lines(self, name: str) -> Iterator[str]:
        """What the job logs, from the beginning and as it comes."""
        import asyncio

        loop = asyncio.new_event_loop()
        pieces = self._client.tail_job_logs(name)
        try:
            while True:
                yield loop.run_until_complete(anext(pieces))
        except StopAsyncIteration:
            pass
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def _call(self, work: Callable[[], T], name: str = "") -> T:
        """Do a piece of work with Ray's client, and raise what `Jobs` promises in place of the client's errors."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            return work()
        except (requests.ConnectionError, requests.Timeout, ConnectionError) as error:
            raise _unreachable(self.address, type(error).__name__) from error
        except AuthenticationError as error:
            raise _token_refused(self.address, "required" in str(error).partition("\n")[0]) from None
        except RuntimeError as error:
            if name and "status code 404" in str(error):
                raise JobNotFound(
                    f"No job {name} on {self.address}: `brgsa jobs list {self.options}` shows what is there.",
                    code="no-such-job",
                    value=name,
                ) from error
            raise


@dataclass(frozen=True)
class _RayLog:
    """See `Log`; the source is the job's name."""

    jobs: RayJobs
    source: str

    def read(self, follow: bool) -> Iterator[str]:
        """The job's log so far; with `follow`, also what comes until its end."""
        if follow:
            yield from self.jobs.lines(self.source)
        else:
            yield self.jobs.text(self.source)


def _client(address: str) -> Any:
    """Ray's client of the job server, with a limit for each answer."""
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard_sdk", "job.sdk"):  # they log two lines for each upload and for each end of a stream
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": ANSWER_SECONDS, **options})

    # Ray's client prefers these to the address that it is given.
    hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        return Client(address, verify=os.environ.get("SSL_CERT_FILE") or True)
    finally:
        os.environ.update(hidden)


def _check_dashboard(address: str) -> None:
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=FIRST_ANSWER_SECONDS) as answer:
            version = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # it asks for a token, which Ray's client sends
            return
        raise _not_a_dashboard(address, f"status {error.code} for /api/version") from error
    except OSError as error:
        raise _unreachable(address, str(getattr(error, "reason", error))) from error
    except (ValueError, HTTPException) as error:
        raise _not_a_dashboard(address, "/api/version is not JSON") from error
    if not isinstance(version, dict) or "ray_version" not in version:
        raise _not_a_dashboard(address, "/api/version names no Ray")


def _check_token() -> None:
    """Check the file of the token, and have the token sent: Ray's client sends none without RAY_AUTH_MODE."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path:
        try:
            empty = not Path(path).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UserError(
                f"RAY_AUTH_TOKEN_PATH: {path} cannot be read ({reason}): correct it.",
                code="unreadable-token",
                field="RAY_AUTH_TOKEN_PATH",
                value=path,
            ) from error
        if empty and not os.environ.get("RAY_AUTH_TOKEN"):
            raise UserError(
                f"RAY_AUTH_TOKEN_PATH: {path} is empty: write the cluster's token into it.",
                code="empty-token",
                field="RAY_AUTH_TOKEN_PATH",
                value=path,
            )
    if path or os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _unreachable(address: str, reason: str) -> ClusterUnreachable:
    return ClusterUnreachable(
        f"No Ray dashboard answers at {address} ({reason}): correct --ray, start the cluster, or forward its port "
        f"(kubectl port-forward service/NAME-head-svc {DASHBOARD_PORT}).",
        code="unreachable",
        field="--ray",
        value=address,
    )


def _not_a_dashboard(address: str, reason: str) -> UserError:
    text = f"{address} is not a Ray dashboard ({reason}): correct --ray."
    return UserError(text, code="not-a-dashboard", field="--ray", value=address)


def _token_refused(address: str, none_sent: bool) -> UserError:
    if none_sent:
        return UserError(
            f"{address} asks for a token (401): set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN.",
            code="token-needed",
            field="RAY_AUTH_TOKEN_PATH",
        )
    return UserError(
        f"{address} refuses the token (403): RAY_AUTH_TOKEN or the file of RAY_AUTH_TOKEN_PATH holds another cluster's.",
        code="token-refused",
        field="RAY_AUTH_TOKEN_PATH",
    )


def _job(details: Any) -> Job:
    """A job from Ray's own `JobDetails`."""
    state, status = details.status.value, details.driver_exit_code
    # Ray's own message on a process that ended badly repeats its log.
    reason = f"exit status {status}" if status is not None else details.message or ""
    return Job(
        name=details.submission_id,
        state=state,
        phase=state,
        command=details.entrypoint,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        process_exit_status=status,
        message=reason if state == "FAILED" else "",
    )


def submit(words: Sequence[str], verbs: Verbs, address: str, folder: Path, *, dry_run: bool, wait: bool) -> int:
    """Send a job and follow it.

    Args:
        words: the verb and its arguments.
        verbs: of the command line.
        folder: the job's working folder, which goes with it.
        dry_run: print what would be sent (JSON), and send nothing.
        wait: follow the job to its end.

    Returns:
        The job's exit status; 0 where it is not followed.

    Raises:
        UserError: see `parse`, `build_submission` and `RayJobs`.
    """
    address = parse_address(address)
    submission = build_submission(parse(words, verbs), folder)
    for sentence in warnings(address):
        notify(sentence)
    if dry_run:
        print(submission.as_json(address))
        return 0
    jobs = RayJobs(address)
    jobs.submit(submission)
    notify(f"{submission.name} is on {address}.")
    if not wait:
        notify(next_steps(jobs, submission.name))
        return 0
    return follow_to_end(jobs, submission.name)
