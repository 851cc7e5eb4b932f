"""Ray, started quietly or joined where it runs: the one place that calls `ray.init`."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa_platform.runtime import addresses, ray_errors

# A user's own value wins. Ray polls each two seconds by default, and a report waits for the next poll.
QUIET_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "WARNING",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray gives its workers the lowest priority, where anything else on the machine holds up a training's threads.
    "RAY_worker_niceness": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray warns of too many processes at four times this number, by default one a core. A trial of several workers has a
    # dozen, most of which wait.
    "RAY_worker_maximum_startup_concurrency": str(max(6, os.cpu_count() or 1)),
    # Tune uses a stopped trial's process again once its thread has ended. Told that the thread has not, it waits for ever.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TOKENIZERS_PARALLELISM": "false",
}

# Of a Ray on this machine alone, which ends with its verb.
LOCAL_ENVIRONMENT = {
    # Nobody preempts this machine, and the watcher costs each training some seconds.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray starts a process for each CPU in advance, half a second of a core each, and a verb may need two of them.
    "RAY_prestart_worker_first_driver": "0",
}

ROLE_LABEL = "brgsa.io/role"
ROLES = "BRGSA_NODE_ROLES"


def quiet_environment() -> None:
    """Set the environment that keeps Ray's libraries quiet and quick, here and on a cluster; call before `import ray`."""
    addresses.reach_this_machine_directly()
    for key, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(key, value)


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Join the cluster of `RAY_ADDRESS`, or start Ray on this machine and stop it afterwards.

    A session that already runs in this process is used and left running, so that verbs nest.

    Args:
        num_cpus: logical CPUs of a Ray that is started here; by default all, and at least 2: a training worker and its
            data tasks need one each.

    Raises:
        UserError: Ray cannot be joined or started (see `ray_errors`).
    """
    quiet_environment()
    address = os.environ.get("RAY_ADDRESS", "").strip()
    alone = address in ("", "local")
    import ray

    if ray.is_initialized():
        yield
        return
    with ExitStack() as undo:
        if alone:
            ray_errors.check_machine()
            undo.enter_context(_environment(LOCAL_ENVIRONMENT | _token()))
            # Nobody is told of the dashboard of a Ray that ends with its verb, and it takes two seconds and nine processes.
            cpus = num_cpus or max(2, os.cpu_count() or 2)
            _init(address="local", num_cpus=cpus, include_dashboard=False)
        else:
            ray_errors.check_address(address)
            _init(address=address)
        undo.callback(ray.shutdown)
        set_data_context()
        yield


def _init(*, address: str, **start: Any) -> None:
    import ray

    try:
        # Ray puts the current folder before the standard library on its workers' path: a user's queue.py would be theirs.
        with contextlib.chdir("/"):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **start)
    except Exception as error:  # Ray has no exception of its own for a start that fails
        raise ray_errors.start_refusal(error, "" if address == "local" else address) from error


def _token() -> dict[str, str]:
    """A token for this session alone, where Ray could not keep one: it writes its own below HOME, which may be read-only."""
    folder = Path.home() / ".ray"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) or (folder / "auth_token").is_file():
            return {}
    except OSError:
        pass
    return {} if "RAY_AUTH_TOKEN_PATH" in os.environ else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Variables that are set while the block runs, where the user has not set them."""
    added = {key: value for key, value in defaults.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def set_data_context() -> None:
    """Set Ray Data in this process to the nodes for data work, without its own bars and start-up lines."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.label_selector = nodes_for("data") or None
    # Ray Data warns that its bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


def nodes_for(role: str) -> dict[str, str]:
    """Ray's label selector of the nodes for a role, "data" or "training"; empty where every node does everything.

    A node has its role by the label `brgsa.io/role`. Roles count where there are nodes for both; with `BRGSA_NODE_ROLES=on`
    they count although an autoscaler has yet to start such nodes, with `off` they never do.

    Raises:
        UserError: the variable has another value than auto, on or off ("bad-variable").
    """
    mode = os.environ.get(ROLES, "auto")
    if mode not in ("auto", "on", "off"):
        raise UserError(
            f"{ROLES} is {mode!r}: set it to auto, on or off.", code="bad-variable", field=ROLES, value=mode
        )
    if mode == "on" or (mode == "auto" and {labels.get(ROLE_LABEL) for labels, _ in _nodes()} >= {"data", "training"}):
        return {ROLE_LABEL: role}
    return {}


def cluster_cpus(role: str | None = None) -> float:
    """Logical CPUs of the session's cluster, or of its nodes for a role."""
    wanted = nodes_for(role) if role is not None else {}
    return sum(resources.get("CPU", 0.0) for labels, resources in _nodes() if wanted.items() <= labels.items())


def cluster_gpus() -> float:
    """GPUs of the session's cluster."""
    return sum(resources.get("GPU", 0.0) for _, resources in _nodes())


def _nodes() -> list[tuple[dict[str, str], dict[str, float]]]:
    """Labels and resources of each living node that is not about to go."""
    import ray
    from ray._private.state import state  # no public call tells which nodes drain; Ray Train asks here too

    going = state.get_draining_nodes() if ray.is_initialized() else {}
    return [
        (node.get("Labels", {}), node["Resources"])
        for node in ray.nodes()
        if node["Alive"] and node.get("NodeID") not in going
    ]


def dashboard_address() -> str | None:
    """HOST:PORT of the session's dashboard; None where there is none."""
    import ray

    return ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR).dashboard_url or None
