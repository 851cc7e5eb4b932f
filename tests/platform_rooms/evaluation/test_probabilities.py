"""The calibration beside a checkpoint: kept for what it was fitted to, and for nothing else."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import LABELS, save_model
from refusals import refused

from brgsa import checkpoint, zeroshot
from brgsa.metrics.calibration import Temperature
from brgsa.protocols import load_protocol
from brgsa_platform.evaluation.calibration.probabilities import FILE, NEVER_FITTED, NOT_FITTED, Probabilities, keep

FIRST, SECOND, THIRD = zeroshot.prompts(LABELS)
HONEST = load_protocol("honest")
# Of eleven volumes five have the first abnormality, six the second, four the third; of one nothing is known.
LABELLED = np.array([[1, 1, 1]] * 4 + [[1, 1, 0], [0, 1, 0]] + [[0, 0, 0]] * 5 + [[np.nan] * 3])
SCALES = {0: Temperature(0.1, -1.0), 1: Temperature(-0.2, 0.0), 2: Temperature(0.1, 0.0)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "run" / "epoch-0001")


def kept(model: Path, protocol: str = "honest", pairing: str = "mean") -> Path | None:
    about = {"weights": checkpoint.weights_digest(model), "pairing": pairing, "protocol": protocol, "data": "f1n6er"}
    return keep(model, about, load_protocol(protocol), LABELS, SCALES, LABELLED)


def test_a_probability_is_the_fitted_sigmoid_of_the_score(model: Path) -> None:
    assert kept(model) == model / FILE
    probabilities = Probabilities.of(model, "mean")
    assert probabilities(FIRST, 0.2) == (pytest.approx(1 / (1 + math.exp(-1))), "")
    fit = probabilities.fits[FIRST]
    assert (fit.abnormality, fit.positives, fit.negatives) == ("Cardiomegaly", 5, 6)


def test_what_has_no_honest_fit_has_no_probability(model: Path) -> None:
    kept(model)
    probabilities = Probabilities.of(model, "mean")
    falling, few, other = (probabilities(text, 0.2) for text in (SECOND, THIRD, "There is a stent."))
    assert (falling[0], few[0], other) == (None, None, (None, NOT_FITTED))
    assert falling[1] != few[1]
    assert falling[1]
    assert few[1]


def test_a_fit_is_of_one_checkpoint_and_one_pairing(model: Path, tmp_path: Path) -> None:
    assert Probabilities.of(model, "mean")(FIRST, 0.2) == (None, NEVER_FITTED)
    kept(model)
    other = save_model(tmp_path / "other" / "epoch-0001", bank=False)
    shutil.copy(model / FILE, other / FILE)
    whys = {Probabilities.of(*asked)(FIRST, 0.2) for asked in ((other, "mean"), (model, "v.t"))}
    assert {value for value, _ in whys} == {None}
    assert len({why for _, why in whys} - {NEVER_FITTED, NOT_FITTED, ""}) == 2


@pytest.mark.parametrize("protocol", ["scan", "radfinder-mean7", "ct-clip"])
def test_scores_of_several_volumes_or_prompts_are_no_single_scan_s(model: Path, protocol: str) -> None:
    assert kept(model, protocol) is None
    assert not (model / FILE).exists()


def test_the_larger_of_several_scores_is_no_single_prompt_s(model: Path) -> None:
    protocol = replace(HONEST, max_of={"Cardiomegaly": ("Pleural effusion", "Lung nodule")})
    about = {"weights": checkpoint.weights_digest(model), "pairing": "mean", "protocol": "own", "data": "f1n6er"}
    keep(model, about, protocol, LABELS, SCALES, LABELLED)
    assert Probabilities.of(model, "mean")(FIRST, 0.2)[0] is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 9}'])
def test_a_damaged_calibration_is_refused(model: Path, content: str) -> None:
    (model / FILE).write_text(content)
    with refused("calibration-damaged", field=str(model / FILE)):
        Probabilities.of(model, "mean")


def test_the_file_names_no_volume(model: Path) -> None:
    kept(model)
    tree = json.loads((model / FILE).read_text())
    assert set(tree) == {"format", "weights", "pairing", "protocol", "data", "prompts", "unfitted"}
    assert set(tree["prompts"][FIRST]) == {"abnormality", "temperature", "bias", "positives", "negatives"}
