"""The jobs' commands against the command line itself, and their pods against what their presets need."""

from __future__ import annotations

import copy
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from manifests import OVERLAYS, Manifest, job, jobs, named, quantity, services
from refusals import refused

from brgsa_platform.cli.main import app
from brgsa_platform.config import RunConfig, flatten, load_config

UsageError = typer.BadParameter.__mro__[1]  # Typer carries its own click
VERBS = ("prepare", "summarize", "train", "tune", "evaluate")


def parse(entrypoint: str) -> tuple[str, dict[str, Any]]:
    """Verb and parameters as `brgsa` itself reads them; raises UsageError for what it does not know."""
    program, verb, *arguments = shlex.split(entrypoint)
    assert program == "brgsa"
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return verb, command.make_context(verb, list(arguments)).params


def config_of(entry: Manifest) -> RunConfig:
    _, given = parse(entry["spec"]["entrypoint"])
    return load_config(given["preset"], given["config"], given["settings"] or [])


def resources(entry: Manifest) -> dict[str, float]:
    """The CPUs and GPUs that Ray counts when the job begins: the workers' limits; the head offers none."""
    total = {"CPU": 0.0, "GPU": 0.0}
    for group in entry["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        total["CPU"] += group["replicas"] * quantity(limits["cpu"])
        total["GPU"] += group["replicas"] * quantity(limits.get("nvidia.com/gpu", 0))
    return total


def nodes(entry: Manifest) -> list[dict[str, Any]]:
    """The workers as Ray lists them, with the labels of their groups."""
    return [
        {
            "Alive": True,
            "Labels": group["labels"],
            "Resources": {"CPU": quantity(limits["cpu"]), "GPU": quantity(limits.get("nvidia.com/gpu", 0))},
        }
        for group in entry["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        for limits in [group["template"]["spec"]["containers"][0]["resources"]["limits"]]
        for _ in range(group["replicas"])
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_command_line_knows_every_command(overlay: str) -> None:
    options = {}
    for entry in jobs(overlay):
        verb, given = parse(entry["spec"]["entrypoint"])
        assert entry["metadata"]["name"] == f"brgsa-{verb}"
        assert entry["metadata"]["labels"]["brgsa.dev/verb"] == verb
        options[verb] = given
    assert sorted(options) == sorted(VERBS)
    # One job's result is the next one's input, all on the shared volume.
    store = options["prepare"]["out"]
    assert {options[verb]["data"] for verb in ("train", "tune", "evaluate")} == {store}
    assert options["summarize"]["store"] == store
    assert options["evaluate"]["checkpoint"] == options["train"]["out"]
    assert all(str(place).startswith("/data/") for place in (store, options["train"]["out"], options["tune"]["out"]))
    assert load_config(options["train"]["preset"]).data.style in options["summarize"]["style"]


@pytest.mark.parametrize(
    "entrypoint",
    [
        "brgsa train --dataset /data/store",
        "brgsa prepare /data/archive --layout ctrate --out /x",
        "brgsa tune --trials many",
    ],
)
def test_a_renamed_option_is_noticed(entrypoint: str) -> None:
    with pytest.raises(UsageError):
        parse(entrypoint)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the checks that brgsa does before it starts see a job's cluster."""
    import ray

    def see(entry: Manifest) -> None:
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources(entry))
        monkeypatch.setattr(ray, "nodes", lambda: nodes(entry))

    return see


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_training_has_what_its_preset_needs(overlay: str, cluster: Any) -> None:
    from brgsa_platform.training.resources import gpus_per_worker, room_for

    entry = job(overlay, "train")
    cluster(entry)
    config = config_of(entry)
    room_for(config)
    # Half precision is for GPUs, so a preset that asks for it must find one for each worker.
    assert bool(gpus_per_worker(config)) == (config.train.precision != "32")
    small = copy.deepcopy(entry)
    for group in small["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "500m"
    cluster(small)
    with refused("too-few-cpus", field="train.workers"):
        room_for(config)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_search_has_room_for_its_trials(overlay: str) -> None:
    from brgsa_platform.search.spec import SearchOptions
    from brgsa_platform.search.trials import TrialResources

    entry = job(overlay, "tune")
    _, given = parse(entry["spec"]["entrypoint"])
    options = SearchOptions(concurrent=given["concurrent"], gpu_share=given["gpus_per_trial"])
    trial = TrialResources.of(config_of(entry), options, resources(entry))
    assert trial.at_once == (2 if given["gpus_per_trial"] else 1)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_gpu_has_the_cpus_of_its_worker(overlay: str) -> None:
    """A training worker is one CPU and one GPU of the same pod, and its data wants a CPU too."""
    for entry in jobs(overlay):
        for group in entry["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert quantity(limits["cpu"]) >= 2 * quantity(limits.get("nvidia.com/gpu", 1))
            # brgsa counts what is there when it begins, so nothing that it counted may be taken away while it waits.
            assert group["minReplicas"] == group["replicas"] >= 1
            assert group["maxReplicas"] >= group["replicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_drivers_that_compute_are_where_a_gpu_is(overlay: str) -> None:
    for verb in VERBS:
        spec = job(overlay, verb)["spec"]
        groups = {group["groupName"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
        # Only the evaluation's driver runs the model itself; the head has no CPU for that.
        assert spec.get("entrypointNumCpus", 0) == (verb == "evaluate")
        assert spec.get("entrypointNumGpus", 0) == (verb == "evaluate" and overlay != "kind")
        needs_gpu = verb in ("train", "tune", "evaluate") and overlay != "kind"
        assert groups == ({"data", "gpu"} if needs_gpu else {"data"})


def test_spot_rides_out_lost_workers() -> None:
    spec = job("spot", "train")["spec"]
    config = config_of(job("spot", "train"))
    assert spec["backoffLimit"] >= 10
    assert config.train.max_failures >= 10
    assert config.train.checkpoint_minutes <= 5


def test_mlflow_knows_its_servers_options() -> None:
    """By the text of its command line: importing it takes seconds."""
    package = importlib.util.find_spec("mlflow")
    assert package
    assert package.origin
    known = set(
        re.findall(r"--[a-z-]+", "".join(f.read_text() for f in Path(package.origin).parent.glob("*cli*/*.py")))
    )
    container = named(services("gpu"), "Deployment", "brgsa-mlflow")["spec"]["template"]["spec"]["containers"][0]
    verb, *options = container["args"]
    assert (container["command"], verb) == (["mlflow"], "server")
    assert {option.partition("=")[0] for option in options} <= known
    assert "--allow-hosts" not in known


def test_a_training_goes_on_from_one_overlay_to_another() -> None:
    """Begun on spot nodes, ended on others: the same folder, and nothing changed that makes it another training."""
    from brgsa_platform.training.run_folder import FREE_TO_CHANGE

    one, other = job("spot", "train"), job("gpu", "train")
    assert parse(one["spec"]["entrypoint"])[1]["out"] == parse(other["spec"]["entrypoint"])[1]["out"]
    was, now = flatten(config_of(one).to_dict()), flatten(config_of(other).to_dict())
    changed = {key for key in was.keys() | now.keys() if was.get(key) != now.get(key)}
    assert changed == {"train.max_failures", "train.checkpoint_minutes"} <= FREE_TO_CHANGE
