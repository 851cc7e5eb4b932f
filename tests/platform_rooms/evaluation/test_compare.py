"""Two models beside each other, as files of scores."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commandline import brgsa
from refusals import refused

from brgsa.metrics.paired import delong, holm
from brgsa.protocols import load_protocol
from brgsa_platform.evaluation.evaluate_scores import ScoreFiles, evaluate_scores
from brgsa_platform.evaluation.result import Comparison

NAMES = ["Cardiomegaly", "Lung nodule", "Pleural effusion"]
RNG = np.random.default_rng(8)
LABELS = (RNG.random((80, 3)) < 0.4).astype(int)
GOOD, POOR = (LABELS * strength + RNG.normal(size=LABELS.shape) for strength in (2.5, 0.5))
IDS = [f"valid_{i}_a_1" for i in range(80)]
FEW = replace(load_protocol(), bootstrap=replace(load_protocol().bootstrap, resamples=200))


def save(path: Path, values: np.ndarray, ids: list[str] | None = IDS, names: list[str] = NAMES) -> Path:
    with path.open("w", newline="") as file:
        head = [["VolumeName", *names]] if ids else [names]
        csv.writer(file).writerows([*head, *([*([ids[i]] if ids else []), *row] for i, row in enumerate(values))])
    return path


@pytest.fixture
def files(tmp_path: Path) -> ScoreFiles:
    return ScoreFiles(save(tmp_path / "good.csv", GOOD), save(tmp_path / "labels.csv", LABELS))


def compared(files: ScoreFiles, rival: Path) -> Comparison:
    found = evaluate_scores(files, FEW, rival=rival).comparison
    assert found is not None
    return found


def test_the_better_model_gains_on_every_abnormality(files: ScoreFiles, tmp_path: Path) -> None:
    order = RNG.permutation(80)
    rival = save(tmp_path / "poor.csv", POOR[order][:, ::-1], [f"{IDS[i]}.nii.gz" for i in order], NAMES[::-1])
    found = compared(files, rival)
    exact = [delong(LABELS[:, i], GOOD[:, i], POOR[:, i]) for i in range(3)]
    gains = list(found.abnormalities.values())
    assert [gain.first for gain in gains] == pytest.approx([one.first for one in exact])
    assert [gain.second for gain in gains] == pytest.approx([one.second for one in exact])
    assert [gain.p_delong for gain in gains] == pytest.approx([one.p for one in exact])
    assert [gain.p_delong_holm for gain in gains] == pytest.approx(holm([one.p for one in exact]))
    assert [gain.p_holm for gain in gains] == pytest.approx(holm([gain.p for gain in gains]))
    macro = found.means["macro"]
    assert macro.gain.value == pytest.approx(np.mean([gain.gain.value for gain in gains]))
    assert macro.gain.low > 0
    assert macro.p < 0.05
    assert (found.name, found.volumes, found.notes) == ("poor.csv", 80, [])


def test_a_model_beside_itself_gains_nothing(files: ScoreFiles) -> None:
    found = compared(files, files.scores)
    assert {gain.p for gain in found.abnormalities.values()} == {1.0}
    assert found.means["macro"].gain.value == 0


def test_only_what_both_have_scored_is_compared(files: ScoreFiles, tmp_path: Path) -> None:
    found = compared(files, save(tmp_path / "part.csv", POOR[:50, :2], IDS[:50], NAMES[:2]))
    assert found.volumes == 50
    assert list(found.abnormalities) == NAMES[:2]
    assert found.abnormalities["Lung nodule"].first == pytest.approx(
        delong(LABELS[:50, 1], GOOD[:50, 1], POOR[:50, 1]).first
    )
    assert len(found.notes) == 1
    with refused("no-match"):
        compared(files, save(tmp_path / "others.csv", POOR, [f"other{i}" for i in range(80)]))


def test_files_without_ids_are_compared_by_their_rows(files: ScoreFiles, tmp_path: Path) -> None:
    bare = ScoreFiles(save(tmp_path / "a.csv", GOOD, None), save(tmp_path / "b.csv", LABELS, None))
    by_rows = compared(bare, save(tmp_path / "c.csv", POOR, None))
    by_ids = compared(files, save(tmp_path / "poor.csv", POOR))
    assert by_rows.abnormalities["Cardiomegaly"].second == by_ids.abnormalities["Cardiomegaly"].second


def test_the_command_shows_both(files: ScoreFiles, tmp_path: Path) -> None:
    rival = save(tmp_path / "poor.csv", POOR)
    given = ["evaluate", "--scores", files.scores, "--labels", files.labels, "--compare", rival, "--resamples", "50"]
    done = brgsa(*given)
    assert done.status == 0, done.err
    assert "Beside poor.csv: 80 volumes, protocol honest" in done.out
    done = brgsa(*given, "--json")
    tree = json.loads(done.out.splitlines()[-1])["comparison"]
    assert tree["with"] == "poor.csv"
    assert tree["abnormalities"]["Lung nodule"]["gain"].keys() == {"value", "low", "high"}
    assert tree["means"]["macro"]["p"] < 0.1
    assert brgsa("evaluate", "--scores", files.scores, "--labels", files.labels, "--compare", tmp_path).status == 2
