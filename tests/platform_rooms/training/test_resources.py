"""Whether a training takes a GPU, and which device a training in this process has."""

from __future__ import annotations

import pytest
import ray
import torch
from refusals import refused

from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.training.resources import gpus_per_worker, local_device


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
