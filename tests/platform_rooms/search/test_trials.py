"""How many trials a cluster holds at a time, on which devices, and with how many threads each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brgsa.errors import UserError
from brgsa_platform.config import load_config
from brgsa_platform.search.spaces import base_config, drawn_config
from brgsa_platform.search.spec import SearchOptions
from brgsa_platform.search.trials import TrialResources, gpus_per_process


def resources(workers: int, cluster: dict[str, float], **options: Any) -> TrialResources:
    config = load_config("demo-smoke", overrides=[f"train.workers={workers}"])
    return TrialResources.of(config, SearchOptions(**options), cluster)


@pytest.mark.parametrize(
    ("workers", "share", "cluster", "expected"),
    [
        (1, 0.0, {"CPU": 2}, TrialResources(True, 1.0, 0.0, 0.0, 1, 1)),
        (0, 0.0, {"CPU": 5}, TrialResources(True, 1.0, 0.0, 0.0, 2, 2)),
        (1, None, {"CPU": 64, "GPU": 8}, TrialResources(True, 1.0, 1.0, 1.0, 8, 8)),
        (1, 0.0, {"CPU": 64, "GPU": 8}, TrialResources(True, 1.0, 0.0, 0.0, 32, 32)),
        (1, 0.25, {"CPU": 64, "GPU": 1}, TrialResources(True, 1.0, 0.25, 0.25, 4, 4)),
        (1, 0.1, {"CPU": 64, "GPU": 1}, TrialResources(True, 1.0, 0.1, 0.1, 10, 10)),  # 10 times 0.1 is a whole one
        (1, 0.25, {"CPU": 5, "GPU": 1}, TrialResources(True, 1.0, 0.25, 0.25, 2, 2)),  # the CPUs are what is short
        (4, 1.0, {"CPU": 64, "GPU": 8}, TrialResources(False, 0.5, 0.0, 1.0, 2, 8)),  # workers reserve their own GPUs
    ],
)
def test_as_many_as_there_is_room_for(
    workers: int, share: float | None, cluster: dict[str, float], expected: TrialResources
) -> None:
    assert resources(workers, cluster, gpu_share=share) == expected


@pytest.mark.parametrize(
    ("workers", "cluster", "options", "field", "value"),
    [
        (1, {"CPU": 5}, {"concurrent": 9}, "--concurrent", 9),
        (1, {"CPU": 5}, {"gpu_share": 0.5}, "train.workers", 1),
        (8, {"CPU": 64, "GPU": 4}, {"gpu_share": 1.0}, "train.workers", 8),
    ],
)
def test_no_room_is_refused(
    workers: int, cluster: dict[str, float], options: dict[str, Any], field: str, value: int
) -> None:
    with pytest.raises(UserError) as error:
        resources(workers, cluster, **options)
    assert (error.value.code, error.value.field, error.value.value) == ("cluster-too-small", field, value)


@pytest.mark.parametrize(
    ("wanted", "share", "gpus", "expected"),
    [
        ("auto", None, 2.0, 1.0),
        ("auto", None, 0.0, 0.0),
        ("auto", 0.0, 2.0, 0.0),
        ("auto", 0.5, 2.0, 0.5),
        (False, None, 2.0, 0.0),
        (False, 0.0, 2.0, 0.0),
        (True, None, 0.0, 1.0),  # which the cluster then lacks
        (True, 0.5, 2.0, 0.5),
    ],
)
def test_the_configuration_and_the_share_decide_on_a_gpu(
    wanted: Any, share: float | None, gpus: float, expected: float
) -> None:
    assert gpus_per_process(wanted, share, gpus) == expected


@pytest.mark.parametrize(("wanted", "share"), [(True, 0.0), (False, 0.5)])
def test_a_share_that_contradicts_the_configuration(wanted: bool, share: float) -> None:
    with pytest.raises(UserError) as error:
        gpus_per_process(wanted, share, 8.0)
    assert (error.value.code, error.value.field) == ("options-conflict", "--gpus-per-trial")


def test_the_checkpoint_that_is_kept_is_of_the_auroc_that_is_compared(tmp_path: Path) -> None:
    """By default a training keeps that of the lowest loss; what the user or the space says goes before."""
    file = tmp_path / "mine.yaml"
    file.write_text("train: {select: loss}", encoding="utf-8")
    assert load_config("paper").train.select == "loss"
    for given, expected in (
        ((None, None, []), "auroc"),
        (("paper", None, ["optim.lr=1e-3"]), "auroc"),
        (("paper", None, ["train.select=loss"]), "loss"),
        (("paper", file, []), "loss"),
    ):
        assert base_config(*given).train.select == expected
    assert drawn_config(base_config("paper", None, []), {"train.select": "loss"}).train.select == "loss"


def test_threads_are_those_of_the_trial_s_node() -> None:
    """Ten trials on nodes of 16 and of 4 CPUs: eight of them beside each other on the one, two on the other."""
    ten = resources(1, {"CPU": 20})
    assert ten.at_once == 10
    assert [ten.threads_on({"CPU": cpus}) for cpus in (16, 4, 1)] == [2, 2, 1]
    one = resources(1, {"CPU": 20}, concurrent=1)
    assert [one.threads_on({"CPU": cpus}) for cpus in (16, 4)] == [16, 4]
    assert one.threads_on({"CPU": 16}, cores=2) == 2
    on_gpus = resources(1, {"CPU": 32, "GPU": 2}, gpu_share=0.5)
    assert on_gpus.threads_on({"CPU": 16, "GPU": 1}) == 8  # two halves of its GPU
