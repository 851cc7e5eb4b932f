"""Jobs on Kubernetes: RayJobs from the manifests in k8s/, through the Kubernetes API.

`kubectl` is the way to it: it renders the overlay, and its `--raw` calls are plain requests to the API with whatever
authentication the user's KUBECONFIG asks for, plugins and all. No password passes through here: manifests name secrets.
"""

from __future__ import annotations

import atexit
import copy
import difflib
import json
import re
import shlex
import subprocess
import sys
import tempfile
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
from brgsa_platform.jobs.commands import Verbs, check_paths, check_verb, merge_arguments, new_name, parse
from brgsa_platform.tracking import client as tracking

NAMESPACE = "brgsa"
NAME_LENGTH = 47  # KubeRay adds to it, and a service's name has 63 characters
SUBMITTER = "ray-job-submitter"  # the container whose log is the job's
REQUEST = "--request-timeout=30s"
_UNREACHABLE = re.compile(
    "Unable to connect to the server|connection refused|connection to the server|no such host|i/o timeout|EOF|"
    "TLS handshake timeout|Client.Timeout|ServiceUnavailable|context deadline exceeded"
)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # an overlay is 2,000 lines: Python's own takes a second
# KubeRay hands an entrypoint through two shells and Ray's own quoting; other characters do not come out as they went in.
_SAFE = re.compile(r"[\w@%+=:,./\[\] -]*")


class ObjectNotFound(JobNotFound):
    """The API has no such object."""


class Kubectl:
    """The user's kubectl, for one context and namespace."""

    def __init__(self, context: str | None = None, namespace: str = NAMESPACE) -> None:
        self.context, self.namespace = context, namespace

    def run(self, *arguments: str, text: str | None = None) -> str:
        """What it prints.

        Raises:
            ClusterUnreachable: the API does not answer.
            ObjectNotFound: it has no such object.
            UserError: no kubectl, or the API refuses.
            RuntimeError: anything else.
        """
        try:
            done = subprocess.run(
                self.command(*arguments), input=text, capture_output=True, text=True, timeout=120, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterUnreachable(f"{self} does not answer.") from error
        if done.returncode == 0:
            return done.stdout
        raise self._error(done.stderr.strip())

    def command(self, *arguments: str) -> list[str]:
        import shutil

        if shutil.which("kubectl") is None:
            raise UserError("kubectl is not on PATH: install it (https://kubernetes.io/docs/tasks/tools/).")
        return ["kubectl", *(["--context", self.context] if self.context else []), *arguments]

    def request(self, verb: str, path: str, text: str | None = None, **query: str) -> Any:
        """A request to the API, `verb` being get, create or delete; the answer's JSON."""
        raw = f"{path}?{urlencode(query)}" if query else path
        answer = self.run(verb, "--raw", raw, REQUEST, *(["-f", "-"] if text is not None else []), text=text)
        return json.loads(answer) if answer.strip() else {}

    def rayjobs(self, name: str = "") -> str:
        """The API's path for RayJobs of the namespace."""
        return f"/apis/ray.io/v1/namespaces/{quote(self.namespace)}/rayjobs" + (f"/{quote(name)}" if name else "")

    def pods(self, name: str = "") -> str:
        return f"/api/v1/namespaces/{quote(self.namespace)}/pods" + (f"/{quote(name)}/log" if name else "")

    def __str__(self) -> str:
        return f"The Kubernetes API of {f'context {self.context}' if self.context else 'the current context'}"

    def _error(self, said: str) -> Exception:
        line = said.splitlines()[-1].removeprefix("error: ") if said else "no reason given"
        if "could not find the requested resource" in said:
            return UserError(f"{self} knows no RayJobs: install KubeRay there (k8s/README.md).")
        if "(NotFound)" in said or "NotFound:" in said:
            return ObjectNotFound(f"{self} has none of this name in namespace {self.namespace}.")
        if "Forbidden" in said or "Unauthorized" in said or "must be logged in" in said:
            return UserError(f"{self} refuses: {line} (docs/submit.md lists the rights that are needed).")
        if "Invalid" in said or "BadRequest" in said or "unknown field" in said:
            return UserError(f"{self} does not take the RayJob: {line}")
        if "context" in said and "does not exist" in said:
            return UserError(
                f"--context {self.context} is not in KUBECONFIG: `kubectl config get-contexts` lists them."
            )
        if _UNREACHABLE.search(said):
            return ClusterUnreachable(
                f"{self} does not answer ({line}): correct KUBECONFIG or --context, or wait for the cluster."
            )
        return RuntimeError(f"kubectl: {line}")


def render(overlay: str, verb: str, kubectl: Kubectl) -> dict[str, Any]:
    """The RayJob of a verb as an overlay's jobs/ has it.

    Raises:
        UserError: no such overlay, kustomize refuses it, or it holds no RayJob for the verb.
    """
    folder = overlay_folder(overlay)
    try:
        text = kubectl.run("kustomize", str(folder))
    except RuntimeError as error:
        raise UserError(f"{folder} cannot be rendered: {error}") from error
    documents = yaml.load_all(text, _LOADER)
    found = {d["metadata"]["name"]: d for d in documents if d and d.get("kind") == "RayJob"}
    if f"brgsa-{verb}" not in found:
        held = ", ".join(name.removeprefix("brgsa-") for name in found) or "none"
        raise UserError(f"{folder} holds no RayJob for `brgsa {verb}`; it holds: {held}.")
    chosen: dict[str, Any] = found[f"brgsa-{verb}"]
    return chosen


def overlay_folder(overlay: str) -> Path:
    """The jobs of an overlay, by its folder's path or by its name in ./k8s, else in the checkout that this code is in."""
    if (Path(overlay) / "kustomization.yaml").is_file():
        return Path(overlay)
    roots = [root for root in (Path("k8s"), Path(__file__).resolve().parents[3] / "k8s") if root.is_dir()]
    if not roots:
        raise UserError("No folder k8s/ here: run in a checkout of the repository, or give --overlay FOLDER.")
    root = roots[0]
    overlays = {path.parents[1].name: path.parent for path in root.glob("overlays/*/jobs/kustomization.yaml")}
    if overlay not in overlays:
        raise UserError(
            f"--overlay {overlay} is not in {root / 'overlays'}{nearest(overlay, list(overlays))}; there are: "
            f"{', '.join(sorted(overlays)) or 'none'}."
        )
    return overlays[overlay]


def build_manifest(
    rendered: dict[str, Any], given: Sequence[str], verbs: Verbs, name: str, namespace: str
) -> dict[str, Any]:
    """The RayJob to create: the overlay's with the user's arguments laid over its own, under its own name.

    Raises:
        UserError: a name that is none, or an argument that the way through KubeRay's shells would change.
    """
    if len(name) > NAME_LENGTH or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name):
        raise UserError(
            f"--name {name} is no name for a RayJob: at most {NAME_LENGTH} of a-z, 0-9 and -, beginning with a letter."
        )
    made = copy.deepcopy(rendered)
    words = merge_arguments(shlex.split(rendered["spec"]["entrypoint"])[1:], given, verbs)
    check_paths(parse(words, verbs))
    for word in words:
        if not _SAFE.fullmatch(word) or "\n" in word:
            raise UserError(
                f"brgsa {words[0]}: {word!r} holds characters that KubeRay's shells would change: write it into a file, "
                "or use --ray."
            )
        if re.search(r"://[^/@\s]*:[^/@\s]+@", word):
            raise UserError(f"brgsa {words[0]}: an argument holds an address with a password: name a secret instead.")
    made["metadata"] |= {"name": name, "namespace": namespace}
    made["spec"]["entrypoint"] = shlex.join(["brgsa", *words])
    runtime = yaml.safe_load(made["spec"].get("runtimeEnvYAML") or "{}")
    runtime["env_vars"] = {**runtime.get("env_vars", {}), tracking.JOB: name}
    made["spec"]["runtimeEnvYAML"] = yaml.safe_dump(runtime, sort_keys=False)
    return made


