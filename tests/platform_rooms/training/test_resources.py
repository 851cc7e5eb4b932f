"""Whether a training takes a GPU, and which device a training in this process has."""

from __future__ import annotations

import pytest
import ray
import torch
from refusals import refused

from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.loading import loaders
from brgsa_platform.runtime import session
from brgsa_platform.training import resources
from brgsa_platform.training.resources import gpus_per_worker, local_device, room_for


def config(gpu: str) -> RunConfig:
    return load_config("paper-smoke", overrides=["train.workers=0", f"train.gpu={gpu}"])


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees a GPU; nothing here uses it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("gpu", "share", "expected"),
    [
        ("auto", None, 1.0),
        ("auto", 0.25, 0.25),
        ("auto", 0.0, 0.0),  # --gpus-per-trial 0
        ("true", None, 1.0),
        ("true", 0.5, 0.5),
        ("true", 0.0, 0.0),
        ("false", None, 0.0),
        ("false", 1.0, 0.0),
    ],
)
def test_configuration_and_share_decide(cuda: None, gpu: str, share: float | None, expected: float) -> None:
    assert gpus_per_worker(config(gpu), share) == expected


@pytest.mark.parametrize(("gpu", "share"), [("false", None), ("false", 1.0), ("auto", 0.0), ("true", 0.0)])
def test_a_visible_gpu_is_left_alone(cuda: None, gpu: str, share: float | None) -> None:
    assert local_device(config(gpu), share) == torch.device("cpu")


@pytest.mark.parametrize(
    ("settings", "cpus", "gpus", "expected"),
    [
        (["train.workers=[2, 8]"], 16, 0, 8),  # each wants a CPU and another one for its data
        (["train.workers=[2, 8]"], 15, 0, 4),  # 7, 6 and 5 do not divide the batch of 16
        (["train.workers=[2, 8]", "data.loader=torch"], 15, 0, 8),
        (["train.workers=[2, 8]"], 16, 5, 4),
        (["train.workers=[2, 8]"], 16, 1, 8),  # too few GPUs for the fewest: "auto" trains on CPUs
        (["train.workers=[2, 8]", "train.gpu=false"], 16, 4, 8),
        (["train.workers=4"], 64, 64, 4),
    ],
)
def test_as_many_workers_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, settings: list[str], cpus: int, gpus: int, expected: int
) -> None:
    cluster(monkeypatch, cpus, gpus)
    assert room_for(load_config("demo", overrides=settings)) == expected


def test_room_for_less_than_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, 3, 0)
    with refused("too-few-cpus", field="train.workers", value=2):
        room_for(load_config("demo", overrides=["train.workers=[2, 4]"]))
    cluster(monkeypatch, 8, 1)
    with refused("too-few-gpus", field="train.workers", value=2):
        room_for(load_config("demo", overrides=["train.workers=[2, 4]", "train.gpu=true"]))


def cluster(monkeypatch: pytest.MonkeyPatch, cpus: float, gpus: float) -> None:
    for module in (resources, loaders, session):
        monkeypatch.setattr(module, "cluster_cpus", lambda role=None: cpus, raising=False)
        monkeypatch.setattr(module, "nodes_for", lambda role: {}, raising=False)
    monkeypatch.setattr(resources, "cluster_gpus", lambda: gpus)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device(config("auto")) == torch.device("cpu")
    for gpu, share in (("true", None), ("auto", 0.5)):
        with refused("no-gpu", field="train.gpu"):
            local_device(config(gpu), share)


@pytest.mark.parametrize(
    ("given", "visible", "number"),
    [
        ([], None, 0),
        (["1"], "1", 0),  # Ray shows the process its own GPU alone
        (["2"], "0,2", 1),
        ([3], None, 3),  # RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES
    ],
)
def test_the_device_is_the_one_that_ray_gave(
    cuda: None, monkeypatch: pytest.MonkeyPatch, given: list[object], visible: str | None, number: int
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: given)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_device(config("auto"), 0.5) == torch.device("cuda", number)
