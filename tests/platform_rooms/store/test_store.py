"""What a store gives, what it is on disk, and how it refuses what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from brgsa.errors import UserError
from brgsa.volumes import Geometry, read_volume, standardize
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.store.store import SCHEMA, Store

pytestmark = pytest.mark.ray

ROWS = [("a1", "train"), ("a2", "train"), ("b1", "validation"), ("c1", "test")]


def test_what_a_store_holds(store: Path) -> None:
    opened = Store.open(store)
    assert opened.geometry == Geometry((4.0, 4.0, 8.0), (20, 20, 10))
    assert opened.labels == ("Pleural effusion",)
    index = opened.index()
    assert index.schema.names == [name for name in [*SCHEMA.names, "shard", "row_group"] if name != "ct"]
    assert [(r["volume_id"], r["split"]) for r in index.to_pylist()] == ROWS
    first = index.to_pylist()[0]
    assert {name: value for name, value in first["labels"].items() if value is not None} == {"Pleural effusion": 0}
    assert (first["shape"], first["spacing"], first["source"]) == ([20, 20, 10], [4.0, 4.0, 8.0], "a1.nii.gz")
    assert first["patient_id"] == "secretpatient-a"
    assert opened.texts("report")["b1"].startswith("Bilateral")
    assert opened.index(["split", "volume_id"]).column_names == ["split", "volume_id"]


def test_the_index_is_in_the_order_of_the_shards(store: Path) -> None:
    opened = Store.open(store)
    files = [pq.ParquetFile(shard) for shard in opened.shards()]
    assert all(f.metadata.row_group(g).num_rows == 1 for f in files for g in range(f.num_row_groups))
    ids = [name for f in files for name in f.read(columns=["volume_id"])["volume_id"].to_pylist()]
    assert ids == opened.index(["volume_id"])["volume_id"].to_pylist()


def test_ten_lines_read_a_store_without_this_project(store: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "store.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 10
    assert "brgsa" not in code
    found: dict[str, object] = {}
    exec(code.replace("STORE", str(store)), found)
    volumes = found["volumes"]
    assert isinstance(volumes, dict)
    assert list(volumes) == [name for name, _ in ROWS]
    for name, array in volumes.items():
        scan = read_volume(store.parent / f"{name}.nii.gz")
        np.testing.assert_array_equal(array, standardize(scan, Geometry((4.0, 4.0, 8.0), (20, 20, 10))))


def test_a_column_or_style_that_is_not_there(store: Path) -> None:
    opened = Store.open(store)
    with pytest.raises(UserError, match="no column 'reports'; it has: volume_id"):
        opened.index(["reports"])
    mend = f"brgsa summarize {store} --style findings"
    for ask in (lambda: opened.texts("findings"), lambda: opened.index(["summary.findings"])):
        with pytest.raises(UserError, match="no summaries of style 'findings'") as refusal:
            ask()
        assert mend in str(refusal.value)
    assert opened.styles() == []


def test_what_is_no_store(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a store .*brgsa prepare"):
        Store.open(tmp_path)
    with pytest.raises(UserError, match="not a store"):
        Store.open(tmp_path / "absent")
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    meta = json.loads((copy / "store.json").read_text())
    unfinished = [{**meta["batches"][0], "complete": False}]
    for change, words in (
        (
            json.dumps({**meta, "batches": unfinished}),
            "not finished: run its `brgsa prepare` again",
        ),
        (json.dumps({**meta, "format": 99}), "format 99"),
        ("{", "cannot be read"),
        ("3", "cannot be read"),
    ):
        (copy / "store.json").write_text(change)
        with pytest.raises(UserError, match=words):
            Store.open(copy)
    (copy / "store.json").write_text(json.dumps(meta))
    for spoil in ((copy / "index.parquet").write_bytes, lambda _: (copy / "index.parquet").unlink()):
        spoil(b"PAR1")
        with pytest.raises(UserError, match=r"index\.parquet is missing or damaged"):
            Store.open(copy).index()


def test_what_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail() -> None:
        with Folder(tmp_path).written_aside("a.txt") as aside:
            aside.write_text("new, half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "old"
