"""Anybody's scores and labels: joined by names, never by position, and refused where they do not fit."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commandline import brgsa
from refusals import refused

from brgsa import metrics
from brgsa.protocols import load_protocol
from brgsa_platform.evaluation.evaluate_scores import ScoreFiles, evaluate_scores
from brgsa_platform.evaluation.result import EvaluationResult

NAMES = ["Cardiomegaly", "Lung nodule", "Pleural effusion"]
ROWS = 40
RNG = np.random.default_rng(3)
LABELS = (RNG.random((ROWS, 3)) < 0.4).astype(int)
SCORES = (LABELS + RNG.normal(size=LABELS.shape)).round(3)
IDS = [f"valid_{i // 4}_{'ab'[i // 2 % 2]}_{i % 2 + 1}" for i in range(ROWS)]
FEW = replace(load_protocol(), bootstrap=replace(load_protocol().bootstrap, resamples=20))


def save(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def labels_file(
    folder: Path, ids: Sequence[str] | None = IDS, values: Any = LABELS, names: Sequence[str] = NAMES
) -> Path:
    rows = [[*([f"{ids[i]}.nii.gz"] if ids else []), *row] for i, row in enumerate(values)]
    return save(folder / "labels.csv", [*(["VolumeName"] if ids else []), *names], rows)


def scores_file(
    folder: Path, ids: Sequence[str] | None = IDS, values: Any = SCORES, names: Sequence[str] = NAMES
) -> Path:
    rows = [[*([ids[i]] if ids else []), *row] for i, row in enumerate(values)]
    return save(folder / "scores.csv", [*(["VolumeName"] if ids else []), *names], rows)


def measured(folder: Path, **more: Any) -> EvaluationResult:
    files = ScoreFiles(folder / "scores.csv", folder / "labels.csv", **more)
    return evaluate_scores(files, FEW)


def areas(result: EvaluationResult) -> dict[str, float]:
    return {row.name: row.figures["auroc"].value for row in result.abnormalities}


EXPECTED = {name: metrics.auroc(LABELS[:, i], SCORES[:, i]) for i, name in enumerate(NAMES)}


def test_rows_and_columns_are_joined_by_name(tmp_path: Path) -> None:
    order = RNG.permutation(ROWS)
    labels_file(tmp_path)
    scores_file(
        tmp_path,
        [IDS[i] for i in order],
        SCORES[order][:, [2, 0, 1]],
        ["pleural_effusion", "CARDIOMEGALY", "Lung nodules"],
    )
    result = measured(tmp_path)
    assert areas(result) == pytest.approx(EXPECTED)
    assert list(areas(result)) == NAMES
    assert (result.about["volumes"], result.about["scans"], result.about["patients"]) == (40, 20, 10)


def test_a_parquet_with_ids_gives_the_same(tmp_path: Path) -> None:
    labels_file(tmp_path)
    table = pa.table({"volume_id": IDS, **{name: SCORES[:, i] for i, name in enumerate(NAMES)}})
    pq.write_table(table, tmp_path / "scores.parquet")
    result = evaluate_scores(ScoreFiles(tmp_path / "scores.parquet", tmp_path / "labels.csv"), FEW)
    assert areas(result) == pytest.approx(EXPECTED)


def test_without_ids_the_order_of_rows_counts_and_is_said(tmp_path: Path) -> None:
    labels_file(tmp_path, None)
    scores_file(tmp_path, None)
    result = measured(tmp_path)
    assert areas(result) == pytest.approx(EXPECTED)
    assert any("order of their rows" in note for note in result.notes)
    assert any("scan of its own" in note for note in result.notes)
    scores_file(tmp_path, None, SCORES[:-1])
    with refused("other-length", field=str(tmp_path / "scores.csv"), value=ROWS - 1):
        measured(tmp_path)


def test_volumes_without_scores_are_not_missing_and_scores_without_labels_are_counted(tmp_path: Path) -> None:
    labels_file(tmp_path)
    scores_file(tmp_path, [*IDS[:30], "valid_01_A_1", "other"], np.concatenate([SCORES[:30], SCORES[:2]]))
    result = measured(tmp_path)
    assert result.about["volumes"] == 30
    assert areas(result)["Lung nodule"] == pytest.approx(metrics.auroc(LABELS[:30, 1], SCORES[:30, 1]))
    (note,) = [note for note in result.notes if "left out" in note]
    assert note.startswith("2 scored volumes")
    assert "1 of these ids" in note


def test_ids_that_match_nothing_are_refused(tmp_path: Path) -> None:
    labels_file(tmp_path)
    scores_file(tmp_path, [one.upper() for one in IDS])
    with refused("no-match", field=str(tmp_path / "scores.csv"), value=ROWS):
        measured(tmp_path)


def test_one_file_with_ids_and_one_without_are_not_joined(tmp_path: Path) -> None:
    labels_file(tmp_path)
    scores_file(tmp_path, None)
    with refused("no-ids", field=str(tmp_path / "scores.csv")):
        measured(tmp_path)


def test_an_id_twice_is_refused(tmp_path: Path) -> None:
    labels_file(tmp_path)
    scores_file(tmp_path, [*IDS[:-1], IDS[0]])
    with refused("duplicate-id", field=str(tmp_path / "scores.csv"), value=ROWS):
        measured(tmp_path)
    scores_file(tmp_path)
    labels_file(tmp_path, [*IDS[:-1], IDS[0]])
    with refused("duplicate-id", field=str(tmp_path / "labels.csv")):
        measured(tmp_path)


@pytest.mark.parametrize(
    ("cell", "code"),
    [("", "score-not-finite"), ("nan", "score-not-finite"), ("inf", "score-not-finite"), ("high", "bad-score")],
)
def test_a_score_that_is_none_is_refused_with_its_place(tmp_path: Path, cell: str, code: str) -> None:
    labels_file(tmp_path)
    values = SCORES.astype(object)
    values[6, 1] = cell
    scores_file(tmp_path, values=values)
    with refused(code, field="Lung nodule", value=7):
        measured(tmp_path)


def test_one_class_missing_labels_and_labels_without_scores(tmp_path: Path) -> None:
    values = LABELS.astype(object)
    values[:, 0] = 1
    values[::3, 1] = ""
    labels_file(tmp_path, values=np.column_stack([values, LABELS[:, 0]]), names=[*NAMES, "Emphysema"])
    scores_file(tmp_path, values=np.column_stack([SCORES, SCORES[:, 0]]), names=[*NAMES, "Emphysem"])
    result = measured(tmp_path)
    assert not result.abnormalities[0].measured
    assert result.abnormalities[1].positives + result.abnormalities[1].negatives == ROWS - len(range(0, ROWS, 3))
    known = np.arange(ROWS) % 3 != 0
    assert areas(result)["Lung nodule"] == pytest.approx(metrics.auroc(LABELS[known, 1], SCORES[known, 1]))
    assert result.means["macro"]["auroc"].value == pytest.approx(np.mean([areas(result)[name] for name in NAMES[1:]]))
    assert any("Labels without scores" in note and "Emphysema" in note for note in result.notes)
    assert any("did you mean Emphysema" in note for note in result.notes)


def test_labels_that_are_none_and_columns_that_fit_nothing(tmp_path: Path) -> None:
    scores_file(tmp_path)
    values = LABELS.astype(object)
    values[4, 2] = "2"
    labels_file(tmp_path, values=values)
    with refused("bad-label", field="Pleural effusion", value="2"):
        measured(tmp_path)
    labels_file(tmp_path)
    scores_file(tmp_path, names=["a", "b", "c"])
    with refused("no-score-column", field=str(tmp_path / "scores.csv")):
        measured(tmp_path)
    scores_file(tmp_path, names=["Lung nodule", "lung_nodule_", "Cardiomegaly"])
    with refused("duplicate-column", field="Lung nodule"):
        measured(tmp_path)


def test_labels_of_anybodys_names(tmp_path: Path) -> None:
    labels_file(tmp_path, names=["Cardiomegaly", "Broken heart", "Lost sleep"])
    scores_file(tmp_path, names=["lost_sleep", "Cardiomegaly", "broken heart"], values=SCORES[:, [2, 0, 1]])
    assert list(areas(measured(tmp_path)).values()) == pytest.approx(list(EXPECTED.values()))


def test_thresholds_come_from_validation_scores_and_never_from_volumes_under_test(tmp_path: Path) -> None:
    labels_file(tmp_path)
    scores_file(tmp_path, IDS[:20], SCORES[:20])
    fitting = save(tmp_path / "fitting.csv", ["VolumeName", *NAMES], [[IDS[i], *SCORES[i]] for i in range(20, ROWS)])
    without, with_thresholds = measured(tmp_path), measured(tmp_path, validation_scores=fitting)
    assert np.isnan(without.abnormalities[1].figures["f1"].value)
    row = with_thresholds.abnormalities[1]
    assert row.threshold == metrics.corner_threshold(LABELS[20:, 1], SCORES[20:, 1])
    assert row.figures["f1"].value == metrics.at_threshold(LABELS[:20, 1], SCORES[:20, 1], row.threshold)["f1"]
    scores_file(tmp_path, IDS[:21], SCORES[:21])
    with refused("overlapping-validation", field="--validation-scores", value=1):
        measured(tmp_path, validation_scores=fitting)


def test_training_labels_tell_what_is_rare(tmp_path: Path) -> None:
    labels_file(tmp_path)
    scores_file(tmp_path)
    training = np.zeros((200, 3), int)
    training[:1, 0], training[:10, 1], training[:90, 2] = 1, 1, 1
    table = save(tmp_path / "train.csv", NAMES, training.tolist())
    rows = measured(tmp_path, training_labels=table).abnormalities
    assert [row.prevalence for row in rows] == [0.005, 0.05, 0.45]
    assert [(row.rare, row.frequency) for row in rows] == [(True, "tail"), (False, "medium"), (False, "head")]


def test_protocols_by_scan_patient_and_smallest_voxel(tmp_path: Path) -> None:
    labels_file(tmp_path)
    scores_file(tmp_path)
    files = ScoreFiles(tmp_path / "scores.csv", tmp_path / "labels.csv")
    by_scan = evaluate_scores(files, replace(FEW, unit="scan"))
    assert by_scan.observed is not None
    np.testing.assert_allclose(by_scan.observed.scores, SCORES.reshape(20, 2, 3).mean(axis=1))
    assert by_scan.about["observations"] == 20
    by_patient = evaluate_scores(files, replace(FEW, unit="patient"))
    assert by_patient.about["observations"] == 10
    smallest = replace(FEW, unit="smallest-voxel")
    with refused("no-spacing", field="unit"):
        evaluate_scores(files, smallest)
    spacing = [[f"{one}.nii.gz", f"[{0.9 - 0.1 * (i % 2)}, 0.8]", 1.5] for i, one in enumerate(IDS)]
    metadata = save(tmp_path / "metadata.csv", ["VolumeName", "XYSpacing", "ZSpacing"], spacing)
    chosen = evaluate_scores(replace(files, metadata=metadata), smallest).observed
    assert chosen is not None
    assert chosen.ids == IDS[1::2]
    np.testing.assert_array_equal(chosen.scores, SCORES[1::2])


def test_the_paper_s_calcification_is_the_larger_of_two(tmp_path: Path) -> None:
    parts = ["Arterial wall calcification", "Coronary artery wall calcification"]
    labels_file(tmp_path, values=LABELS[:, :1], names=["Calcification"])
    scores_file(tmp_path, values=SCORES[:, :2], names=parts)
    files = ScoreFiles(tmp_path / "scores.csv", tmp_path / "labels.csv")
    paper = replace(load_protocol("brgsa-paper"), value="all-volumes")
    assert areas(evaluate_scores(files, paper)) == {
        "Calcification": metrics.auroc(LABELS[:, 0], SCORES[:, :2].max(axis=1))
    }
    with refused("no-score-column"):
        evaluate_scores(files, FEW)


def test_the_command_prints_one_object_last_and_writes_what_it_is_told(tmp_path: Path) -> None:
    labels_file(tmp_path)
    scores_file(tmp_path)
    given = [
        "evaluate",
        "--scores",
        str(tmp_path / "scores.csv"),
        "--labels",
        str(tmp_path / "labels.csv"),
        "--resamples",
        "20",
    ]
    before = sorted(tmp_path.iterdir())
    done = brgsa(*given, "--json")
    assert done.status == 0, done.err
    tree = json.loads(done.out.splitlines()[-1])
    assert tree.keys() == {"protocol", "abnormalities", "means"}
    assert tree["protocol"] == "honest"
    assert tree["abnormalities"]["Lung nodule"]["auroc"].keys() == {"value", "low", "high"}
    assert tree["abnormalities"]["Lung nodule"]["auroc"]["value"] == pytest.approx(EXPECTED["Lung nodule"])
    assert tree["abnormalities"]["Lung nodule"].keys() == {*metrics.RANKING, *metrics.AT_THRESHOLD}
    assert {"macro", "common", "rare"} <= tree["means"].keys()
    assert sorted(tmp_path.iterdir()) == before
    done = brgsa(*given, "--protocol", "brgsa-paper", "--out", str(tmp_path / "out"))
    assert done.status == 0, done.err
    assert "protocol brgsa-paper" in done.out
    rows = list(csv.DictReader((tmp_path / "out" / "evaluation-scores.csv").open()))
    assert {row["protocol"] for row in rows} == {"brgsa-paper"}
    written = json.loads((tmp_path / "out" / "evaluation-scores.json").read_text())
    assert written["protocol"] == "brgsa-paper"
    assert written["protocol_settings"]["threshold"] == "test"


@pytest.mark.parametrize(
    "words",
    [
        ["--scores", "s.csv"],
        ["--scores", "s.csv", "--labels", "l.csv", "--data", "store"],
        ["runs/first"],
        ["--scores", "s.csv", "--labels", "l.csv", "--protocol", "hones"],
    ],
)
def test_what_does_not_go_together_is_refused_at_once(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert brgsa("evaluate", *words).status == 2


@pytest.mark.shared
def test_the_published_scores_have_their_published_area(shared_data: Path) -> None:
    files = ScoreFiles(shared_data / "scores" / "brgsa_ct_rate_part.csv", shared_data / "ct-rate" / "valid_labels.csv")
    result = evaluate_scores(files, FEW)
    assert round(result.means["macro"]["auroc"].value, 4) == 0.8203
    assert result.about["volumes"] == 763
    assert len(result.columns()) == 18


@pytest.mark.shared
def test_the_long_tail_s_columns_are_joined_by_name(shared_data: Path) -> None:
    """By position the macro AUROC is 0.64."""
    scores = shared_data / "scores"
    files = ScoreFiles(scores / "brgsa_ct_rate_lt_part.csv", scores / "ct_rate_lt_labels_part.csv")
    result = evaluate_scores(files, FEW)
    assert round(result.means["macro"]["auroc"].value, 4) == 0.8128
    assert len(result.columns("rare")) > 5


def test_what_an_evaluation_keeps_gives_the_same_table_under_the_same_and_another_protocol(tmp_path: Path) -> None:
    labels_file(tmp_path)
    scores_file(tmp_path)
    given = ScoreFiles(tmp_path / "scores.csv", tmp_path / "labels.csv")
    made = evaluate_scores(given, FEW, out=tmp_path / "out")
    kept = ScoreFiles(Path(made.files["scores"]), Path(made.files["labels"]))
    again = evaluate_scores(kept, FEW)
    assert [row.figures["auroc"] for row in again.abnormalities] == [row.figures["auroc"] for row in made.abnormalities]
    by_scan = replace(load_protocol("scan"), bootstrap=FEW.bootstrap)
    assert (
        evaluate_scores(kept, by_scan).means["macro"]["auroc"]
        == evaluate_scores(given, by_scan).means["macro"]["auroc"]
    )
    assert "valid_0" not in Path(made.files["json"]).read_text()
