"""Ray nodes that have a network of their own each: network namespaces on one bridge of this machine.

The file system is shared, as a cluster's volume would be. Needs root and `ip` (iproute2).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

BRIDGE = "brgsa0"
NETWORK = "10.77.0"
PORT = 6379
QUICK = {  # a lost node is noticed after some three seconds instead of half a minute
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "GLOO_SOCKET_IFNAME": "eth0",  # the machine's name resolves to an address outside of the namespaces
}


@dataclass
class Node:
    """A Ray node in a network namespace.

    Attributes:
        role: its label `brgsa.io/role`; empty: none.
    """

    name: str
    address: str
    cpus: int
    role: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def namespace(self) -> str:
        return f"brgsa-{self.name}"

    def processes(self) -> dict[int, str]:
        """Process ids in the node's network and what they call themselves."""
        done = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        found = {}
        for pid in map(int, done.stdout.split()):
            with contextlib.suppress(psutil.Error):
                found[pid] = " ".join(psutil.Process(pid).cmdline())
        return found

    def kill(self) -> None:
        """Pull the plug: SIGKILL to all that runs there."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(timeout=30)
            self.process = None

    def cut_off(self) -> None:
        """Pull the network cable."""
        ip("link", "set", self.namespace, "down")

    def reconnect(self) -> None:
        ip("link", "set", self.namespace, "up")


@dataclass
class Nodes:
    """A cluster: its nodes by name, and the environment that a driver on its head needs."""

    folder: Path
    nodes: dict[str, Node]
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))},
            **QUICK,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": f"{self.nodes['head'].address}:{PORT}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow' / 'mlflow.db'}",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str) -> None:
        """Start a node's Ray and wait until the cluster counts it."""
        node = self.nodes[name]
        environment = self.environment
        common = [
            f"--node-ip-address={node.address}", f"--num-cpus={node.cpus}", f"--object-store-memory={200 * 2**20}",
            "--disable-usage-stats", "--block",
        ]  # fmt: skip
        if name == "head":
            del environment["RAY_ADDRESS"]
            mine = ["--head", f"--port={PORT}", "--dashboard-host=127.0.0.1", f"--temp-dir={self.folder / 'ray'}"]
        else:
            mine = [f"--address={self.nodes['head'].address}:{PORT}"]
        if node.role:
            mine.append(f"--labels=brgsa.io/role={node.role}")
        log = (self.folder / f"{name}.log").open("ab")
        command = [str(Path(sys.executable).with_name("ray")), "start", *mine, *common]
        node.process = subprocess.Popen(
            within(node, command), env=environment, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip
        end = time.monotonic() + 120
        while not any("raylet" in command for command in node.processes().values()):
            assert node.process.poll() is None, (self.folder / f"{name}.log").read_text()
            assert time.monotonic() < end, f"{name} did not start"
            time.sleep(0.2)

    def brgsa(self, *arguments: str) -> subprocess.Popen[str]:
        """A verb, as a job on the head would run it; its output goes to a file of the cluster's folder."""
        log = (self.folder / "driver.log").open("a")
        return subprocess.Popen(
            within(self.nodes["head"], [sys.executable, "-m", "brgsa_platform.cli", *arguments]),
            env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def places(self, words: str) -> set[str]:
        """Names of the nodes where a Ray process with these words in its title is at work now."""
        return {
            node.name
            for node in self.nodes.values()
            if any(title.startswith("ray::") and words in title for title in node.processes().values())
        }


def within(node: Node, command: list[str]) -> list[str]:
    return ["ip", "netns", "exec", node.namespace, *command]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def cluster(layout: list[Node]) -> Iterator[Nodes]:
    """These nodes on one bridge, started; all of it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="brgsa-") as folder:  # short: sockets lie below it
        (Path(folder) / "mlflow").mkdir()
        nodes = Nodes(Path(folder), {node.name: node for node in layout})
        try:
            ip("link", "add", BRIDGE, "type", "bridge")
            ip("link", "set", BRIDGE, "up")
            for node in layout:
                ip("netns", "add", node.namespace)
                ip("link", "add", node.namespace, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
                ip("link", "set", node.namespace, "master", BRIDGE, "up")
                ip("-n", node.namespace, "address", "add", f"{node.address}/24", "dev", "eth0")
                ip("-n", node.namespace, "link", "set", "eth0", "up")
                ip("-n", node.namespace, "link", "set", "lo", "up")
            for node in layout:
                nodes.start(node.name)
            yield nodes
        finally:
            for node in layout:
                with contextlib.suppress(subprocess.CalledProcessError):
                    node.kill()
                with contextlib.suppress(subprocess.CalledProcessError):
                    ip("netns", "delete", node.namespace)
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "delete", BRIDGE)
