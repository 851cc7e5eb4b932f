"""A server on this machine that speaks the Kubernetes API for RayJobs, pods and their logs, and drives jobs as KubeRay does."""

from __future__ import annotations

import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

TOKEN = "kube-token-7d1f"
RAYJOBS = "/apis/ray.io/v1/namespaces/"


class Kube:
    """RayJobs by name, and what was asked.

    Attributes:
        outcome: how the next job ends: SUCCEEDED or FAILED.
        hold: a job runs until this is set.
        cut: log streams are broken after so many lines, once each.
        refuse: status and reason for every request, to try an API that is away or says no.
        refusals: how many requests were refused so.
        installed: whether the cluster knows RayJobs.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, list[str]] = {}  # pod → lines of its log
        self.asked: list[str] = []
        self.outcome, self.lines, self.cut = "SUCCEEDED", ["one", "two", "three"], 0
        self.hold = threading.Event()
        self.hold.set()
        self.refuse: tuple[int, str] | None = None
        self.refusals = 0
        self.installed = True

    def create(self, job: dict[str, Any]) -> None:
        job["metadata"] |= {"uid": "u", "resourceVersion": "1", "creationTimestamp": _now()}
        job["status"] = {}
        self.jobs[job["metadata"]["name"]] = job
        threading.Thread(target=self._drive, args=(job,), daemon=True).start()

    def _drive(self, job: dict[str, Any]) -> None:
        name, status, outcome = job["metadata"]["name"], job["status"], self.outcome
        time.sleep(0.3)
        status |= {"jobDeploymentStatus": "Initializing", "startTime": _now(), "rayClusterName": f"{name}-x"}
        time.sleep(0.3)
        log = self.pods.setdefault(f"{name}-pod", [])
        status |= {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
        for line in self.lines:
            log.append(line)
            time.sleep(0.2)
        self.hold.wait()
        log.append("last line")
        reason = {"FAILED": {"reason": "AppFailed", "message": "entrypoint failed"}}.get(outcome, {})
        ended = {"SUCCEEDED": "Complete", "FAILED": "Failed"}[outcome]
        status |= {"jobStatus": outcome, "jobDeploymentStatus": ended, "endTime": _now(), **reason}


@contextmanager
def kube(folder: Path, schema: Any) -> Iterator[Kube]:
    """Serves; `folder/config` is the KUBECONFIG that points at it."""
    state = Kube(schema)

    class Handler(_Handler):
        kube = state

    certificate = folder / "server.pem"
    certificate.write_bytes(_certificate())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # kubectl sends its token to nobody without
    tls.load_cert_chain(certificate)
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"https://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": address, "certificate-authority": str(certificate)}}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
    }
    (folder / "config").write_text(yaml.safe_dump(config))
    try:
        yield state
    finally:
        state.hold.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    kube: Kube
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, query = self._begin()
        parts = path.strip("/").split("/")
        if self._stopped(path):
            return
        if path.startswith(RAYJOBS) and parts[-1] == "rayjobs":
            self._send({"kind": "RayJobList", "items": list(self.kube.jobs.values())})
        elif path.startswith(RAYJOBS) and parts[-1] in self.kube.jobs:
            self._send(self.kube.jobs[parts[-1]])
        elif path.startswith("/api/v1/") and parts[-1] == "pods":
            wanted = query["labelSelector"].removeprefix("job-name=") + "-pod"
            pods = [
                {"metadata": {"name": name, "creationTimestamp": _now()}} for name in self.kube.pods if name == wanted
            ]
            self._send({"kind": "PodList", "items": pods})
        elif path.startswith("/api/v1/") and parts[-1] == "log" and parts[-2] in self.kube.pods:
            assert query["container"] == "ray-job-submitter"
            self._log(parts[-2], query.get("follow") == "true")
        else:
            self._status(404, "NotFound", f'"{parts[-1]}" not found')

    def do_POST(self) -> None:
        path, query = self._begin()
        sent = json.loads(self._body())
        if self._stopped(path):
            return
        assert query["fieldValidation"] == "Strict"
        name = sent["metadata"]["name"]
        faults = [
            f"{e.json_path}: {e.message}" for e in jsonschema.Draft202012Validator(self.kube.schema).iter_errors(sent)
        ]
        if sent["metadata"]["namespace"] != path.split("/")[5]:
            faults.append("the namespace of the provided object does not match the namespace sent on the request")
        if faults:
            self._status(400, "BadRequest", f"strict decoding error: {faults[0]}")
        elif name in self.kube.jobs:
            self._status(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        else:
            self.kube.create(sent)
            self._send(sent, 201)

    def do_DELETE(self) -> None:
        path, _ = self._begin()
        self._body()
        name = path.rpartition("/")[2]
        if self._stopped(path):
            return
        if self.kube.jobs.pop(name, None) is None:
            self._status(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
            return
        self.kube.pods.pop(f"{name}-pod", None)
        self._send({"kind": "Status", "status": "Success"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _begin(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        self.kube.asked.append(f"{self.command} {parts.path}")
        return parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}

    def _stopped(self, path: str) -> bool:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._status(401, "Unauthorized", "Unauthorized")
        elif self.kube.refuse:
            self.kube.refusals += 1
            self._status(*self.kube.refuse, "the server says no")
        elif not self.kube.installed and path.startswith("/apis/ray.io"):
            self._plain(404, "404 page not found\n")
        else:
            return False
        return True

    def _log(self, pod: str, follow: bool) -> None:
        name, sent = pod.removesuffix("-pod"), 0
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            lines = self.kube.pods.get(pod, [])
            ended = self.kube.jobs.get(name, {}).get("status", {}).get("endTime") or name not in self.kube.jobs
            for line in lines[sent:]:
                self._chunk(f"{line}\n")
                sent += 1
                if follow and self.kube.cut == sent:
                    self.kube.cut = 0
                    self.close_connection = True
                    return  # the stream breaks: no last chunk
            if not follow or ended:
                self._chunk("")
                return
            time.sleep(0.05)

    def _chunk(self, text: str) -> None:
        self.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())
        self.wfile.flush()

    def _status(self, code: int, reason: str, message: str) -> None:
        self._send(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "code": code,
                "reason": reason,
                "message": message,
            },
            code,
        )

    def _send(self, answer: Any, code: int = 200) -> None:
        self._plain(code, json.dumps(answer), "application/json")

    def _plain(self, code: int, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _certificate() -> bytes:
    """A key and a certificate of its own for 127.0.0.1, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(host, critical=False).sign(key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret + signed.public_bytes(serialization.Encoding.PEM)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
