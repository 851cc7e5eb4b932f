"""Run as a program: the doctor on a Ray of two nodes on this machine, the second of another commit, as its image would say;
then with the second frozen. Prints the findings as JSON."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict

from typer.testing import CliRunner

from brgsa_platform.doctor import doctor
from brgsa_platform.runtime import session


def main() -> None:
    session.quiet_environment()
    from ray.cluster_utils import Cluster

    from brgsa_platform.cli.main import app

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 200 * 2**20, "include_dashboard": False},
    )
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=150 * 2**20, env_vars={"BRGSA_COMMIT": "f" * 40})
        done = CliRunner().invoke(app, ["doctor", "--ray", cluster.address, "--json"])
        raylet = node.all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGSTOP)
        start = time.monotonic()
        frozen = doctor.examine(limit=4)
        seconds = time.monotonic() - start
        os.kill(raylet, signal.SIGCONT)
    finally:
        cluster.shutdown()
    both = json.loads(done.stdout)
    status = done.exit_code
    print(json.dumps({"status": status, "both": both, "frozen": [asdict(one) for one in frozen], "seconds": seconds}))


if __name__ == "__main__":
    main()
