"""How many trials a cluster holds at a time."""

from __future__ import annotations

import pytest

from brgsa.errors import UserError
from brgsa_platform.config import load_config
from brgsa_platform.search.trials import TrialResources


def trial_resources(workers: int, concurrent: int | None, gpu_share: float, **cluster: float) -> TrialResources:
    config = load_config("demo-smoke", overrides=[f"train.workers={workers}", "train.threads=1"])
    return TrialResources.of(config, concurrent, gpu_share, cluster)


@pytest.mark.parametrize(
    ("workers", "share", "cluster", "expected"),
    [
        (1, 0.0, {"CPU": 2}, TrialResources(1.0, 0.0, 1, 1)),
        (1, 0.0, {"CPU": 5}, TrialResources(1.0, 0.0, 2, 1)),
        (1, 1.0, {"CPU": 64, "GPU": 8}, TrialResources(1.0, 1.0, 8, 1)),
        (1, 0.25, {"CPU": 64, "GPU": 1}, TrialResources(1.0, 0.25, 4, 1)),
        (1, 0.1, {"CPU": 64, "GPU": 1}, TrialResources(1.0, 0.1, 10, 1)),  # 10 times 0.1 is a whole one
        (1, 0.25, {"CPU": 5, "GPU": 1}, TrialResources(1.0, 0.25, 2, 1)),  # the CPUs are what is short
        (4, 1.0, {"CPU": 64, "GPU": 8}, TrialResources(0.5, 0.0, 2, 1)),  # the workers reserve their own GPUs
    ],
)
def test_as_many_as_there_is_room_for(
    workers: int, share: float, cluster: dict[str, float], expected: TrialResources
) -> None:
    assert trial_resources(workers, None, share, **cluster) == expected


def test_no_room_is_said_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"--concurrent 9 trials need 18 CPUs .*at most 2 fit"):
        trial_resources(1, 9, 0.0, CPU=5)
    with pytest.raises(UserError, match=r"needs 2 CPUs and 0\.5 GPUs, and the cluster has 5 and 0"):
        trial_resources(1, None, 0.5, CPU=5)
    with pytest.raises(UserError, match=r"train\.workers=8 needs 16\.5 CPUs and 8 GPUs, and the cluster has 64 and 4"):
        trial_resources(8, None, 1.0, CPU=64, GPU=4)
