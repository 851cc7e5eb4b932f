"""Ray's session: what a session on this machine switches off, and a joined cluster does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from brgsa_platform.runtime import session

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
JOINED = f"""
import os
from brgsa_platform.runtime.session import ray_session
with ray_session():
    import ray
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    print(ray.cluster_resources()["CPU"], get_env_vars_to_propagate().get({WATCHER!r}, "Ray's own choice"))
"""


@pytest.mark.ray
@pytest.mark.usefixtures("ray_of_its_own")
def test_only_a_cluster_watches_for_preemption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WATCHER, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with session.ray_session(num_cpus=3):
        import ray

        assert os.environ[WATCHER] == "0"
        with session.ray_session():  # verbs nest
            pass
        assert ray.is_initialized()
        outside = {key: value for key, value in os.environ.items() if key != WATCHER}
        outside["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        done = subprocess.run([sys.executable, "-c", JOINED], env=outside, capture_output=True, text=True, timeout=300)
        assert done.stdout == "3.0 Ray's own choice\n", done.stderr
    assert WATCHER not in os.environ
    assert not ray.is_initialized()


def test_a_users_own_choice_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WATCHER, "1")
    with session._environment(session.LOCAL_ENVIRONMENT):
        assert os.environ[WATCHER] == "1"
    assert os.environ[WATCHER] == "1"
