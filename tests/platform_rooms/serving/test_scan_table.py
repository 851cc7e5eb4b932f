"""Many scans to one table: each found, each in its row, none twice, none lost by a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from models import LABELS, save_model
from refusals import refused
from tiny_models import save_noise

from brgsa import zeroshot
from brgsa_platform.serving.predict import predict
from brgsa_platform.serving.scan_list import ScanPlace, find_scans
from brgsa_platform.serving.scan_table import FIXED, PART, embed, predict_many
from brgsa_platform.serving.scorer import ScanOptions, Scorer
from scans import chest, save_dicom, save_nifti

PROMPTS = zeroshot.prompts(LABELS)
REFERENCE = {text: [-1.0, 0.0, 1.0] for text in PROMPTS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "epoch-0001"
    data = {"seen": {"spacing": [[1, 5], [1, 5], [1, 6]], "extent": [[100, 400]] * 3, "mean": [[-1000, 1000]]}}
    return save_model(folder, reference_scores=REFERENCE, more_data=data)


@pytest.fixture(scope="module")
def scorer(saved: Path) -> Scorer:
    return Scorer(saved)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two NIfTI files, one of which is damaged, two series of one study in subfolders, and a text."""
    folder = tmp_path_factory.mktemp("archive")
    save_nifti(folder / "a.nii.gz", chest(seed=1))
    (folder / "b.nii.gz").write_bytes(b"\x1f\x8b no picture")
    save_dicom(folder / "study" / "one", chest(seed=2), series="1.2.1")
    save_dicom(folder / "study" / "two", chest(seed=3), series="1.2.2")
    (folder / "notes.txt").write_text("a.nii.gz\n")
    return folder


def test_folders_files_and_lists_name_scans(archive: Path) -> None:
    everything = find_scans([archive])
    assert [place.path.name for place in everything[:2]] == ["a.nii.gz", "b.nii.gz"]
    assert sorted(place.series or "" for place in everything[2:]) == ["1.2.1", "1.2.2"]
    assert find_scans([archive / "notes.txt", archive / "a.nii.gz"]) == [ScanPlace(archive / "a.nii.gz")]


def test_nothing_and_nobody(tmp_path: Path) -> None:
    with refused("no-scan"):
        find_scans([tmp_path])
    with refused("file-missing"):
        find_scans([tmp_path / "absent.nii"])


