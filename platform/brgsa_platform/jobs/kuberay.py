"""Jobs on Kubernetes: RayJobs from the manifests in k8s/, through the Kubernetes API.

All requests go through `kubectl`: it renders the overlay, and its `--raw` calls are plain requests to the API, with whatever
authentication the user's KUBECONFIG asks for. No password passes through here: manifests name secrets.
"""

from __future__ import annotations

import atexit
import copy
import difflib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml

from brgsa.errors import UserError, nearest
from brgsa_platform.jobs import logs as job_logs
from brgsa_platform.jobs.base import (
    ClusterUnreachable,
    Job,
    JobNotFound,
    Log,
    follow_to_end,
    next_steps,
    notify,
    try_to_save_log,
)
from brgsa_platform.jobs.commands import (
    Verbs,
    check_no_credentials,
    check_paths,
    check_verb,
    merge_arguments,
    new_name,
    parse,
)
from brgsa_platform.tracking import client as tracking

NAMESPACE = "brgsa"
NAME_LENGTH = 47  # KubeRay adds to it, and the name of a service has at most 63 characters
SUBMITTER = "ray-job-submitter"  # the container whose log is the job's
REQUEST_TIMEOUT = "--request-timeout=30s"
DELETE_SECONDS = 120.0  # how long a RayJob may take to disappear after its deletion
_UNREACHABLE = re.compile(
    "Unable to connect to the server|connection refused|connection to the server|no such host|i/o timeout|EOF|"
    "TLS handshake timeout|Client.Timeout|ServiceUnavailable|context deadline exceeded"
)
_LOADER = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # an overlay has 2,000 lines, for which Python's own needs a second
# KubeRay passes an entrypoint through two shells and Ray's own quoting. Only these characters come out as they went in.
_SAFE = re.compile(r"[\w@%+=:,./\[\] -]*")

Manifest = dict[str, Any]


class ObjectNotFound(JobNotFound):
    """The API has no such object."""


