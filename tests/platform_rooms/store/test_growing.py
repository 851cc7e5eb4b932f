"""A store over time: grown archives, retried volumes, damaged shards, volumes that kill their readers."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from archives import (
    REPORT,
    SMALL,
    chest,
    contents,
    quarantine,
    save_manifest,
    save_scan,
    save_table,
    volumes,
    write_store,
)
from refusals import refused

from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from brgsa_platform.store.verify import verify
from brgsa_platform.summaries.summarize import summarize

pytestmark = pytest.mark.ray


def test_a_patient_keeps_its_split_however_it_is_spelled_later(tmp_path: Path) -> None:
    header = ("volume", "report", "patient_id", "split")
    save_scan(tmp_path / "in" / "a.nii.gz", chest())
    first = save_table(tmp_path / "in" / "a.csv", header, [["a.nii.gz", REPORT, "P07", "train"]])
    out = write_store(first, tmp_path / "store")
    for name in ("P07", "p7", "P7.0"):
        later = save_table(tmp_path / "in" / "b.csv", header, [["b.nii.gz", REPORT, name, "test"]])
        with refused("patient-moved", field="split", value="b"):
            prepare(later, "manifest", out, PrepareOptions(SMALL))


def add_rows(manifest: Path, rows: list[list[object]]) -> None:
    with manifest.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def test_new_scans_are_added_and_old_shards_left_alone(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 4)
    out = tmp_path / "store"
    prepare(manifest, "manifest", out, PrepareOptions(SMALL))
    summarize(out, ["positives"])
    before, first = contents(out), Store.open(out)
    save_scan(tmp_path / "in" / "a000.nii.gz", chest(70))  # sorts before those that are there
    (tmp_path / "in" / "cut.nii.gz").write_bytes(b"cut")
    add_rows(manifest, [["a000.nii.gz", "There is emphysema."], ["cut.nii.gz", REPORT]])
    result = prepare(manifest, "manifest", out, PrepareOptions(SMALL))
    assert (sum(result.volumes.values()), result.added, result.quarantined) == (5, 1, 1)
    assert "1 of them new" in result.summary()
    after, second = contents(out), Store.open(out)
    kept = [name for name in before if name.startswith(("volumes/", "plans/"))]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert second.shards()[:4] == first.shards()
    ids = second.index(["volume_id"])["volume_id"].to_pylist()
    assert ids == ["s000", "s001", "s002", "s003", "a000"]
    assert list(volumes(out)) == ids
    assert second.fingerprint != first.fingerprint
    with refused("summaries-incomplete", field="positives", value=str(out)):
        second.texts("positives")
    summarize(out, ["positives"])
    assert Store.open(out).texts("positives")["a000"] == "There is emphysema."
    assert not verify(str(out)).damage

    # The same archive at once, in a store of its own, has the same rows.
    at_once = volumes(write_store(manifest, tmp_path / "at-once"))
    assert at_once.keys() == volumes(out).keys()
    for name, hu in volumes(out).items():
        np.testing.assert_array_equal(hu, at_once[name])


def test_an_addition_that_was_killed_goes_on(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 6)
    rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join(rows[:3]) + "\n")
    first = contents(write_store(manifest, tmp_path / "store"))
    manifest.write_text("\n".join(rows) + "\n")
    prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL))
    undisturbed = contents(tmp_path / "store")
    # As a kill between the last shard and the tables leaves it, then one in mid-batch.
    meta = json.loads(undisturbed["store.json"])
    meta["batches"][1]["complete"] = False
    for lost in ([], ["part-00003.parquet"], ["part-00002.parquet", "part-00005.parquet"]):
        (tmp_path / "store" / "store.json").write_text(json.dumps(meta))
        for name in lost:
            (tmp_path / "store" / "volumes" / name).unlink()
            for table in ("index.parquet", "quarantine.parquet"):
                (tmp_path / "store" / table).write_bytes(first[table])
        with refused("store-unfinished"):
            Store.open(tmp_path / "store")
        prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL))
        assert contents(tmp_path / "store") == undisturbed
    manifest.write_text("\n".join(rows[:5]) + "\n")
    (tmp_path / "store" / "store.json").write_text(json.dumps(meta))
    with refused("volume-missing", value="s004"):
        prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL))


def test_a_patient_keeps_its_split(ray_session: None, tmp_path: Path) -> None:
    for i in range(2):
        save_scan(tmp_path / f"s{i}.nii.gz", chest(i))
    header = ("volume", "report", "scan_id", "patient_id", "split")
    manifest = save_table(tmp_path / "scans.csv", header, [["s0.nii.gz", REPORT, "x", "p", "train"]])
    write_store(manifest, tmp_path / "store")
    before = contents(tmp_path / "store")
    for row, column in (
        (["s1.nii.gz", REPORT, "y", "p", "test"], "split"),
        (["s1.nii.gz", REPORT, "x", "q", "train"], "patient_id"),
    ):
        save_table(manifest, header, [row])
        with refused("patient-moved", field=column, value="s1"):
            prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL))
    assert contents(tmp_path / "store") == before


def test_what_was_refused_is_tried_again_when_asked(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 3)
    scan = tmp_path / "in" / "s001.nii.gz"
    whole = scan.read_bytes()
    scan.write_bytes(whole[:200])
    (tmp_path / "in" / "s002.nii.gz").write_bytes(b"")
    out = tmp_path / "store"
    prepare(manifest, "manifest", out, PrepareOptions(SMALL))
    assert list(quarantine(out)) == ["s001", "s002"]
    scan.write_bytes(whole)
    assert prepare(manifest, "manifest", out, PrepareOptions(SMALL)).quarantined == 2
    result = prepare(manifest, "manifest", out, PrepareOptions(SMALL, retry_quarantined=True))
    assert (sum(result.volumes.values()), result.added, result.quarantined) == (2, 1, 1)
    assert list(quarantine(out)) == ["s002"]
    assert list(volumes(out)) == ["s000", "s001"]


def test_damage_is_found_and_mended(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 5)
    out = tmp_path / "store"
    before = contents(write_store(manifest, out))
    good = verify(str(out))
    assert (good.damage, good.volumes, good.shards) == ([], 5, 5)
    assert "are whole" in good.summary()

    cut = out / "volumes" / "part-00001.parquet"
    cut.write_bytes(before["volumes/part-00001.parquet"][:-40])
    (out / "volumes" / "part-00003.parquet").unlink()
    prepare(manifest, "manifest", out, PrepareOptions(SMALL))  # sees by their sizes that two are not what they were
    assert contents(out) == before

    # Another shard's file in its place: whole by itself, but not of the size that was counted.
    (out / "volumes" / "part-00004.parquet").write_bytes(before["volumes/part-00000.parquet"])
    assert len(before["volumes/part-00000.parquet"]) != len(before["volumes/part-00004.parquet"])
    prepare(manifest, "manifest", out, PrepareOptions(SMALL))
    assert contents(out) == before

    flipped = bytearray(before["volumes/part-00002.parquet"])
    flipped[2000] ^= 4  # within the volume: the size stays
    (out / "volumes" / "part-00002.parquet").write_bytes(flipped)
    cut.write_bytes(before["volumes/part-00001.parquet"][:-40])
    bad = verify(str(out))
    assert {(d.shard, d.volume_id) for d in bad.damage} >= {("part-00001.parquet", ""), ("part-00002.parquet", "s002")}
    assert {d.shard for d in bad.damage} == {"part-00001.parquet", "part-00002.parquet"}
    assert "--discard" in bad.summary()
    assert "were removed" in verify(str(out), discard=True).summary()
    prepare(manifest, "manifest", out, PrepareOptions(SMALL))
    assert contents(out) == before


def test_a_volume_that_kills_its_workers_is_set_aside(ray_session: None, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 3)
    scan = tmp_path / "in" / "s001.nii"
    save_scan(scan, chest(1))
    with scan.open("ab") as file:
        file.truncate(
            2 * 2**30
        )  # a hole: long enough to read to be killed at it, as the kernel does when out of memory
    (tmp_path / "in" / "s001.nii.gz").unlink()
    manifest.write_text(manifest.read_text().replace("s001.nii.gz", "s001.nii"))
    deaths: list[int] = []
    over = threading.Event()

    def kill_readers() -> None:
        while not over.wait(0.01):
            for process in psutil.process_iter():
                with suppress(psutil.Error, ProcessLookupError):
                    if any(file.path == str(scan) for file in process.open_files()):
                        process.kill()
                        deaths.append(process.pid)

    thread = threading.Thread(target=kill_readers)
    thread.start()
    try:
        result = prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL))
    finally:
        over.set()
        thread.join()
    assert len(set(deaths)) == 2
    assert (sum(result.volumes.values()), result.quarantined) == (2, 1)
    assert quarantine(tmp_path / "store")["s001"][0] == "crash"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_named_and_loses_nothing(ray_session: None, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        manifest = save_manifest(tmp_path / "in", 12)
        with refused("store-unwritable", field="--out", value="No space left on device"):
            prepare(manifest, "manifest", small / "store", PrepareOptions(SMALL))
        whole = [p for p in (small / "store" / "volumes").iterdir() if not p.name.startswith(".")]
        assert len(whole) < 12
        for shard in whole:
            assert pq.read_metadata(shard).num_row_groups == 1
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        prepare(manifest, "manifest", small / "store", PrepareOptions(SMALL))
        assert contents(small / "store") == contents(write_store(manifest, tmp_path / "roomy"))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
