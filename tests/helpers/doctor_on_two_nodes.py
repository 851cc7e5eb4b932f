"""Run as a program: the doctor on a Ray of two nodes on this machine, the second of another commit, as its image would say;
then with the second one frozen. Prints the findings as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from patience import slowdown

from brgsa_platform.doctor import doctor
from brgsa_platform.doctor.doctor import Limits
from brgsa_platform.runtime import session


def main() -> None:
    """Limits stretch with the machine's load, so that only the frozen node misses one."""
    doctor.LIMITS = Limits(**{name: limit * slowdown() for name, limit in asdict(Limits()).items()})
    session.quiet_environment()
    from ray.cluster_utils import Cluster

    from brgsa_platform.cli.main import app

    head = {
        "num_cpus": 1,
        "object_store_memory": 200 * 2**20,
        "include_dashboard": False,
        # Ray itself must not notice the frozen node before the doctor does.
        "_system_config": {"health_check_failure_threshold": 10_000},
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=150 * 2**20, env_vars={"BRGSA_COMMIT": "f" * 40})
        done = CliRunner().invoke(app, ["doctor", "--ray", cluster.address, "--json"])
        raylet = node.all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGSTOP)
        start = time.monotonic()
        frozen = doctor.examine(limits=replace(doctor.LIMITS, first=4 * slowdown()))
        seconds = time.monotonic() - start
        os.kill(raylet, signal.SIGCONT)
    finally:
        cluster.shutdown()
    both = json.loads(done.stdout)
    status = done.exit_code
    free_seconds = seconds / slowdown()
    print(
        json.dumps({"status": status, "both": both, "frozen": [asdict(one) for one in frozen], "seconds": free_seconds})
    )


if __name__ == "__main__":
    main()
