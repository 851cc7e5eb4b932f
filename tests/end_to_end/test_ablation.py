"""An ablation for real, on the small phantom: two of its arms, one parent run, and what a second call does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import brgsa
from refusals import refused

from brgsa_platform.config import load_config
from brgsa_platform.search.repeats import ablation
from brgsa_platform.search.repeats.ablation import BOTH, CLIP, AblateOptions, ablate
from brgsa_platform.search.trials import trial_folder
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import connection

pytestmark = pytest.mark.ray

UNSEEN = "Pleural effusion"
ARMS = tuple(arm for arm in ablation.ARMS if arm.name in (CLIP, BOTH))  # a training each
PAIRS = ((BOTH, CLIP),)
SETTINGS = ["model.bank.size=8", "train.batch_size=8"]
GIVEN = [
    "--preset",
    "demo-smoke",
    "--seeds",
    "1",
    "--unseen",
    UNSEEN,
    "--resamples",
    "20",
    "--name",
    "small",
    "--concurrent",
    "1",
]


def test_two_arms_are_told_apart_and_a_second_call_trains_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(ablation, "ARMS", ARMS)
    monkeypatch.setattr(ablation, "PAIRS", PAIRS)
    done = brgsa("ablate", "--data", place / "store", *GIVEN, *SETTINGS)
    assert done.status == 0, done.err
    for words in ("both over clip", "unseen", "protocol honest"):
        assert words in done.out
    folder = place / "ablations" / "small"
    result = json.loads((folder / "result.json").read_text())
    assert list(result["means"]) == [arm.name for arm in ARMS]
    assert all(0 < value < 1 for of in result["means"].values() for values in of.values() for value in values)
    assert {gain["group"] for gain in result["gains"]} >= {"common", "unseen"}
    assert (folder / "clouds-both.png").stat().st_size > 10_000

    api = connection.client()
    parent = api.get_run(result["mlflow_run_id"])
    assert (parent.info.status, parent.data.tags["brgsa.verb"]) == ("FINISHED", "ablate")
    experiment = api.get_experiment_by_name(connection.experiment_name())
    below = api.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    trained = {run.data.tags["brgsa.arm"]: run for run in below if run.data.tags["brgsa.verb"] == "trial"}
    assert trained.keys() == {arm.name for arm in ARMS}
    assert trained["clip"].data.params["data.style"] == "report"

    times = {number: _weights(folder, number) for number in range(len(ARMS))}
    again = brgsa("ablate", "--data", place / "store", *GIVEN, *SETTINGS)
    assert again.status == 0, again.err
    assert {number: _weights(folder, number) for number in times} == times
    assert json.loads((folder / "result.json").read_text()) == result


def _weights(folder: Path, number: int) -> dict[str, int]:
    files = trial_folder(folder, number).rglob("model.safetensors")
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_what_cannot_be_ablated_is_refused_before_anything_starts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, base = place / "store", load_config("demo-smoke")
    with refused("no-ablation", field="model.bank.enabled"):
        ablate(store, load_config("demo-clip-summaries-smoke"), tmp_path / "a")
    with refused("unknown-label", field="--unseen", value="Gout"):
        ablate(store, base, tmp_path / "a", AblateOptions(unseen=["Gout"]))
    with refused("option-value", field="--seeds", value=0):
        ablate(store, base, tmp_path / "a", AblateOptions(seeds=0))
    with refused("unknown-protocol"):
        ablate(store, base, tmp_path / "a", AblateOptions(protocol="hones"))
    with monkeypatch.context() as patch, refused("empty-split", field="split", value="holdout"):
        patch.setattr(ablation, "SPLIT", "holdout")
        ablate(store, base, tmp_path / "a")
    with monkeypatch.context() as patch, refused("unknown-abnormality", field="data.unseen", value="Gout"):
        patch.setattr(Store, "labels", ("Gout",))  # which the reader of reports does not know
        ablate(store, base, tmp_path / "a", AblateOptions(unseen=["Gout"]))
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ablation.json").write_text('{"base": {}}')
    with refused("other-ablation", field="base"):
        ablate(store, base, tmp_path / "b")