class Kubectl:
    """The user's kubectl, for one context of KUBECONFIG (None: the current one) and one namespace."""

    def __init__(self, context: str | None = None, namespace: str = NAMESPACE) -> None:
        self.context, self.namespace = context, namespace

    def run(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl with `text` as its standard input, and return its standard output.

        Raises:
            ClusterUnreachable: the API does not answer.
            ObjectNotFound: the API has no such object.
            UserError: there is no kubectl, or the API refuses.
            RuntimeError: anything else.
        """
        command = self.command(*arguments)
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired as error:
            raise ClusterUnreachable(f"{self} does not answer.", code="unreachable", field="KUBECONFIG") from error
        if done.returncode == 0:
            return done.stdout
        raise self._error(done.stderr.strip())

    def command(self, *arguments: str) -> list[str]:
        """The command line of kubectl with these arguments.

        Raises:
            UserError: kubectl is not on PATH ("no-kubectl").
        """
        if shutil.which("kubectl") is None:
            raise UserError(
                "kubectl is not on PATH: install it (https://kubernetes.io/docs/tasks/tools/).", code="no-kubectl"
            )
        return ["kubectl", *(["--context", self.context] if self.context else []), *arguments]

    def request(self, verb: str, path: str, text: str | None = None, **query: str) -> Any:
        """Send a request to the API and return its answer's JSON, {} where it is empty.

        Args:
            verb: "get", "create" or "delete".
            text: the body.
        """
        raw = f"{path}?{urlencode(query)}" if query else path
        body = ["-f", "-"] if text is not None else []
        answer = self.run(verb, "--raw", raw, REQUEST_TIMEOUT, *body, text=text)
        return json.loads(answer) if answer.strip() else {}

    def rayjobs(self, name: str = "") -> str:
        """The API's path for the namespace's RayJobs, or for one of them."""
        return f"/apis/ray.io/v1/namespaces/{quote(self.namespace)}/rayjobs" + (f"/{quote(name)}" if name else "")

    def pods(self, name: str = "") -> str:
        """The API's path for the namespace's pods, or for the log of one of them."""
        return f"/api/v1/namespaces/{quote(self.namespace)}/pods" + (f"/{quote(name)}/log" if name else "")

    def __str__(self) -> str:
        return f"The Kubernetes API of {f'context {self.context}' if self.context else 'the current context'}"

    def _error(self, text: str) -> Exception:
        """The exception for what kubectl has printed to standard error."""
        line = text.splitlines()[-1].removeprefix("error: ") if text else "no reason given"
        if "could not find the requested resource" in text:
            return UserError(f"{self} knows no RayJobs: install KubeRay there (k8s/README.md).", code="no-kuberay")
        if "(NotFound)" in text or "NotFound:" in text:
            return ObjectNotFound(f"{self} has none of this name in namespace {self.namespace}.", code="no-such-job")
        if "Forbidden" in text or "Unauthorized" in text or "must be logged in" in text:
            return UserError(
                f"{self} refuses: {line} (docs/submit.md lists the rights that are needed).",
                code="forbidden",
                field="KUBECONFIG",
            )
        if "Invalid" in text or "BadRequest" in text or "unknown field" in text:
            return UserError(f"{self} does not take the RayJob: {line}", code="invalid-rayjob", value=line)
        if "context" in text and "does not exist" in text:
            return UserError(
                f"--context {self.context} is not in KUBECONFIG: `kubectl config get-contexts` lists them.",
                code="unknown-context",
                field="--context",
                value=self.context,
            )
        if _UNREACHABLE.search(text):
            return ClusterUnreachable(
                f"{self} does not answer ({line}): correct KUBECONFIG or --context, or wait for the cluster.",
                code="unreachable",
                field="KUBECONFIG",
            )
        return RuntimeError(f"kubectl: {line}")


def render(overlay: str, verb: str, kubectl: Kubectl) -> Manifest:
    """The RayJob of a verb as an overlay's jobs/ has it.

    Raises:
        UserError: see `overlay_folder`; kustomize refuses the overlay ("broken-overlay"), or it has no RayJob for the
            verb ("no-rayjob").
    """
    folder = overlay_folder(overlay)
    try:
        text = kubectl.run("kustomize", str(folder))
    except RuntimeError as error:
        raise UserError(
            f"{folder} cannot be rendered: {error}", code="broken-overlay", field="--overlay", value=overlay
        ) from error
    documents = yaml.load_all(text, _LOADER)
    rayjobs: dict[str, Manifest] = {d["metadata"]["name"]: d for d in documents if d and d.get("kind") == "RayJob"}
    if f"brgsa-{verb}" not in rayjobs:
        held = ", ".join(name.removeprefix("brgsa-") for name in rayjobs) or "none"
        raise UserError(
            f"{folder} has no RayJob for `brgsa {verb}`; it has RayJobs for: {held}.",
            code="no-rayjob",
            field="--overlay",
            value=verb,
        )
    return rayjobs[f"brgsa-{verb}"]


def overlay_folder(overlay: str) -> Path:
    """The folder of an overlay's jobs, by its path, or by the overlay's name in ./k8s or else in this code's repository.

    Raises:
        UserError: there is no k8s/ ("no-overlays"), or no such overlay in it ("unknown-overlay").
    """
    if (Path(overlay) / "kustomization.yaml").is_file():
        return Path(overlay)
    roots = [root for root in (Path("k8s"), Path(__file__).resolve().parents[3] / "k8s") if root.is_dir()]
    if not roots:
        raise UserError(
            "There is no folder k8s/ here: run in a checkout of the repository, or give --overlay FOLDER.",
            code="no-overlays",
            field="--overlay",
        )
    root = roots[0]
    overlays = {path.parents[1].name: path.parent for path in root.glob("overlays/*/jobs/kustomization.yaml")}
    if overlay not in overlays:
        raise UserError(
            f"--overlay {overlay} is not in {root / 'overlays'}{nearest(overlay, list(overlays))}; there are: "
            f"{', '.join(sorted(overlays)) or 'none'}.",
            code="unknown-overlay",
            field="--overlay",
            value=overlay,
        )
    return overlays[overlay]


def build_manifest(rendered: Manifest, given: Sequence[str], verbs: Verbs, name: str, namespace: str) -> Manifest:
    """The RayJob to create: the overlay's, with the user's arguments laid over its own, under its own name.

    Args:
        rendered: see `render`.
        given: the verb and the user's arguments.

    Raises:
        UserError: see `parse`, `check_paths` and `check_no_credentials`; Kubernetes does not take the name ("bad-name"), or
            an argument has characters that KubeRay's shells would change ("shell-characters").
    """
    if len(name) > NAME_LENGTH or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name):
        raise UserError(
            f"--name {name} is not a name for a RayJob: give at most {NAME_LENGTH} of a-z, 0-9 and -, beginning with a letter.",
            code="bad-name",
            field="--name",
            value=name,
        )
    command = parse(merge_arguments(shlex.split(rendered["spec"]["entrypoint"])[1:], given, verbs), verbs)
    check_paths(command)
    check_no_credentials(command)
    for word in command.words:
        if not _SAFE.fullmatch(word) or "\n" in word:
            raise UserError(
                f"brgsa {command.verb}: {word!r} holds characters that KubeRay's shells would change: write it into a file, "
                "or use --ray.",
                code="shell-characters",
                value=word,
            )
    manifest = copy.deepcopy(rendered)
    manifest["metadata"] |= {"name": name, "namespace": namespace}
    manifest["spec"]["entrypoint"] = shlex.join(["brgsa", *command.words])
    runtime = yaml.safe_load(manifest["spec"].get("runtimeEnvYAML") or "{}")
    runtime["env_vars"] = {**runtime.get("env_vars", {}), tracking.JOB: name}
    manifest["spec"]["runtimeEnvYAML"] = yaml.safe_dump(runtime, sort_keys=False)
    return manifest


def manifest_diff(old: Manifest, new: Manifest, old_title: str, new_title: str) -> str:
    """The differences of two manifests, as a unified diff; empty where there are none."""
    before, after = (yaml.safe_dump(each, sort_keys=True, width=10_000).splitlines() for each in (old, new))
    return "\n".join(difflib.unified_diff(before, after, old_title, new_title, n=1, lineterm=""))


class KubeJobs:
    """The RayJobs of one namespace; see `Jobs`."""

    saves_logs = True  # pods and their logs are deleted with their job

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self.options = "--kuberay"
        if kubectl.context:
            self.options += f" --context {kubectl.context}"
        if kubectl.namespace != NAMESPACE:
            self.options += f" --namespace {kubectl.namespace}"

    def create(self, manifest: Manifest) -> None:
        """Create a RayJob. The API refuses unknown fields."""
        query = {"fieldValidation": "Strict", "fieldManager": "brgsa"}
        self.kubectl.request("create", self.kubectl.rayjobs(), json.dumps(manifest), **query)

    def fetch(self, name: str) -> Manifest | None:
        """The RayJob of this name as the cluster has it; None where it has none."""
        try:
            manifest: Manifest = self.kubectl.request("get", self.kubectl.rayjobs(name))
        except ObjectNotFound:
            return None
        return manifest

    def list(self) -> list[Job]:
        """See `Jobs.list`."""
        return [_job(manifest) for manifest in self.kubectl.request("get", self.kubectl.rayjobs())["items"]]

    def get(self, name: str) -> Job:
        """See `Jobs.get`."""
        manifest = self.fetch(name)
        if manifest is None:
            raise ObjectNotFound(
                f"No RayJob {name} in namespace {self.kubectl.namespace}: deleted, or cleaned up after it ended. "
                f"`brgsa jobs list {self.options}` shows what is there, `brgsa jobs logs {name} {self.options}` a log that "
                "was kept.",
                code="no-such-job",
                value=name,
            )
        return _job(manifest)

    def log(self, name: str) -> Log | None:
        """See `Jobs.log`: the log of the newest pod that submits the job, which streams the job's own log."""
        manifest = self.fetch(name)
        if manifest is None:
            return None
        selector = f"job-name={name}"
        if manifest["spec"].get("submissionMode") == "SidecarMode":
            cluster = manifest.get("status", {}).get("rayClusterName", "")
            selector = f"ray.io/cluster={cluster},ray.io/node-type=head"
        pods = self.kubectl.request("get", self.kubectl.pods(), labelSelector=selector).get("items", [])
        if not pods:
            return None
        newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
        return _PodLog(self.kubectl, newest["metadata"]["name"])

    def stop(self, name: str) -> None:
        """See `Jobs.stop`: save the log in MLflow, then delete the RayJob and with it its cluster."""
        self.get(name)
        try:
            log = self.log(name)
            text = "".join(log.read(follow=False)) if log else ""
        except (UserError, RuntimeError):
            text = ""  # a pod that has not started has no log
        if text:
            with tempfile.TemporaryDirectory(prefix="brgsa-") as scratch:
                path = Path(scratch) / job_logs.FILE
                path.write_text(text, encoding="utf-8")
                try_to_save_log(name, path)
        self.kubectl.request("delete", self.kubectl.rayjobs(name))


@dataclass(frozen=True)
class _PodLog:
    """See `Log`; the source is the pod's name."""

    kubectl: Kubectl
    source: str

    def read(self, follow: bool) -> Iterator[str]:
        """The log of the job's submitter so far; with `follow`, also what comes until its end."""
        query = urlencode({"container": SUBMITTER, **({"follow": "true"} if follow else {})})
        path = f"{self.kubectl.pods(self.source)}?{query}"
        if not follow:
            yield self.kubectl.run("get", "--raw", path, REQUEST_TIMEOUT)
            return
        # A session of its own: a Ctrl-C at the terminal asks the user a question, and must not end this stream.
        stream = subprocess.Popen(
            self.kubectl.command("get", "--raw", path),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        atexit.register(stream.kill)  # Python does not wait for the thread that reads when the program ends
        assert stream.stdout is not None
        try:
            yield from stream.stdout
        finally:
            stream.kill()
            stream.wait()
            atexit.unregister(stream.kill)


def _job(manifest: Manifest) -> Job:
    """A job from the RayJob that the API returns."""
    status = manifest.get("status", {})
    ray, deployment = status.get("jobStatus", ""), status.get("jobDeploymentStatus", "")
    # KubeRay's own end comes last (a retry may follow Ray's FAILED), and alone where a deadline ended the job.
    if deployment == "Complete":
        state = ray if ray in ("SUCCEEDED", "FAILED", "STOPPED") else "SUCCEEDED"
    elif deployment in ("Failed", "ValidationFailed"):
        state = "STOPPED" if ray == "STOPPED" else "FAILED"
    else:
        state = "RUNNING" if ray == "RUNNING" else "PENDING"
    reason = " ".join(status[key] for key in ("reason", "message") if status.get(key))
    return Job(
        name=manifest["metadata"]["name"],
        state=state,
        phase=state if state not in ("PENDING", "RUNNING") else (f"{deployment} {ray}".strip() or "New"),
        command=manifest["spec"].get("entrypoint", ""),
        started=_seconds(status.get("startTime") or manifest["metadata"].get("creationTimestamp")),
        ended=_seconds(status.get("endTime")),
        message=reason if state == "FAILED" else "",
    )


def _seconds(text: str | None) -> float | None:
    """Seconds since 1970, from an ISO time."""
    return datetime.fromisoformat(text).timestamp() if text else None


def submit(
    given: Sequence[str],
    verbs: Verbs,
    kubectl: Kubectl,
    overlay: str,
    *,
    name: str | None,
    replace: bool,
    dry_run: bool,
    wait: bool,
) -> int:
    """Create a RayJob from an overlay, follow it and save its log.

    Args:
        given: the verb, and the arguments that are to differ from the overlay's.
        verbs: of the command line.
        name: of the RayJob; None for a new one.
        replace: delete the RayJob that the cluster has under this name first; otherwise a name that is taken is refused.
        dry_run: print the manifest (YAML), and send nothing to any cluster.
        wait: follow the job to its end.

    Returns:
        The job's exit status; 0 where it is not followed.

    Raises:
        UserError: see `check_verb`, `render`, `build_manifest` and `Kubectl.run`; the name is taken ("name-taken").
    """
    verb = check_verb(given, verbs)
    rendered = render(overlay, verb, kubectl)
    manifest = build_manifest(rendered, given, verbs, name or new_name(verb), kubectl.namespace)
    name = manifest["metadata"]["name"]
    _print_diff(manifest_diff(rendered, manifest, f"overlay/{overlay}", f"job/{name}"))
    if dry_run:
        print(yaml.safe_dump(manifest, sort_keys=False, width=10_000), end="")
        return 0
    jobs = KubeJobs(kubectl)
    _make_room(jobs, name, manifest, replace)
    jobs.create(manifest)
    notify(f"{name} is on the cluster, namespace {kubectl.namespace}.")
    if not wait:
        notify(next_steps(jobs, name))
        return 0
    return follow_to_end(jobs, name)


def _make_room(jobs: KubeJobs, name: str, manifest: Manifest, replace: bool) -> None:
    """Where the cluster has a RayJob of this name, show the difference, and delete it or refuse."""
    live = jobs.fetch(name)
    if live is None:
        return
    there = {"metadata": {k: live["metadata"].get(k) for k in manifest["metadata"]}, "spec": live["spec"]}
    sent = {"metadata": manifest["metadata"], "spec": manifest["spec"]}
    _print_diff(manifest_diff(there, sent, f"cluster/{name}", f"job/{name}"))
    if not replace:
        raise UserError(
            f"--name {name} is taken on the cluster ({_job(live).phase}): choose another, or add --replace.",
            code="name-taken",
            field="--name",
            value=name,
        )
    jobs.stop(name)
    end = time.monotonic() + DELETE_SECONDS
    while jobs.fetch(name) is not None:
        if time.monotonic() > end:
            raise RuntimeError(f"{name} was deleted and is still there after {DELETE_SECONDS:.0f} s")
        time.sleep(1.0)


def _print_diff(diff: str) -> None:
    if diff:
        print(diff, file=sys.stderr)
