"""Ray's session: what a session on this machine switches off, and a joined cluster does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sharedray import SharedRay

from brgsa_platform.runtime import session

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
JOINED = f"""
import os
from brgsa_platform.runtime.session import ray_session
with ray_session():
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    print(get_env_vars_to_propagate().get({WATCHER!r}, "Ray's own choice"))
"""

ALONE = f"""
import os
from brgsa_platform.runtime.session import ray_session
with ray_session(num_cpus=2):
    import ray
    @ray.remote
    def files():
        import queue, random, statistics
        return [module.__file__ for module in (queue, random, statistics)]
    print(ray.get(files.remote()))
    with ray_session():  # verbs nest
        pass
    print(os.environ[{WATCHER!r}], ray.is_initialized())
print({WATCHER!r} in os.environ, ray.is_initialized())
"""


@pytest.mark.ray
def test_rays_workers_take_no_modules_of_the_working_folder_and_need_no_proxy_and_no_home(tmp_path: Path) -> None:
    """And nothing watches for preemption on a machine alone, as long as the session lasts."""
    for name in ("queue", "random", "statistics", "types", "utils", "torch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a module of the user')\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", WATCHER)}
    # A hospital's machine has a proxy, which does not reach this machine, and a home that cannot be written.
    hostile = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "HOME": "/proc/none"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALONE], cwd=tmp_path, env=environment | hostile, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stdout
    assert done.stdout.splitlines()[1:] == ["0 True", "False False"]


@pytest.mark.usefixtures("shared_ray", "ray_session")
def test_a_ray_of_a_verbs_own_has_no_dashboard() -> None:
    assert session.dashboard_address() is None


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_that_is_joined_watches_for_preemption(shared_ray: SharedRay) -> None:
    outside = {key: value for key, value in os.environ.items() if key != WATCHER} | {"RAY_ADDRESS": shared_ray.address}
    done = subprocess.run([sys.executable, "-c", JOINED], env=outside, capture_output=True, text=True)
    assert done.stdout == "Ray's own choice\n", done.stderr


def test_a_users_own_choice_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WATCHER, "1")
    with session._environment(session.LOCAL_ENVIRONMENT):
        assert os.environ[WATCHER] == "1"
    assert os.environ[WATCHER] == "1"
