"""What a user gets wrong: one clear sentence that names the mend, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
from commandline import Done, brgsa

from brgsa.volumes import Geometry
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from scans import chest

pytestmark = pytest.mark.ray

REPORT = "There is pleural effusion on the right."


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's current folder, empty at first."""
    monkeypatch.chdir(tmp_path)


def refused(done: Done, *words: str) -> None:
    assert done.status == 2, done.err
    assert "Traceback" not in done.err
    sentences = [line for line in done.err.splitlines() if line.startswith("brgsa: ")]
    assert len(sentences) == 1, done.err
    for word in words:
        assert word in sentences[0]


def write_scan(path: Path, array: np.ndarray | None = None, spacing: tuple[float, ...] = (8.0, 8.0, 9.0)) -> Path:
    if array is None:
        array = chest((24, 22, 12))
    image = nibabel.Nifti1Image(array, np.diag([-8.0, -8.0, 9.0, 1.0]))
    if array.ndim == 3:
        image.header["pixdim"][1:4] = spacing
    nibabel.save(image, path)
    return path


def test_volumes_that_cannot_be_used_are_set_aside(place: Path, tmp_path: Path) -> None:
    good = write_scan(tmp_path / "good.nii.gz")
    whole = good.read_bytes()
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"not an image"))
    write_scan(tmp_path / "flat.nii.gz", np.zeros((24, 22), dtype=np.int16))
    write_scan(tmp_path / "film.nii.gz", np.zeros((12, 12, 12, 3), dtype=np.int16))
    write_scan(tmp_path / "nan.nii.gz", np.full((12, 12, 12), np.nan, dtype=np.float32))
    write_scan(tmp_path / "same.nii.gz", np.full((12, 12, 12), 7, dtype=np.int16))
    for name, spacing in (("zero", 0.0), ("negative", -1.0)):
        scan = nibabel.Nifti1Image(np.random.default_rng(0).integers(-1000, 400, (12, 12, 12)).astype(np.int16), None)
        scan.header["pixdim"][1:4] = spacing
        scan.header["qform_code"] = scan.header["sform_code"] = 0
        nibabel.save(scan, tmp_path / f"{name}.nii.gz")
    names = ["good", "empty", "cut", "text", "flat", "film", "nan", "same", "zero", "negative", "absent"]
    rows = [[f"{name}.nii.gz", REPORT] for name in names]
    write_scan(tmp_path / "silent.nii.gz")
    write_scan(tmp_path / "healthy.nii.gz")
    rows += [["silent.nii.gz", ""], ["healthy.nii.gz", "The examination is within normal limits."]]
    write_manifest(tmp_path / "scans.csv", rows)
    prepare(
        tmp_path / "scans.csv", "manifest", tmp_path / "store", PrepareOptions(Geometry((8.0, 8.0, 8.0), (16, 16, 16)))
    )
    kept = Store.open(tmp_path / "store").index(["volume_id"])["volume_id"].to_pylist()
    assert kept == ["good", "healthy"]
    quarantine = {row["volume_id"]: row for row in pq.read_table(tmp_path / "store" / "quarantine.parquet").to_pylist()}
    assert set(quarantine) == (set(names) | {"silent"}) - {"good"}
    for name, row in quarantine.items():
        assert name in row["reason"] or name in row["source"]
        assert len(row["reason"]) > 15
        assert "Traceback" not in row["reason"]
    assert quarantine["silent"]["stage"] == "report"


