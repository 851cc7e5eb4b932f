"""A probability stands where one was fitted, and nowhere else: in predict, in its table, on the page, in a registered model."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from calibrated import calibrate
from models import LABELS, save_model
from refusals import refused

from brgsa import zeroshot
from brgsa_platform.evaluation.calibration.probabilities import FILE, NEVER_FITTED, NOT_FITTED
from brgsa_platform.serving.page.desk import Desk
from brgsa_platform.serving.predict import predict
from brgsa_platform.serving.scan_model import ScanModel
from brgsa_platform.serving.scan_table import FIXED, PART, predict_many
from brgsa_platform.serving.scorer import Scorer
from scans import chest, save_nifti

FIRST, SECOND, THIRD = zeroshot.prompts(LABELS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on labels of the third abnormality; a calibration of the first."""
    made = save_model(tmp_path_factory.mktemp("model") / "epoch-0001", supervised=["Lung nodule"])
    return calibrate(made, Cardiomegaly=(0.5, -0.25))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_nifti(tmp_path_factory.mktemp("scan") / "a.nii", chest(seed=1))


def expected(score: float) -> float:
    return 1 / (1 + math.exp(-(score / 0.5 - 0.25)))


def test_predict_gives_it_and_says_why_not(model: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prediction = predict(model, scan)
    rows = {row.prompt: row for row in prediction.rows}
    assert rows[FIRST].probability == pytest.approx(expected(rows[FIRST].score))
    assert (rows[SECOND].probability, rows[SECOND].no_probability) == (None, NOT_FITTED)
    told = {row["prompt"]: row for row in json.loads(prediction.to_json())["prompts"]}
    assert (told[FIRST]["probability"], told[SECOND]["probability"]) == (rows[FIRST].probability, None)
    prediction.print()
    shown = capsys.readouterr().out
    assert f"{rows[FIRST].probability:.2f}" in shown
    assert NOT_FITTED in " ".join(shown.split())


def test_without_a_calibration_there_is_no_such_column(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = save_model(tmp_path / "epoch-0001")
    predict(bare, scan).print()
    shown = " ".join(capsys.readouterr().out.split())
    assert NEVER_FITTED in shown
    assert "probability" not in shown.partition(NEVER_FITTED)[0].replace("No probability", "")
    done = predict_many(Scorer(bare), [scan], tmp_path / "scores.csv")
    assert set(read(done.out)[0]) == {*FIXED, FIRST, SECOND, THIRD}
    assert NEVER_FITTED in done.summary()


def test_the_table_of_many_scans_has_it_and_marks_what_is_supervised(model: Path, scan: Path, tmp_path: Path) -> None:
    done = predict_many(Scorer(model), [scan], tmp_path / "scores.csv")
    (row,) = read(done.out)
    probability, supervised = f"{FIRST} (probability)", f"{THIRD} (supervised)"
    assert set(row) == {*FIXED, FIRST, SECOND, THIRD, probability, supervised}
    assert float(row[probability]) == pytest.approx(expected(float(row[FIRST])), abs=1e-6)
    assert row[supervised] == "true"
    assert THIRD in done.notes[-1]


def test_a_table_is_not_gone_on_with_under_another_calibration(scan: Path, tmp_path: Path) -> None:
    bare, out = save_model(tmp_path / "epoch-0001"), tmp_path / "scores.csv"
    key = {
        "checkpoint": str(bare.resolve()), "prompts": [FIRST, SECOND, THIRD], "pairing": "mean", "probabilities": {},
        "metadata": None, "trust_geometry": False,
    }  # fmt: skip
    out.with_name(out.name + PART).write_text(json.dumps(key) + "\n")
    calibrate(bare, Cardiomegaly=(0.5, -0.25))
    with refused("other-scores", field="--out"):
        predict_many(Scorer(bare), [scan], out)
    (bare / FILE).unlink()
    predict_many(Scorer(bare), [scan], out)


@pytest.mark.parametrize("prompt", ["scan", "refused", f"{FIRST} (higher than)", f"{FIRST} (probability)"])
def test_a_prompt_takes_no_other_column_s_place(model: Path, scan: Path, tmp_path: Path, prompt: str) -> None:
    with refused("column-taken", field="--prompt", value=prompt):
        predict_many(Scorer(model, [FIRST, prompt]), [scan], tmp_path / "scores.csv")
    assert not list(tmp_path.iterdir())


def test_the_page_ranks_and_calibrates_as_predict_does(model: Path, scan: Path) -> None:
    desk = Desk(Scorer(model))
    rows = desk.scores(desk.open(scan)["id"], [])
    assert rows == [row._asdict() for row in predict(model, scan).rows]


def test_a_registered_model_gives_it(model: Path, scan: Path) -> None:
    table = ScanModel(model).predict(pd.DataFrame({"scan": [str(scan), "/none.nii"]}))
    rows = table.set_index("prompt")
    assert rows.loc[FIRST, "probability"] == pytest.approx(expected(rows.loc[FIRST, "score"]))
    assert rows.loc[FIRST, "no_probability"] == ""
    assert math.isnan(rows.loc[SECOND, "probability"])
    assert rows.loc[SECOND, "no_probability"] == NOT_FITTED
    assert math.isnan(rows.loc["", "probability"])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