def test_a_list_names_scans_and_no_other_lists(tmp_path: Path) -> None:
    scans = tmp_path / "scans.txt"
    scans.write_text("scans.txt\n")  # itself, without an end
    assert find_scans([scans]) == [ScanPlace(scans)]  # which is refused in its row: it is no image
    scans.write_bytes(b"M\xfcller.nii\n")
    with refused("list-unreadable", field="scans", value=str(scans)):
        find_scans([scans])


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_each_scan_has_the_row_of_a_single_prediction(
    scorer: Scorer, saved: Path, archive: Path, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"scores{ending}"
    done = predict_many(scorer, [archive], out)
    assert (done.scans, done.refused) == (4, 1)
    rows = pq.read_table(out).to_pylist() if ending == ".parquet" else _read_csv(out)
    assert tuple(rows[0])[: len(FIXED)] == FIXED
    single = {row.prompt: row for row in predict(saved, archive / "a.nii.gz").rows}
    for text in PROMPTS:
        assert float(rows[0][text]) == pytest.approx(single[text].score, abs=1e-6)
        assert float(rows[0][f"{text} (higher than)"]) == single[text].percentile
        assert rows[1][text] in (None, "")
    assert rows[1]["refused"]
    assert {row["series"] for row in rows[2:]} == {"1.2.1", "1.2.2"}
    assert list(tmp_path.iterdir()) == [out]


def test_scans_of_one_slice_and_without_air_have_their_rows(scorer: Scorer, tmp_path: Path) -> None:
    save_noise(tmp_path / "flat.nii.gz", (40, 38, 1))
    save_noise(tmp_path / "whole.nii.gz", low=0)
    done = predict_many(scorer, [tmp_path], tmp_path / "scores.csv")
    flat, airless = _read_csv(done.out)
    assert flat["refused"]
    assert flat[PROMPTS[0]] == ""
    assert "Air" in airless["cautions"]
    assert airless[PROMPTS[0]] != ""


def test_a_killed_call_goes_on(scorer: Scorer, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.csv"
    predict_many(scorer, [archive], whole)
    out = tmp_path / "scores.csv"
    read, asked = scorer.read, []

    def dying(path: Path, options: ScanOptions) -> object:
        asked.append(options.series)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return read(path, options)

    monkeypatch.setattr(scorer, "read", dying)
    with pytest.raises(KeyboardInterrupt):
        predict_many(scorer, [archive], out)
    assert not out.exists()
    part = out.with_name(out.name + PART)
    before = part.read_text()
    part.write_text(before + '{"scan": "cut o')  # the machine went down while it wrote
    asked.clear()
    monkeypatch.setattr(scorer, "read", lambda path, options: asked.append(options.series) or read(path, options))
    predict_many(scorer, [archive], out)
    assert len(asked) == 4 - (before.count("\n") - 1)
    assert out.read_text() == whole.read_text()


def test_a_part_of_another_call_is_not_gone_on_with(scorer: Scorer, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    part = out.with_name(out.name + PART)
    part.write_text(json.dumps({"checkpoint": "another"}) + "\n")
    with refused("other-scores", field="--out"):
        predict_many(scorer, [archive / "a.nii.gz"], out)
    assert part.exists()


def test_a_scan_that_was_refused_is_not_taken_over_by_a_call_that_trusts(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, out = save_nifti(tmp_path / "small.nii", chest(), np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "scores.csv"
    with monkeypatch.context() as patch:
        patch.setattr("brgsa_platform.serving.scan_table._write", _raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            predict_many(scorer, [scan], out)
    with refused("other-scores", field="--out"):
        predict_many(scorer, [scan], out, ScanOptions(trust_geometry=True))
    predict_many(scorer, [scan], out)
    assert _read_csv(out)[0]["refused"]
    predict_many(scorer, [scan], out, ScanOptions(trust_geometry=True))
    assert not _read_csv(out)[0]["refused"]


def _raise_interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_a_table_has_all_series(scorer: Scorer, archive: Path, tmp_path: Path) -> None:
    with refused("series-in-table", field="--series"):
        predict_many(scorer, [archive], tmp_path / "scores.csv", ScanOptions(series="1.2.1"))


def test_a_metadata_table_that_cannot_be_used_is_no_fault_of_the_scans(
    scorer: Scorer, archive: Path, tmp_path: Path
) -> None:
    out, table = tmp_path / "scores.csv", tmp_path / "metadata.csv"
    with refused("unreadable-table", field=str(table)):
        predict_many(scorer, [archive], out, ScanOptions(table))
    assert not list(tmp_path.iterdir())
    table.write_text("VolumeName,RescaleSlope,RescaleIntercept\na.nii.gz,1,0\n")
    predict_many(scorer, [archive / "a.nii.gz", archive / "b.nii.gz"], out, ScanOptions(table))
    first, second = _read_csv(out)
    assert not first["refused"]
    assert "no row" in second["refused"]
    table.write_text("VolumeName,RescaleSlope,RescaleIntercept\nb.nii.gz,1,0\n")  # it is read again
    predict_many(scorer, [archive / "a.nii.gz"], out, ScanOptions(table))
    assert "no row" in _read_csv(out)[0]["refused"]


def stop_before_the_table(scorer: Scorer, scans: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("brgsa_platform.serving.scan_table._write", _raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            predict_many(scorer, scans, out)


def asked_again(scorer: Scorer, scans: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many scans are read where the table is gone on with."""
    read, asked = scorer.read, []
    with monkeypatch.context() as patch:
        patch.setattr(scorer, "read", lambda path, options: asked.append(path) or read(path, options))
        predict_many(scorer, scans, out)
    return len(asked)


@pytest.mark.parametrize("later", [10, -10])
def test_a_scan_that_changed_meanwhile_is_read_again(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: int
) -> None:
    """Also where a copy has brought an older time with it."""
    scan, other = save_nifti(tmp_path / "a.nii", chest(seed=1)), save_nifti(tmp_path / "b.nii", chest(seed=2))
    out = tmp_path / "scores.csv"
    stop_before_the_table(scorer, [scan, other], out, monkeypatch)
    made = scan.stat().st_mtime
    save_nifti(scan, chest(seed=9))
    os.utime(scan, (made + later,) * 2)
    assert asked_again(scorer, [scan, other], out, monkeypatch) == 1
    assert float(_read_csv(out)[0][PROMPTS[0]]) == pytest.approx(
        {row.prompt: row.score for row in predict(scorer.path, scan).rows}[PROMPTS[0]], abs=1e-6
    )


def test_a_slice_that_changed_deep_in_a_study_is_seen(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = tmp_path / "study", tmp_path / "scores.csv"
    save_dicom(study / "disc" / "one", chest(seed=2), series="1.2.1")
    (study / "disc" / "lost.dcm").symlink_to(study / "nowhere.dcm")
    stop_before_the_table(scorer, [study], out, monkeypatch)
    assert asked_again(scorer, [study], out, monkeypatch) == 0
    stop_before_the_table(scorer, [study], out, monkeypatch)
    file = min((study / "disc" / "one").iterdir())
    os.utime(file, (file.stat().st_mtime + 10,) * 2)
    assert asked_again(scorer, [study], out, monkeypatch) == 1


def test_what_lies_outside_the_training_is_told(scorer: Scorer, saved: Path, tmp_path: Path) -> None:
    wide = np.diag([-6.0, -6.0, 6.0, 1.0])
    scan = save_nifti(tmp_path / "wide.nii", chest(), wide)
    predict_many(scorer, [scan], tmp_path / "scores.csv")
    (row,) = _read_csv(tmp_path / "scores.csv")
    assert row["outside"].startswith("spacing x 6 mm, the training's 1 to 5")
    assert any("spacing x 6 mm" in warning for warning in predict(saved, scan).warnings)
    inside = save_nifti(tmp_path / "inside.nii", chest())
    assert scorer.read(inside).outside == []


@pytest.mark.parametrize("name", ["scores.txt", "scores"])
def test_a_table_of_another_format_is_refused(scorer: Scorer, archive: Path, tmp_path: Path, name: str) -> None:
    with refused("table-format", field="--out"):
        predict_many(scorer, [archive], tmp_path / name)


def test_a_table_that_cannot_be_written_is_refused(scorer: Scorer, archive: Path, tmp_path: Path) -> None:
    with refused("table-not-writable", field="--out"):
        predict_many(scorer, [archive], tmp_path / "absent" / "scores.csv")


def test_embeddings(scorer: Scorer, archive: Path, tmp_path: Path) -> None:
    done = embed(scorer, [archive], tmp_path / "embeddings.parquet")
    assert (done.scans, done.refused) == (4, 1)
    rows = pq.read_table(done.out).to_pylist()
    found = scorer.model.encode_volumes(scorer.read(archive / "a.nii.gz").tensor())
    np.testing.assert_allclose(rows[0]["plain"], found.plain[0], rtol=1e-5)
    assert found.bridged is not None
    np.testing.assert_allclose(rows[0]["bridged"], found.bridged[0], rtol=1e-5)
    assert rows[1]["plain"] is None
    with refused("table-format", field="--out"):
        embed(scorer, [archive], tmp_path / "embeddings.csv")


def _read_csv(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(newline="") as file:
        return list(csv.DictReader(file))
