"""Ad-hoc jobs on a running Ray cluster, through its dashboard's job server.

What a job's runtime environment holds stands in the cluster's process lists (`setup_worker.py`), in its logs and in the job's
description, and so does its command: passwords go by neither. The cluster's own nodes have them in their environment, as
docs/submit.md says.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from brgsa.errors import UserError
from brgsa_platform.jobs.base import ClusterUnreachable, Job, JobNotFound, Log, follow_to_end, next_steps, notify
from brgsa_platform.jobs.commands import Command, Verbs, check_paths, new_name, parse
from brgsa_platform.jobs.packing import SOURCE_ROOT, JobFiles, collect_files
from brgsa_platform.tracking import client as tracking

DASHBOARD_PORT = 8265
OTHER_PORTS = {6379: "Ray's GCS", 10001: "the Ray client"}
FORWARDED = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TIMEOUT = 60.0  # seconds for an answer of the job server; Ray's client would wait for ever
STOPPING = 30.0  # seconds that a job has to end after it was told to

T = TypeVar("T")


@dataclass(frozen=True)
class Submission:
    """A job as it is sent."""

    name: str
    entrypoint: str
    environment: dict[str, str]
    contents: JobFiles

    def as_json(self, address: str) -> str:
        """The plan as JSON for a reader; it holds no password because none is sent."""
        folder = {"folder": str(self.contents.folder), "files": len(self.contents.files), "bytes": self.contents.size}
        told: dict[str, Any] = {"address": address, "submission_id": self.name, "entrypoint": self.entrypoint}
        told["runtime_env"] = {"working_dir": folder, "env_vars": self.environment}
        told["not_sent"] = [name for name in CREDENTIALS if os.environ.get(name)]
        return json.dumps(told, indent=1)


def build_submission(command: Command, folder: Path) -> Submission:
    """What would be sent for `brgsa VERB …` with this working folder.

    Raises:
        UserError: relative places, a password in an argument or address, a tracking store that is a file of this machine, or a
            folder that is too large.
    """
    check_paths(command)
    for word in command.arguments:
        if re.search(r"://[^/@\s]*:[^/@\s]+@", word):
            raise UserError(
                f"brgsa {command.verb}: an argument holds an address with a password, which would stand in process lists and "
                "logs: leave the password out and give it to the cluster's nodes."
            )
    name = new_name(command.verb)
    environment = {"PYTHONPATH": SOURCE_ROOT, tracking.JOB: name, **_tracking_environment()}
    if commit := tracking.git_commit():
        environment["BRGSA_COMMIT"] = commit  # the archive holds no repository that could be asked
    # `python` and not its path here: in a job it is the cluster's, found on PATH.
    entrypoint = shlex.join(["python", "-m", "brgsa_platform.cli", *command.words])
    return Submission(name, entrypoint, environment, collect_files(folder))


def _tracking_environment() -> dict[str, str]:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri and not uri.startswith(("http://", "https://")):
        raise UserError(
            f"MLFLOW_TRACKING_URI is {tracking.shown_uri()}, which a job on another machine cannot reach: start a server and "
            "give its http:// address, or unset it where the cluster's nodes have their own."
        )
    if "@" in urlsplit(uri).netloc:
        raise UserError(
            "MLFLOW_TRACKING_URI holds a name or password, which would stand in process lists and logs: take it out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster's nodes."
        )
    return {name: os.environ[name] for name in FORWARDED if os.environ.get(name)}


def warnings(address: str) -> list[str]:
    """What the user should know before a job is sent, a sentence each."""
    told = []
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        told.append(
            "MLFLOW_TRACKING_URI is not set: the job tracks where the cluster's nodes say, or else in a file that goes with it."
        )
    elif urlsplit(uri).hostname in LOOPBACK and urlsplit(address).hostname not in LOOPBACK:
        told.append(f"MLFLOW_TRACKING_URI is {uri}: on the cluster that is another machine than this one.")
    held = [name for name in CREDENTIALS if os.environ.get(name)]
    if held:
        told.append(
            f"{' and '.join(held)}: not sent, the cluster's nodes need them in their environment (docs/submit.md)."
        )
    return told


def parse_address(given: str) -> str:
    """The http(s) address of a cluster's job server.

    `HOST` and `HOST:PORT` are taken for http; a port that another of Ray's services has by default is not.

    Raises:
        UserError: an address that is none, or not the job server's.
    """
    text = given.strip().rstrip("/")
    scheme, sign, rest = text.partition("://")
    if not sign:
        scheme, rest = "http", text
    example = f"give the dashboard's address, such as http://HOST:{DASHBOARD_PORT}"
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"--ray {given} is no address ({error}): {example}.") from error
    if not host or given in ("auto", "local") or " " in text:
        raise UserError(f"--ray {given!r} is no address of a cluster: {example}.")
    if "@" in parts.netloc:
        raise UserError(
            f"--ray holds a name or password: {example}, and set RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH instead."
        )
    mend = f"give the dashboard's, http://{host}:{DASHBOARD_PORT} unless it was moved"
    if scheme == "ray" or (scheme == "http" and port in OTHER_PORTS):
        service = OTHER_PORTS.get(port or 0, "the Ray client")
        raise UserError(f"--ray {given} is the address of {service}, which takes no jobs: {mend}.")
    if scheme not in ("http", "https"):
        raise UserError(f"--ray {given} is of an unknown kind: {example}.")
    if not sign and port is None:
        return f"http://{parts.netloc}:{DASHBOARD_PORT}"
    return f"{scheme}://{rest}"


class RayJobs:
    """The jobs of one cluster, by the address of its job server."""

    def __init__(self, address: str) -> None:
        self.address = parse_address(address)
        self.options = f"--ray {self.address}"
        self.saves_logs = bool(os.environ.get("MLFLOW_TRACKING_URI"))  # its head has them as long as it lives
        _check_there(self.address)
        _check_token()
        self._client = self._call(lambda: _client(self.address))

    def submit(self, plan: Submission) -> None:
        """Send the folder, unless the cluster has the same one already, and start the job."""
        with tempfile.TemporaryDirectory(prefix="brgsa-") as scratch:
            archive = Path(scratch) / "job.zip"
            plan.contents.write(archive)
            runtime = {"working_dir": str(archive), "env_vars": plan.environment}
            self._call(
                lambda: self._client.submit_job(
                    entrypoint=plan.entrypoint, submission_id=plan.name, runtime_env=runtime
                )
            )

    def list(self) -> list[Job]:
        return [_job(told) for told in self._call(self._client.list_jobs) if told.submission_id]

    def get(self, name: str) -> Job:
        return _job(self._call(lambda: self._client.get_job_info(name), name))

    def log(self, name: str) -> Log:
        return _RayLog(self, name)

    def stop(self, name: str) -> None:
        """Tell the job to end, and wait until it has."""
        self._call(lambda: self._client.stop_job(name), name)
        end = time.monotonic() + STOPPING
        while not self.get(name).finished:
            if time.monotonic() > end:
                raise RuntimeError(f"{name} was told to stop and has not after {STOPPING:.0f} s")
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
        import requests
        from ray.exceptions import AuthenticationError

        try:
            return work()
        except (requests.ConnectionError, requests.Timeout, ConnectionError) as error:
            raise _unreachable(self.address, type(error).__name__) from error
        except AuthenticationError as error:
            raise _refused(self.address, "required" in str(error).partition("\n")[0]) from None
        except RuntimeError as error:
            said = str(error)
            if name and "status code 404" in said:
                raise JobNotFound(
                    f"No job {name} on {self.address}: `brgsa jobs list {self.options}` shows what is."
                ) from error
            raise


@dataclass(frozen=True)
class _RayLog:
    jobs: RayJobs
    source: str

    def read(self, follow: bool) -> Iterator[str]:
        if follow:
            yield from self.jobs.lines(self.source)
        else:
            yield self.jobs.text(self.source)


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard_sdk", "job.sdk"):  # each upload and each stream's end in two lines
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": TIMEOUT, **options})

    # Ray's client prefers these to the address that it is given.
    hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        return Client(address, verify=os.environ.get("SSL_CERT_FILE") or True)
    finally:
        os.environ.update(hidden)


def _check_there(address: str) -> None:
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=10) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # it asks for a token, which Ray's client knows to give
            return
        raise UserError(
            f"{address} is no Ray dashboard (status {error.code} for /api/version): correct --ray."
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError):
            raise UserError(f"{address} is no Ray dashboard (/api/version is no JSON): correct --ray.") from error
        raise _unreachable(address, str(getattr(error, "reason", error))) from error
    if "ray_version" not in told:
        raise UserError(f"{address} is no Ray dashboard (/api/version names no Ray): correct --ray.")


def _check_token() -> None:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path:
        try:
            empty = not Path(path).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "no text"
            raise UserError(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read ({said}): correct it.") from error
        if empty and not os.environ.get("RAY_AUTH_TOKEN"):
            raise UserError(f"RAY_AUTH_TOKEN_PATH: {path} is empty: write the cluster's token into it.")
    if path or os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # a token alone is not sent


def _unreachable(address: str, said: str) -> ClusterUnreachable:
    return ClusterUnreachable(
        f"No Ray dashboard answers at {address} ({said}): correct --ray, start the cluster, or forward its port "
        f"(kubectl port-forward service/NAME-head-svc {DASHBOARD_PORT})."
    )


def _refused(address: str, none_sent: bool) -> UserError:
    if none_sent:
        return UserError(
            f"{address} asks for a token (401): set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN."
        )
    return UserError(
        f"{address} refuses the token (403): RAY_AUTH_TOKEN or the file of RAY_AUTH_TOKEN_PATH holds another cluster's."
    )


def _job(told: Any) -> Job:
    return Job(
        name=told.submission_id,
        state=told.status.value,
        phase=told.status.value,
        command=told.entrypoint,
        started=told.start_time / 1000 if told.start_time else None,
        ended=told.end_time / 1000 if told.end_time else None,
        process_exit_status=told.driver_exit_code,
        message=_reason(told) if told.status.value == "FAILED" else "",
    )


def _reason(told: Any) -> str:
    """Why it failed; Ray's own message on a process that ended badly repeats its log."""
    return f"exit status {told.driver_exit_code}" if told.driver_exit_code is not None else told.message or ""


def submit(words: Sequence[str], verbs: Verbs, address: str, folder: Path, *, dry_run: bool, wait: bool) -> int:
    """Send a job and follow it; return its exit status.

    Args:
        words: the verb and its arguments.
        verbs: of the command line.
        folder: goes with the job and is where it runs.
        dry_run: print what would be sent, ask and send nothing.
        wait: follow the job to its end.

    Raises:
        UserError: see `parse`, `plan`, `parse_address`; the cluster does not answer or refuses the token.
    """
    address = parse_address(address)
    sent = build_submission(parse(words, verbs), folder)
    for sentence in warnings(address):
        notify(sentence)
    if dry_run:
        print(sent.as_json(address))
        return 0
    jobs = RayJobs(address)
    jobs.submit(sent)
    notify(f"{sent.name} is on {address}.")
    if not wait:
        notify(next_steps(jobs, sent.name))
        return 0
    return follow_to_end(jobs, sent.name)
