"""An archive to a store: what comes through, what is set aside, and what a kill leaves."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import (
    REPORT,
    SMALL,
    chest,
    contents,
    quarantine,
    read_items,
    save_manifest,
    save_scan,
    save_table,
    volumes,
    write_store,
)
from refusals import refused

from brgsa import phantom
from brgsa.labels import CT_RATE
from brgsa.volumes import Geometry, read_volume, standardize
from brgsa_platform.layouts import METADATA_COLUMNS
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import connection

pytestmark = pytest.mark.ray


def test_a_phantom_comes_through(ray_session: None, tmp_path: Path) -> None:
    made = phantom.write_tree(tmp_path / "tree", 6, 4, workers=1)
    result = prepare(tmp_path / "tree", "ct-rate", tmp_path / "store", PrepareOptions(SMALL, validation_fraction=0.3))
    assert sum(result.volumes.values()) == made.volumes
    assert result.quarantined == 0
    store = Store.open(tmp_path / "store")
    assert store.phantom
    assert set(CT_RATE) <= set(store.labels)
    stored = volumes(tmp_path / "store")
    for item, row in zip(read_items(tmp_path / "tree", "ct-rate", 0.3), store.index().to_pylist(), strict=True):
        assert (row["volume_id"], row["scan_id"], row["patient_id"]) == (item.volume_id, item.scan_id, item.patient_id)
        assert (row["split"], row["report"], row["source"]) == (item.split, item.report, item.source)
        assert {name: row["labels"][name] for name in store.labels} == {
            name: item.labels.get(name) for name in store.labels
        }
        assert row["flags"] == ["rescale:csv", "geometry:csv"]
        np.testing.assert_array_equal(stored[item.volume_id], standardize(read_volume(item.path, item.metadata), SMALL))


def test_both_releases_become_the_same_rows(ray_session: None, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    table: list[list[object]] = []
    names = []
    for release, patient, intercept in (("train", 1, -1024), ("train_fixed", 2, -1024), ("train", 3, -8192)):
        name = f"train_{patient}_a_1.nii.gz"
        bare = release == "train"
        stored = (chest() - (intercept if bare else 0)).astype(np.int16)
        save_scan(dataset / release / f"train_{patient}" / f"train_{patient}_a" / name, stored, bare)
        table.append([name, 1, intercept, "[8.0, 8.0]", 11.0, "[1, 0, 0, 0, 1, 0]"])
        names.append(name)
    lost = "train_4_a_1.nii.gz"  # no row of the metadata
    save_scan(dataset / "train" / "train_4" / "train_4_a" / lost, (chest() + 1024).astype(np.int16), True)
    save_table(dataset / "metadata" / "train_metadata.csv", ("VolumeName", *METADATA_COLUMNS), table)
    save_table(
        dataset / "radiology_text_reports" / "train_reports.csv",
        ("VolumeName", "Findings_EN", "Impressions_EN"),
        [[name, REPORT, "Not given."] for name in [*names, lost]],
    )
    prepare(tmp_path, "ct-rate", tmp_path / "store", PrepareOptions(SMALL))
    stored = volumes(tmp_path / "store")
    first, fixed, other = (stored[name.removesuffix(".nii.gz")] for name in names)
    np.testing.assert_array_equal(first, fixed)
    np.testing.assert_array_equal(first, other)
    flags = Store.open(tmp_path / "store").index(["flags"])["flags"].to_pylist()
    csv_, header = ["rescale:csv", "geometry:csv"], ["rescale:header", "geometry:header"]
    assert flags == [csv_, header, csv_]
    stage, reason = quarantine(tmp_path / "store")["train_4_a_1"]
    assert stage == "read"
    assert "XYSpacing" in reason


def test_bad_volumes_are_set_aside_and_the_run_goes_on(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 3)
    cut = tmp_path / "in" / "s001.nii.gz"
    cut.write_bytes(cut.read_bytes()[:500])
    save_scan(tmp_path / "in" / "silent.nii.gz", chest(9))
    with manifest.open("a", newline="") as file:
        csv.writer(file).writerows([["silent.nii.gz", "  "], ["gone.nii.gz", REPORT]])
    result = prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL))
    assert list(volumes(tmp_path / "store")) == ["s000", "s002"]
    assert result.quarantined == 3
    rows = quarantine(tmp_path / "store")
    assert {name: stage for name, (stage, _) in rows.items()} == {"gone": "read", "s001": "read", "silent": "report"}
    assert all(reason.startswith(f"{name}.nii.gz: ") and reason.endswith(".") for name, (_, reason) in rows.items())
    assert "3 in quarantine" in result.summary()


def test_where_nothing_can_be_used_nothing_counts(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 2)
    whole = [(path, path.read_bytes()) for path in (tmp_path / "in").glob("*.gz")]
    for path, raw in whole:
        path.write_bytes(raw[:300])
    for _ in range(2):
        with refused("no-usable-volume", field=str(manifest), value=2):
            prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL))
        assert [path.name for path in (tmp_path / "store").iterdir()] == ["quarantine.parquet"]
        assert set(quarantine(tmp_path / "store")) == {"s000", "s001"}
        with refused("no-store"):
            Store.open(tmp_path / "store")
    for path, raw in whole:
        path.write_bytes(raw)
    assert sum(prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL)).volumes.values()) == 2


def test_a_second_run_goes_on_and_mixes_nothing(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 20)
    (tmp_path / "in" / "s007.nii.gz").write_bytes(b"")
    out = tmp_path / "store"
    first = prepare(manifest, "manifest", out, PrepareOptions(SMALL))
    before = contents(out)
    assert sum(name.startswith("volumes/") for name in before) == 10  # two a shard, so that there is work for all
    assert prepare(manifest, "manifest", out, PrepareOptions(SMALL)) == first

    # As a kill leaves it: two shards missing, two half-written, nothing counted yet.
    meta = json.loads((out / "store.json").read_text())
    unfinished = [{**batch, "complete": False} for batch in meta["batches"]]
    (out / "store.json").write_text(json.dumps({**meta, "batches": unfinished, "fingerprint": ""}))
    (out / "index.parquet").unlink()
    for name in ("part-00003.parquet", "part-00008.parquet"):
        (out / "volumes" / name).unlink()
    half = out / "volumes" / "part-00005.parquet"
    half.write_bytes(half.read_bytes()[:-100])
    (out / "volumes" / ".part-00003.parquet.0123456789ab").write_bytes(b"half")
    kept = (out / "volumes" / "part-00000.parquet").stat().st_mtime_ns
    assert prepare(manifest, "manifest", out, PrepareOptions(SMALL)) == first
    assert contents(out) == before
    assert (out / "volumes" / "part-00000.parquet").stat().st_mtime_ns == kept

    for options, changed in (
        (PrepareOptions(replace(SMALL, antialias=False)), "geometry"),
        (PrepareOptions(SMALL, validation_fraction=0.5), "validation_fraction"),
        (PrepareOptions(SMALL, strict=True), "strict"),
    ):
        with refused("other-settings", value=(changed,)):
            prepare(manifest, "manifest", out, options)
    manifest.write_text(manifest.read_text().replace("right", "left"))
    with refused("volumes-changed", value=19):
        prepare(manifest, "manifest", out, PrepareOptions(SMALL))
    assert contents(out) == before


def test_a_store_does_not_depend_on_where_the_archive_lies(ray_session: None, tmp_path: Path) -> None:
    save_manifest(tmp_path / "here", 3)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    prepare(tmp_path / "here" / "scans.csv", "manifest", tmp_path / "store-here", PrepareOptions(SMALL))
    write_store(tmp_path / "there" / "scans.csv", tmp_path / "store-there")
    assert contents(tmp_path / "store-here") == contents(tmp_path / "store-there")


def test_a_second_run_is_refused_and_kill_9_leaves_the_bytes_of_an_undisturbed_one(
    ray_session: None, tmp_path: Path
) -> None:
    save_scan(tmp_path / "scan.nii.gz", chest(shape=(128, 128, 40)), spacing=(4.0, 4.0, 8.0))
    rows: list[list[object]] = [[f"v{i:03d}", f"v{i:03d}.nii.gz", REPORT] for i in range(120)]
    for _, name, _ in rows:
        os.link(tmp_path / "scan.nii.gz", tmp_path / str(name))
    rows[50][1] = "gone.nii.gz"
    manifest = save_table(tmp_path / "scans.csv", ("volume_id", "volume", "report"), rows)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "brgsa_platform.cli", "prepare", str(manifest), "--layout", "manifest"]
    grid = ["--spacing", "4", "4", "8", "--shape", "96", "96", "48"]
    geometry = Geometry((4.0, 4.0, 8.0), (96, 96, 48))
    process = subprocess.Popen(
        [*command, "--out", str(out), *grid],
        env={**os.environ, "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120

    def wait_for(files: str) -> None:
        while not list(out.glob(files)) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)

    wait_for("plans/*")
    with refused("folder-in-use", field=str(out)) as refusal:
        prepare(manifest, "manifest", out, PrepareOptions(geometry))
    wait_for("volumes/part-*")
    process.kill()
    output, _ = process.communicate(timeout=60)
    assert isinstance(refusal.value.value, tuple)
    assert refusal.value.value[:2] == (socket.gethostname(), process.pid)
    done = list(out.glob("volumes/part-*"))
    assert done, output
    assert len(done) < 16, "it was over before it was killed"
    with refused("store-unfinished"):
        Store.open(out)
    prepare(manifest, "manifest", out, PrepareOptions(geometry))
    write_store(manifest, tmp_path / "undisturbed", PrepareOptions(geometry))
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert list(quarantine(out)) == ["v050"]


def test_folders_that_cannot_be_the_store(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 1)
    before = contents(tmp_path / "in")
    with refused("not-a-store-folder", field="--out"):
        prepare(manifest, "manifest", tmp_path / "in", PrepareOptions(SMALL))
    assert contents(tmp_path / "in") == before
    with refused("folder-not-writable", field=str(manifest / "store")):
        prepare(manifest, "manifest", manifest / "store", PrepareOptions(SMALL))


def test_an_unreachable_server_stops_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = save_manifest(tmp_path / "in", 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with refused("mlflow-away"):
        prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL))
    assert not (tmp_path / "store").exists()


def test_mlflow_gets_counts_and_slices_and_no_patient(store: Path) -> None:
    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    chosen = f"tags.`brgsa.data` = '{Store.open(store).fingerprint}' and tags.`brgsa.verb` = 'prepare'"
    run = api.search_runs([experiment.experiment_id], chosen)[0]
    assert run.info.status == "FINISHED"
    assert run.data.params["layout"] == "manifest"
    assert run.data.params["shape"] == "[20, 20, 10]"
    expected = {"volumes/train": 2, "volumes/validation": 1, "volumes/test": 1, "quarantined": 1, "quarantined/read": 1}
    assert expected.items() <= run.data.metrics.items()
    assert [file.path for file in api.list_artifacts(run.info.run_id)] == ["slices.png"]
    logged = json.dumps([run.data.params, run.data.tags, run.data.metrics])
    assert "secretpatient" not in logged
    assert "Secretname" not in logged


def test_a_table_is_accounted_for_on_the_screen_in_mlflow_and_in_the_store_s_log(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = save_manifest(tmp_path / "in", 2)
    rows: list[list[object]] = [["s000", 1, 50], ["S001", 0, 51], ["elsewhere7", 0, 52]]
    labels = save_table(tmp_path / "own.csv", ("volume_id", "lung_nodule", "age"), rows)
    with refused("doubtful-ids", field=str(labels), value=1):
        prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL, strict=True, labels=labels))
    capsys.readouterr()
    prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL, labels=labels))
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "own.csv" in line]
    for words in ("3 rows", "1 matched", "2 found no volume", "1 volumes without a row", "passed over: age"):
        assert words in line
    assert "(1 differ" in line
    assert "lung_nodule as Lung nodule" in line
    assert "elsewhere7" not in shown
    log = (tmp_path / "store" / "tables.log").read_text()
    assert line in log
    assert "row 2 ('S001'), row 3 ('elsewhere7')" in log
    store = Store.open(tmp_path / "store")
    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    run = api.search_runs([experiment.experiment_id], f"tags.`brgsa.data` = '{store.fingerprint}'")[0]
    assert run.data.tags["brgsa.table.2"] == line
    assert not store.phantom


@pytest.mark.shared
def test_real_scans_with_real_reports(ray_session: None, shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "reports" / "ct_rate_reports_18labels.csv").open(newline="") as file:
        reports = [row for row, _ in zip(csv.DictReader(file), range(3), strict=False)]
    names = ["chest_a.nrrd", "thorax_contrast.nii.gz", "thorax_lowres.nrrd"]
    labels = [name for name in CT_RATE if name in reports[0]]
    rows: list[list[object]] = [
        [shared_data / "ct" / name, row["report_text"], *(row[label] for label in labels)]
        for name, row in zip(names, reports, strict=True)
    ]
    manifest = save_table(tmp_path / "scans.csv", ("volume", "report", *labels), rows)
    grid = Geometry((3.0, 3.0, 6.0), (128, 128, 64))
    result = prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(grid, roots=[str(shared_data / "ct")]))
    assert (sum(result.volumes.values()), result.quarantined) == (3, 0)
    for hu in volumes(tmp_path / "store").values():
        assert (hu.min(), hu.shape) == (-1000, (128, 128, 64))
        assert 800 < hu.max() <= 1000
        middle = hu[32:96, 32:96, 24:40]
        assert 0.1 < np.mean(middle < -700) < 0.9, "lungs and what lies between them"