def manifest_diff(old: dict[str, Any], new: dict[str, Any], old_title: str, new_title: str) -> str:
    """What differs between two manifests, as a unified diff; empty where nothing does."""
    before, after = (yaml.safe_dump(each, sort_keys=True, width=10_000).splitlines() for each in (old, new))
    return "\n".join(difflib.unified_diff(before, after, old_title, new_title, n=1, lineterm=""))


class KubeJobs:
    """The RayJobs of one namespace."""

    saves_logs = True  # pods, and what they logged, go with their job

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self.options = "--kuberay"
        if kubectl.context:
            self.options += f" --context {kubectl.context}"
        if kubectl.namespace != NAMESPACE:
            self.options += f" --namespace {kubectl.namespace}"

    def create(self, made: dict[str, Any]) -> None:
        """Send it; the API refuses unknown fields."""
        query = {"fieldValidation": "Strict", "fieldManager": "brgsa"}
        self.kubectl.request("create", self.kubectl.rayjobs(), json.dumps(made), **query)

    def fetch(self, name: str) -> dict[str, Any] | None:
        """The RayJob of this name as the cluster has it, None where it has none."""
        try:
            found: dict[str, Any] = self.kubectl.request("get", self.kubectl.rayjobs(name))
        except ObjectNotFound:
            return None
        return found

    def list(self) -> list[Job]:
        return [_job(told) for told in self.kubectl.request("get", self.kubectl.rayjobs())["items"]]

    def get(self, name: str) -> Job:
        found = self.fetch(name)
        if found is None:
            raise ObjectNotFound(
                f"No RayJob {name} in namespace {self.kubectl.namespace}: deleted, or cleaned up after it ended. "
                f"`brgsa jobs list {self.options}` shows what is there, `brgsa jobs logs {name} {self.options}` a log that "
                "was kept."
            )
        return _job(found)

    def log(self, name: str) -> Log | None:
        """The log of the newest pod that submits it, which streams the job's; None before there is one, and after."""
        found = self.fetch(name)
        if found is None:
            return None
        selector = f"job-name={name}"
        if found["spec"].get("submissionMode") == "SidecarMode":
            cluster = found.get("status", {}).get("rayClusterName", "")
            selector = f"ray.io/cluster={cluster},ray.io/node-type=head"
        pods = self.kubectl.request("get", self.kubectl.pods(), labelSelector=selector).get("items", [])
        if not pods:
            return None
        newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
        return _PodLog(self.kubectl, newest["metadata"]["name"])

    def stop(self, name: str) -> None:
        """Delete the RayJob, and with it its cluster. What it has logged is kept in MLflow first."""
        self.get(name)
        try:
            log = self.log(name)
            text = "".join(log.read(follow=False)) if log else ""
        except (UserError, RuntimeError):
            text = ""  # a pod that has not begun has no log
        if text:
            with tempfile.TemporaryDirectory(prefix="brgsa-") as scratch:
                path = Path(scratch) / job_logs.FILE
                path.write_text(text, encoding="utf-8")
                try_to_save_log(name, path)
        self.kubectl.request("delete", self.kubectl.rayjobs(name))


