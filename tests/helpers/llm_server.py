"""An OpenAI-compatible endpoint on this machine with known answers and faults, over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from brgsa.summaries import read_findings


@dataclass
class Reply:
    """What the server does with one request.

    Attributes:
        content: of the message; the whole body where `body` is given.
        half: the connection ends in mid-body.
    """

    content: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    body: bytes | None = None
    seconds: float = 0.0
    half: bool = False


def report_of(request: dict[str, Any]) -> str:
    """The report in a request, without the marks around it."""
    text = next(one["content"] for one in request["messages"] if one["role"] == "user")
    return str(text.removeprefix("<report>\n").removesuffix("\n</report>"))


def truthful(request: dict[str, Any]) -> Reply:
    """What the rules read, as a language model that makes no mistake would say it."""
    found = read_findings(report_of(request))
    statements = [{"finding": n.lower(), "status": s.value} for n, s in found.items() if s.value != "history"]
    return Reply(json.dumps({"statements": statements}))


def says(*findings: tuple[str, str]) -> Callable[[dict[str, Any]], Reply]:
    """The same statements of every report."""
    content = json.dumps({"statements": [{"finding": name, "status": status} for name, status in findings]})
    return lambda request: Reply(content)


@dataclass
class LlmServer:
    """The server's address, what it answers, and what it was asked."""

    url: str
    answer: Callable[[dict[str, Any]], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def reports(self) -> list[str]:
        """The reports that it was asked about, in order."""
        return [report_of(request) for request in self.requests]


@contextmanager
def llm_server(answer: Callable[[dict[str, Any]], Reply] = truthful) -> Iterator[LlmServer]:
    """Serve until the block ends; `answer` may be replaced meanwhile."""
    counting = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with counting:
                state.requests.append(request)
                state.keys.append(self.headers.get("Authorization"))
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                self._reply(state.answer(request), request)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with counting:
                    state.at_once -= 1

        def _reply(self, reply: Reply, request: dict[str, Any]) -> None:
            time.sleep(reply.seconds)
            body = reply.body if reply.body is not None else json.dumps(_completion(reply, request)).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if reply.half else body)
            if reply.half:
                self.wfile.flush()
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = LlmServer(f"http://127.0.0.1:{server.server_address[1]}/v1", answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _completion(reply: Reply, request: dict[str, Any]) -> dict[str, Any]:
    words = sum(len(one["content"].split()) for one in request["messages"])
    return {
        "choices": [
            {"message": {"role": "assistant", "content": reply.content}, "finish_reason": reply.finish, "index": 0}
        ],
        "usage": {"prompt_tokens": words, "completion_tokens": len(reply.content.split())},
    }
