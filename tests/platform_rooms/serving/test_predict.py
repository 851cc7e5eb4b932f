"""One CT in, a ranked list out: from a NIfTI file and a checkpoint on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from models import GEOMETRY, LABELS, VISION, save_model
from refusals import refused
from tiny_models import save_noise

from brgsa import checkpoint, zeroshot
from brgsa.errors import UserError
from brgsa.vision import vision_tower
from brgsa.volumes import read_volume, standardize
from brgsa_platform.serving.predict import predict
from brgsa_platform.serving.scorer import ScanOptions
from scans import chest, save_dicom


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "epoch-0001")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(chest((40, 38, 22)), np.diag([-5.0, -5.0, 6.0, 1.0])), path)
    return path


def test_scores_are_the_model_s_on_the_centre_crop(saved: Path, scan: Path) -> None:
    prediction = predict(saved, scan)
    model = checkpoint.load(saved).model
    seen = standardize(read_volume(scan), GEOMETRY)[2:18, 2:18, 1:9].astype(np.float32) / 1000
    expected = zeroshot.scores(
        model.encode_volumes(torch.from_numpy(seen)[None, None]), model.encode_texts(zeroshot.prompts(LABELS))
    )[0]
    assert {row.prompt: row.score for row in prediction.rows} == pytest.approx(
        dict(zip(zeroshot.prompts(LABELS), expected.tolist(), strict=True)), abs=1e-6
    )
    scores = [row.score for row in prediction.rows]
    assert scores == sorted(scores, reverse=True)
    assert all(row.percentile is None for row in prediction.rows)


def test_a_whole_volume_is_scored_standardised(tmp_path: Path, scan: Path) -> None:
    """All of it, standardised, as by a tower that does neither and is given both."""
    saved = save_model(tmp_path / "run", vision=replace(VISION, evaluation="whole"))
    found = {row.prompt: row.score for row in predict(saved, scan).rows}
    whole = (standardize(read_volume(scan), GEOMETRY) / 1000 - 0.4978) / 0.2449
    assert whole.shape == (20, 20, 10)
    model = checkpoint.load(saved).model
    tower = vision_tower(replace(VISION, mean=0.0, std=1.0)).eval()
    tower.load_state_dict(model.vision.state_dict())
    model.vision = tower
    volumes = model.encode_volumes(torch.from_numpy(whole).float()[None, None])
    expected = zeroshot.scores(volumes, model.encode_texts(zeroshot.prompts(LABELS)))[0].tolist()
    assert found == pytest.approx(dict(zip(zeroshot.prompts(LABELS), expected, strict=True)), abs=1e-5)


def test_prompts_are_read_in_the_training_texts_form(saved: Path, scan: Path) -> None:
    asked = ["There is pleural effusion.", "there is pleural effusion", "THERE IS: pleural effusion! Seen."]
    scores = {row.prompt: row.score for row in predict(saved, scan, asked).rows}
    assert set(scores) == set(asked)
    assert len(set(scores.values())) == 1
    with refused("empty-prompt", field="--prompt", value="?!"):
        predict(saved, scan, ["?!"])


def test_own_prompts_and_pairings(saved: Path, scan: Path) -> None:
    asked = ["There is a stent.", "There is cardiomegaly."]
    plain, bridged = (predict(saved, scan, asked, pairing=pairing) for pairing in ("v.t", "v'.t"))
    both = predict(saved, scan, asked)
    assert {row.prompt for row in both.rows} == set(asked)
    by_prompt = [{row.prompt: row.score for row in prediction.rows} for prediction in (plain, bridged, both)]
    for text in asked:
        assert by_prompt[2][text] == pytest.approx((by_prompt[0][text] + by_prompt[1][text]) / 2, abs=1e-6)


def test_percentiles_stand_among_the_validation_scores(tmp_path: Path, scan: Path) -> None:
    first, second, third = zeroshot.prompts(LABELS)
    known = {first: [-1.0] * 3 + [1.0], second: [-1.0, 1.0, 1.0, 1.0], third: [-1.0, -1.0, 1.0, 1.0]}
    path = save_model(tmp_path / "epoch-0002", reference_scores=known)
    prediction = predict(path, scan)
    assert [(row.prompt, row.percentile) for row in prediction.rows] == [(first, 0.75), (third, 0.5), (second, 0.25)]
    # They are of the default pairing, and of these prompts, alone.
    assert all(row.percentile is None for row in predict(path, scan, pairing="v.t").rows)
    mixed = predict(path, scan, [first, "There is a stent."]).rows
    assert {row.prompt: row.percentile for row in mixed} == {first: 0.75, "There is a stent.": None}
    assert mixed[0].score >= mixed[1].score


def test_a_bare_file_is_read_with_its_metadata_row_and_cautioned_about_without(
    saved: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CT-RATE's first release: stored values, and a header that says nothing."""
    stored = np.asarray(nibabel.load(scan).dataobj).astype(np.int16) + 1024
    bare = tmp_path / "train_1_a_1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), bare)
    table = tmp_path / "metadata.csv"
    fields = {
        "VolumeName": bare.name,
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        "XYSpacing": "[5.0, 5.0]",
        "ZSpacing": "6.0",
        "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
    }
    table.write_text(",".join(fields) + "\n" + ",".join(f'"{value}"' for value in fields.values()) + "\n")
    prediction, expected = predict(saved, bare, options=ScanOptions(table)), predict(saved, scan)
    assert [row.prompt for row in prediction.rows] == [row.prompt for row in expected.rows]
    assert [row.score for row in prediction.rows] == pytest.approx([row.score for row in expected.rows], abs=1e-6)
    assert not prediction.warnings
    with refused("size-implausible", value="40×38×22 mm"):
        predict(saved, bare)
    predict(saved, bare, options=ScanOptions(trust_geometry=True)).print()
    shown = capsys.readouterr().out
    assert "Caution: Air is not near" in shown
    assert "(40×38×22 mm)" in shown
    with refused("metadata-without-scan", field=str(table), value="scan.nii.gz"):
        predict(saved, scan, options=ScanOptions(table))
    other = tmp_path / "other.csv"
    with refused("unreadable-table", field=str(other)):
        predict(saved, bare, options=ScanOptions(other))
    text = table.read_text()
    for written in ("\ufeff" + text, text.replace("VolumeName", "volume_name"), text.replace(".nii.gz", "")):
        other.write_text(written, encoding="utf-8")
        again = predict(saved, bare, options=ScanOptions(other))
        assert (again.rows, again.warnings) == (prediction.rows, [])
    other.write_text(text + text.splitlines()[1].replace("6.0", "3.0") + "\n")
    with refused("conflicting-ids", field=str(other), value=bare.name):
        predict(saved, bare, options=ScanOptions(other))