@dataclass(frozen=True)
class _PodLog:
    kubectl: Kubectl
    source: str

    def read(self, follow: bool) -> Iterator[str]:
        query = urlencode({"container": SUBMITTER, **({"follow": "true"} if follow else {})})
        path = f"{self.kubectl.pods(self.source)}?{query}"
        if not follow:
            yield self.kubectl.run("get", "--raw", path, REQUEST)
            return
        # Its own session: a Ctrl-C at the terminal is a question to us, not an end to this stream.
        stream = subprocess.Popen(
            self.kubectl.command("get", "--raw", path),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        atexit.register(stream.kill)  # a thread that reads is not waited for when the program ends
        assert stream.stdout is not None
        try:
            yield from stream.stdout
        finally:
            stream.kill()
            stream.wait()
            atexit.unregister(stream.kill)


def _job(told: dict[str, Any]) -> Job:
    status = told.get("status", {})
    ray, deployment = status.get("jobStatus", ""), status.get("jobDeploymentStatus", "")
    # KubeRay's own end comes last (a retry may follow Ray's FAILED), and alone where a deadline ended the job.
    if deployment == "Complete":
        state = ray if ray in ("SUCCEEDED", "FAILED", "STOPPED") else "SUCCEEDED"
    elif deployment in ("Failed", "ValidationFailed"):
        state = "STOPPED" if ray == "STOPPED" else "FAILED"
    else:
        state = "RUNNING" if ray == "RUNNING" else "PENDING"
    said = " ".join(status[key] for key in ("reason", "message") if status.get(key)) if state == "FAILED" else ""
    return Job(
        name=told["metadata"]["name"],
        state=state,
        phase=state if state not in ("PENDING", "RUNNING") else (f"{deployment} {ray}".strip() or "New"),
        command=told["spec"].get("entrypoint", ""),
        started=_seconds(status.get("startTime") or told["metadata"].get("creationTimestamp")),
        ended=_seconds(status.get("endTime")),
        message=said,
    )


def _seconds(text: str | None) -> float | None:
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
    """Create a RayJob from an overlay, follow it and keep its log; return its exit status.

    Args:
        given: the verb, and what of its arguments is not to be as the overlay has it.
        verbs: of the command line.
        name: default a new one.
        replace: delete what the cluster has under this name first; else a name that is taken is refused.
        dry_run: print the manifest (YAML), send nothing and ask no cluster.

    Raises:
        UserError: see `check_verb`, `render` and `manifest`; the API is away, refuses, or has the name already.
    """
    verb = check_verb(given, verbs)
    rendered = render(overlay, verb, kubectl)
    made = build_manifest(rendered, given, verbs, name or new_name(verb), kubectl.namespace)
    name = made["metadata"]["name"]
    _show(manifest_diff(rendered, made, f"overlay/{overlay}", f"job/{name}"))
    if dry_run:
        print(yaml.safe_dump(made, sort_keys=False, width=10_000), end="")
        return 0
    jobs = KubeJobs(kubectl)
    live = jobs.fetch(name)
    if live is not None:
        there = {"metadata": {k: live["metadata"].get(k) for k in made["metadata"]}, "spec": live["spec"]}
        sent = {"metadata": made["metadata"], "spec": made["spec"]}
        _show(manifest_diff(there, sent, f"cluster/{name}", f"job/{name}"))
        if not replace:
            raise UserError(
                f"--name {name} is taken on the cluster ({_job(live).phase}): choose another, or add --replace."
            )
        jobs.stop(name)
        _until_gone(jobs, name)
    jobs.create(made)
    notify(f"{name} is on the cluster, namespace {kubectl.namespace}.")
    if not wait:
        notify(next_steps(jobs, name))
        return 0
    return follow_to_end(jobs, name)


def _until_gone(jobs: KubeJobs, name: str) -> None:
    import time

    end = time.monotonic() + 120
    while jobs.fetch(name) is not None:
        if time.monotonic() > end:
            raise RuntimeError(f"{name} was deleted and is still there after two minutes")
        time.sleep(1.0)


def _show(diff: str) -> None:
    if diff:
        print(diff, file=sys.stderr)
