"""A shard and the tables over it, without Ray: what is on the disk when, and what a refusal by the disk leaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from archives import SMALL, contents, read_items, save_manifest, write_store

from brgsa_platform.runtime.storage import Folder
from brgsa_platform.store.ingest_log import IngestLog
from brgsa_platform.store.store import checksum, hu_histogram
from brgsa_platform.store.writer import ShardWriter


def test_every_file_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, out = save_manifest(tmp_path / "in", 2), tmp_path / "store"
    synced: list[int] = []  # inodes
    named: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def noted_replace(aside: Any, target: Any) -> None:
        assert os.stat(aside).st_ino in synced, f"{target} is named before its bytes are on the disk"
        replace(aside, target)
        named.append(str(Path(target).relative_to(out)))
        synced.clear()

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_store(manifest, out)
    assert sorted(named) == sorted(contents(out))
    assert named[-1] == "store.json", "which says that all others are there"
    assert synced == [out.stat().st_ino], "the name is on the disk as well"


def test_a_disk_that_refuses_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    items = read_items(save_manifest(tmp_path / "in", 1), "manifest", 0.1)
    (tmp_path / "store" / "volumes" / "part-00000.parquet").mkdir(parents=True)  # nothing can be renamed to this
    assert ShardWriter(Folder(tmp_path / "store"), SMALL)("part-00000.parquet", items) == "Is a directory"
    assert [path.name for path in (tmp_path / "store" / "volumes").iterdir()] == ["part-00000.parquet"]


def test_the_checksum_covers_every_column(labelled: Path) -> None:
    row = pq.read_table(labelled / "volumes" / "part-00001.parquet").to_pylist()[0]
    assert checksum(row) == row["checksum"]
    for column in row.keys() - {"checksum", "ct"}:
        assert checksum({**row, column: "another"}) != row["checksum"], column
    assert checksum({**row, "ct": row["ct"][:-1] + b"?"}) != row["checksum"]


def test_the_histogram_counts_every_second_voxel() -> None:
    hu = np.full((4, 4, 4), -1000, dtype=np.int16)
    hu[0, 0, 0], hu[2, 2, 2], hu[1, 1, 1] = 40, 1000, 500
    counts = hu_histogram(hu)
    assert counts.sum() == 8
    assert (counts[0], counts[(40 + 1024) // 64], counts[(1000 + 1024) // 64]) == (6, 1, 1)


def test_the_log_counts_the_deaths_of_a_volume_and_each_finished_one_once() -> None:
    log = IngestLog()
    assert [log.begin("a"), log.begin("a"), log.begin("b")] == [0, 1, 0]
    log.finish("a")
    log.finish("a")  # by a task that ran twice
    assert log.finished() == 1
    assert log.begin("a") == 0, "it was finished: nobody died of it"