def test_a_study_s_folder_lists_its_series_and_one_is_chosen(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    save_dicom(study / "disc" / "lung", chest(), ConvolutionKernel="B70f")
    save_dicom(study / "disc" / "soft", chest(seed=1), series="1.2.4", ConvolutionKernel="B30f", SliceThickness="6")
    with refused("several-series", value=(20, 20)) as refusal:
        predict(saved, study)
    assert "1.2.4: 20 slices, kernel B30f" in str(refusal.value)
    chosen = predict(saved, study, options=ScanOptions(series="1.2.4"))
    assert chosen.rows == predict(saved, study / "disc" / "soft").rows
    assert chosen.warnings == []
    (study / "disc" / "soft" / "page.dcm").write_text("<html>not found</html>")
    predict(saved, study, options=ScanOptions(series="1.2.4")).print()
    assert "Caution: Files beside its slices" in capsys.readouterr().out


def test_the_flags_of_a_scan_are_its_cautions(saved: Path, scan: Path, tmp_path: Path) -> None:
    image = nibabel.load(scan)
    sheared = image.affine.copy()
    sheared[1, 2] = 1.5
    path = tmp_path / "sheared.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), sheared), path)
    warnings = predict(saved, path).warnings
    assert [w for w in warnings if "gantry tilt" in w] == [
        "Its slices are stacked askew (gantry tilt); they were resampled upright (14.0°)."
    ]


def test_one_slice_is_no_scan_and_one_without_air_is_cautioned_about(saved: Path, tmp_path: Path) -> None:
    with refused("volume-too-small"):
        predict(saved, save_noise(tmp_path / "flat.nii.gz", (40, 38, 1)))
    airless = predict(saved, save_noise(tmp_path / "airless.nii.gz", low=0))
    assert [warning for warning in airless.warnings if "Air" in warning]
    assert len(airless.rows) == len(LABELS)


def test_printed_as_table_and_as_json(saved: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prediction = predict(saved, scan)
    prediction.print(as_json=True)
    tree = json.loads(capsys.readouterr().out)
    assert [row["prompt"] for row in tree["prompts"]] == [row.prompt for row in prediction.rows]
    prediction.print()
    shown = capsys.readouterr().out
    assert all(row.prompt in shown for row in prediction.rows)
    assert "higher than" not in shown


def test_picture_is_written_whole_or_refused_at_once(saved: Path, scan: Path, tmp_path: Path) -> None:
    picture = tmp_path / "seen.png"
    predict(saved, scan, picture=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [picture]
    nowhere = tmp_path / "nowhere" / "seen.png"
    with refused("picture-not-writable", value=str(nowhere)):
        predict(saved, scan, picture=nowhere)


def test_mistakes_are_named(saved: Path, scan: Path, tmp_path: Path) -> None:
    with refused("empty-prompt", value=" "):
        predict(saved, scan, [" "])
    with refused("unknown-pairing", value="t.t"):
        predict(saved, scan, pairing="t.t")
    with pytest.raises(UserError, match="neither a checkpoint"):
        predict(tmp_path, scan)
    with pytest.raises(UserError, match=r"missing\.nii\.gz"):
        predict(saved, tmp_path / "missing.nii.gz")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(scan.read_bytes()[:200])
    with pytest.raises(UserError, match=r"broken\.nii\.gz"):
        predict(saved, broken)
    bare = save_model(tmp_path / "bare", bank=False)
    with refused("pairing-needs-bank", value="v'.t"):
        predict(bare, scan, pairing="v'.t")
    assert len(predict(bare, scan).rows) == len(LABELS)


@pytest.mark.slow
def test_predicting_starts_neither_ray_nor_mlflow() -> None:
    check = "import sys, brgsa_platform.serving.predict; print(sorted({'ray', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_prompt_of_a_supervised_abnormality_is_marked(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = save_model(tmp_path / "epoch-0001", supervised=["Pleural effusion"])
    prediction = predict(trained, scan, ["There is no PLEURAL effusion.", "There is cardiomegaly."])
    assert {row.prompt: row.supervised for row in prediction.rows} == {
        "There is no PLEURAL effusion.": True,
        "There is cardiomegaly.": False,
    }
    assert [row["supervised"] for row in json.loads(prediction.to_json())["prompts"]] == [
        row.supervised for row in prediction.rows
    ]
    prediction.print()
    shown = capsys.readouterr().out
    assert "effusion. (supervised)" in shown
    assert "cardiomegaly. (supervised)" not in shown
    assert "not zero-shot" in shown