def write_manifest(path: Path, rows: list[list[str]], header: tuple[str, ...] = ("volume", "report")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_manifests(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii.gz")
    twice = write_manifest(tmp_path / "twice.csv", [["a.nii.gz", REPORT]] * 2)
    refused(brgsa("prepare", twice, "--layout", "manifest", "--out", "s"), "more than once", "a")
    short = write_manifest(tmp_path / "short.csv", [["a.nii.gz"]], ("volume",))
    refused(brgsa("prepare", short, "--layout", "manifest", "--out", "s"), "'report'", "short.csv")
    (tmp_path / "nothing.csv").write_text("")
    refused(brgsa("prepare", "nothing.csv", "--layout", "manifest", "--out", "s"), "nothing.csv")
    refused(brgsa("prepare", "absent.csv", "--layout", "manifest", "--out", "s"), "absent.csv")
    assert not (tmp_path / "s").exists()


def test_configurations(place: Path, tmp_path: Path) -> None:
    train = ["train", "--data", place / "store", "--preset", "demo-smoke"]
    refused(brgsa(*train, "model.bank.sise=3"), "model.bank.sise", "did you mean size")
    refused(brgsa(*train, "model.bank.size=0"), "at least 1", "bank.enabled=false")
    refused(brgsa(*train, "train.batch_size=5000"), "train.batch_size=5000")
    refused(brgsa(*train, "model.vision.volume=[128,128,64]"), "model.vision.volume", "larger")
    refused(brgsa(*train, "data.style=findings+"), "brgsa summarize")
    (tmp_path / "mine.yaml").write_text("optim: {rate: 1}")
    refused(brgsa("train", "--data", place / "store", "--preset", "mine.yaml"), "optim.rate", "mine.yaml")
    refused(brgsa("train", "--data", tmp_path, "--preset", "demo-smoke"), "not a store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


def test_output_folders(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    train = ["train", "--data", place / "store", "--preset", "demo-smoke"]
    refused(brgsa(*train, "--out", "file/run"), "file/run", "another --out")
    prepare_it = ["prepare", place / "phantom", "--layout", "ct-rate"]
    refused(brgsa(*prepare_it, "--out", "file/store"), "file/store", "choose another")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(brgsa(*prepare_it, "--out", "mine"), "mine", "another --out")
    refused(brgsa(*prepare_it, "--out", place / "store"), "other settings", "geometry")
    refused(brgsa("phantom", "mine", "--scans", 3), "mine")
    refused(brgsa("demo", "--out", "mine"), "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_tracking_server_that_does_not_answer(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    for verb in (
        ["train", "--data", place / "store", "--preset", "demo-smoke", "--out", tmp_path / "run"],
        ["summarize", place / "store", "--style", "findings"],
        ["prepare", place / "phantom", "--layout", "ct-rate", "--out", tmp_path / "store"],
    ):
        done = brgsa(
            *verb,
        )
        refused(done, "127.0.0.1:9", "does not answer")
        assert "secret" not in done.err + done.out
    assert not (tmp_path / "run").exists()


def test_checkpoints_and_scans(place: Path, tmp_path: Path) -> None:
    refused(brgsa("evaluate", tmp_path, "--data", place / "store"), "neither a checkpoint nor a run")
    refused(brgsa("predict", tmp_path / "absent", "scan.nii.gz"), "neither a checkpoint nor a run")


def test_searches(place: Path, tmp_path: Path) -> None:
    tune = ["tune", "--data", place / "store", "--preset", "demo-smoke"]
    refused(brgsa(*tune, "--space", "cmk"), "did you mean cmki")
    refused(brgsa(*tune, "--space", "cmki", "--trials", 0), "--trials")
    for name in "abcd":
        write_scan(tmp_path / f"{name}.nii.gz")
    rows = [
        [f"{name}.nii.gz", REPORT, split] for name, split in zip("abcd", ["train"] * 3 + ["validation"], strict=True)
    ]
    write_manifest(tmp_path / "scans.csv", rows, ("volume", "report", "split"))
    prepare(
        tmp_path / "scans.csv",
        "manifest",
        tmp_path / "unlabelled",
        PrepareOptions(Geometry((8.0, 8.0, 8.0), (16, 16, 16))),
    )
    refused(brgsa("tune", "--data", "unlabelled", "--space", "cmki"), "validation split", "labels")
    (tmp_path / "mine.yaml").write_text("loss.temprature: {kind: float, low: 0.1, high: 1, why: x}")
    refused(brgsa(*tune, "--space", "mine.yaml"), "loss.temprature", "temperature")
