"""The evaluation's table: means, groups, what is left out, and how it is written."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from brgsa import metrics
from brgsa.protocols import BootstrapChoice, Protocol
from brgsa_platform.evaluation import tables
from brgsa_platform.evaluation.result import EvaluationResult, gain, mark_supervised, tabulate
from brgsa_platform.runtime import plots

NAMES = ["Cardiomegaly", "Pleural effusion", "Pneumothorax", "Lung cyst"]
ABOUT = {
    "data": "abc",
    "split": "test",
    "volumes": 90,
    "cluster": "scan",
    "resamples": 100,
    "seed": 0,
    "protocol": "mine",
    "labels_from": "reports by hand: macro-F1 0.9",
}


def protocol(resamples: int = 10, seed: int = 0) -> Protocol:
    return Protocol("mine", bootstrap=BootstrapChoice(resamples=resamples, seed=seed))


@pytest.fixture(scope="module")
def study() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    labels = (rng.random((90, 4)) < 0.3).astype(float)
    labels[:, 3] = 0  # nobody has it
    return labels, rng.normal(size=(90, 4)) + labels


def table(
    study: tuple[np.ndarray, np.ndarray], about: dict[str, Any] | None = None, seed: int = 0, **changes: object
) -> EvaluationResult:
    labels, scores = study
    options: dict[str, Any] = {"thresholds": np.zeros(4), "rare": ["Pneumothorax"]} | changes
    return replace(tabulate(NAMES, labels, scores, protocol(100, seed), **options), about=about or ABOUT)


def test_means_are_over_the_measured_abnormalities_of_each_group(study: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = study
    result = table(study)
    area = [metrics.auroc(labels[:, i], scores[:, i]) for i in range(3)]
    assert result.means["macro"]["auroc"].value == pytest.approx(np.mean(area))
    assert result.means["common"]["auroc"].value == pytest.approx(np.mean(area[:2]))
    assert result.means["rare"]["auroc"] == result.abnormalities[2].figures["auroc"]
    assert result.columns() == [0, 1, 2]


def test_an_abnormality_nobody_has_is_listed_with_a_dash_and_said(study: tuple[np.ndarray, np.ndarray]) -> None:
    result = table(study)
    assert not result.abnormalities[3].measured
    assert any("Lung cyst" in note and "positive" in note for note in result.notes)
    tree = json.loads(json.dumps(tables.to_json(result), allow_nan=False))
    assert tree["abnormalities"]["Lung cyst"]["auroc"]["value"] is None
    assert tree["abnormalities"]["Lung cyst"]["accuracy"]["value"] is None
    assert not any("Lung cyst" in key for key in tables.to_metrics(result))
    assert "Lung cyst" in tables.to_columns(result)["abnormality"]


def test_one_that_everybody_has_is_not_measured_either(study: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = study
    full = labels.copy()
    full[:, 3] = 1
    result = tabulate(NAMES, full, scores, protocol(), thresholds=np.zeros(4))
    assert result.columns() == [0, 1, 2]
    assert np.isnan(result.abnormalities[3].figures["auprc"].value)  # 1.0 for free would lift the mean
    assert any("No negative" in note for note in result.notes)


def test_an_interval_of_a_handful_of_positives_is_cautioned_about(study: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = study
    few = labels.copy()
    few[:, 3] = np.arange(90) < 4
    result = tabulate(NAMES, few, scores, protocol(), thresholds=np.zeros(4))
    assert next(note for note in result.notes if "says too little" in note).endswith(": Lung cyst.")
    few[:, 3] = np.arange(90) < 5
    assert not tabulate(NAMES, few, scores, protocol(), thresholds=np.zeros(4)).notes


def test_without_a_threshold_only_the_ranking_is_measured(study: tuple[np.ndarray, np.ndarray]) -> None:
    result = table(study, thresholds=[0.0, np.nan, 0.0, np.nan])
    row = result.abnormalities[1]
    assert np.isfinite(row.figures["auroc"].value)
    assert np.isnan(row.figures["f1"].value)
    assert any("threshold" in note and "Pleural effusion" in note for note in result.notes)
    assert np.isfinite(result.means["common"]["f1"].value)


def test_csv_holds_what_json_holds(study: tuple[np.ndarray, np.ndarray]) -> None:
    result = table(study)
    tree = tables.to_json(result)
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(result))))
    assert [row["abnormality"] for row in rows[:4]] == NAMES
    assert [row["group"] for row in rows] == [
        "common",
        "common",
        "rare",
        "common",
        "macro",
        "common",
        "rare",
        "head",
        "medium",
        "tail",
    ]
    for row in rows[:3]:
        figures = tree["abnormalities"][row["abnormality"]]
        assert float(row["auroc_low"]) == pytest.approx(figures["auroc"]["low"], rel=1e-5)
        assert int(row["positives"]) == figures["positives"]
    assert rows[3]["auroc"] == ""
    assert float(rows[4]["auprc"]) == pytest.approx(tree["macro"]["auprc"]["value"], rel=1e-5)


def test_what_the_model_was_supervised_on_is_marked_in_every_table(
    study: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = table(study, about=ABOUT | {"checkpoint": "run/epoch-0001", "threshold_source": "chosen elsewhere"})
    result = mark_supervised(plain, ["Pleural effusion", "Lung cyst", "Emphysema"])
    areas = [row.figures["auroc"].value for row in result.abnormalities]
    assert result.means["unsupervised"]["auroc"].value == pytest.approx((areas[0] + areas[2]) / 2)
    assert result.means["macro"] == plain.means["macro"]

    tree = tables.to_json(result)
    assert [tree["abnormalities"][name]["supervised"] for name in NAMES] == [False, True, False, True]
    assert tree["unsupervised"]["abnormalities"] == 2
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(result))))
    assert [row["supervised"] for row in rows] == ["no", "yes", "no", "yes", "yes", "yes", "no", "no", "no", "no", "no"]
    assert rows[-1]["group"] == "unsupervised"
    columns = tables.to_columns(result)
    assert columns["supervised"] == [row["supervised"] for row in rows]
    assert tables.to_metrics(result)["auroc/unsupervised"] == result.means["unsupervised"]["auroc"].value
    (note,) = set(result.notes) - set(plain.notes)
    assert "not zero-shot" in note
    assert "Pleural effusion" in note
    tables.print_result(result)
    shown = capsys.readouterr().out
    assert "Pleural effusion (supervised)" in shown
    assert "mean of unsupervised (2)" in shown


def test_a_model_without_labels_has_no_such_mean(study: tuple[np.ndarray, np.ndarray]) -> None:
    plain = table(study)
    assert mark_supervised(plain, ["Emphysema"]) == plain
    assert plain.means.keys() == {"macro", "common", "rare", "head", "medium", "tail"}
    assert set(tables.to_columns(plain)["supervised"]) == {"no"}


def test_gain_is_paired(study: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = study
    result = table(study)
    assert gain(result, result) == (0, 0, 0, 0, 0)
    noise = np.random.default_rng(1).normal(size=scores.shape)
    worse = table((labels, scores + 0.3 * noise))
    difference = gain(result, worse)
    assert difference.value == pytest.approx(
        result.means["common"]["auroc"].value - worse.means["common"]["auroc"].value
    )
    assert difference.low < difference.value < difference.high
    both = [r.means["common"]["auroc"].sd for r in (result, worse)]
    assert difference.sd < np.hypot(*both)  # the volumes' luck is shared and falls out
    with pytest.raises(ValueError, match="seed"):
        gain(result, table(study, about=ABOUT | {"seed": 1}, seed=1))


def test_terminal_table_and_notes(study: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_result(
        table(study, about=ABOUT | {"checkpoint": "run/epoch-0001", "threshold_source": "chosen elsewhere"})
    )
    shown = capsys.readouterr().out
    assert "Pneumothorax (rare)" in shown
    assert "mean of common (2)" in shown
    assert "chosen elsewhere" in shown
    assert "100 resamples of scans" in shown


def test_figures_are_drawn_for_what_is_measured(study: tuple[np.ndarray, np.ndarray], tmp_path: object) -> None:
    labels, scores = study
    result = table(study)
    curves = {NAMES[i]: (metrics.roc_curve(labels[:, i], scores[:, i]), 0.5) for i in result.columns()}
    legend = plots.roc_figure(curves).axes[0].get_legend()
    assert len(legend.get_texts()) == 3
    bars = plots.bars_figure({"BrgSA": {row.name: row.figures["auroc"] for row in result.abnormalities}})
    assert {label.get_text() for label in bars.axes[0].get_yticklabels()} == set(NAMES[:3])
