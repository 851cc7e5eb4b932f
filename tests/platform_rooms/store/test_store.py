"""What a store gives, what it is on disk, and how it refuses what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from archives import SMALL
from refusals import refused

from brgsa.volumes import read_volume, standardize
from brgsa_platform.store.store import SCHEMA, Store

ROWS = [("s0", "train"), ("s1", "train"), ("s2", "train"), ("s3", "test")]


def test_what_a_store_holds(labelled: Path) -> None:
    opened = Store.open(labelled)
    assert opened.geometry == SMALL
    assert opened.labels == ("Lung nodule", "Pleural effusion")
    index = opened.index()
    assert index.schema.names == [name for name in [*SCHEMA.names, "shard", "row_group"] if name != "ct"]
    assert [(r["volume_id"], r["split"]) for r in index.to_pylist()] == ROWS
    first = index.to_pylist()[0]
    known = {name: value for name, value in first["labels"].items() if value is not None}
    assert known == {"Lung nodule": 0, "Pleural effusion": 1}
    assert (first["shape"], first["spacing"], first["source"]) == ([24, 24, 16], [6.0, 6.0, 9.0], "s0.nii.gz")
    assert (first["scan_id"], first["patient_id"]) == ("x", "p")
    assert set(opened.texts("report").values()) == {"Mrs Secretname has a pleural effusion."}
    assert opened.index(["split", "volume_id"]).column_names == ["split", "volume_id"]
    assert opened.quarantine()["stage"].to_pylist() == ["read"]


def test_the_index_is_in_the_order_of_the_shards(labelled: Path) -> None:
    opened = Store.open(labelled)
    files = [pq.ParquetFile(shard) for shard in opened.shards()]
    assert all(f.metadata.row_group(g).num_rows == 1 for f in files for g in range(f.num_row_groups))
    ids = [name for f in files for name in f.read(columns=["volume_id"])["volume_id"].to_pylist()]
    assert ids == opened.index(["volume_id"])["volume_id"].to_pylist()


def test_ten_lines_read_a_store_without_this_project(labelled: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "store.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 10
    assert "brgsa" not in code
    names: dict[str, object] = {}
    exec(code.replace("STORE", str(labelled)), names)
    volumes = names["volumes"]
    assert isinstance(volumes, dict)
    assert list(volumes) == [name for name, _ in ROWS]
    for name, array in volumes.items():
        np.testing.assert_array_equal(array, standardize(read_volume(labelled.parent / f"{name}.nii.gz"), SMALL))


def test_a_column_or_style_that_is_not_there(labelled: Path) -> None:
    opened = Store.open(labelled)
    with refused("unknown-column", field="reports"):
        opened.index(["reports"])
    for ask in (lambda: opened.texts("findings"), lambda: opened.index(["summary.findings"])):
        with refused("no-summaries", field="findings", value=opened.path) as refusal:
            ask()
        assert f"brgsa summarize {labelled} --style findings" in str(refusal.value)
    assert opened.styles() == []


def test_what_is_no_store(labelled: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with refused("no-store", value=str(folder)):
            Store.open(folder)
    copy = tmp_path / "copy"
    shutil.copytree(labelled, copy)
    meta = json.loads((copy / "store.json").read_text())
    unfinished = [{**meta["batches"][0], "complete": False}]
    for content, code in (
        (json.dumps({**meta, "batches": unfinished}), "store-unfinished"),
        (json.dumps({**meta, "format": 99}), "store-format"),
        ("{", "store-unreadable"),
        ("3", "store-unreadable"),
    ):
        (copy / "store.json").write_text(content)
        with refused(code):
            Store.open(copy)
    (copy / "store.json").write_text(json.dumps(meta))
    for spoil in ((copy / "index.parquet").write_bytes, lambda _: (copy / "index.parquet").unlink()):
        spoil(b"PAR1")
        with refused("index-damaged", field="index.parquet"):
            Store.open(copy).index()


def test_a_damaged_shard_is_named_by_its_reader(labelled: Path, tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(labelled, tmp_path / "copy"))
    shard = Path(store.shards()[1])
    shard.write_bytes(shard.read_bytes()[:300])
    with refused("shard-damaged", field=str(shard)) as refusal:
        store.encoded(1, 0)
    assert f"brgsa store verify {store.path}" in str(refusal.value)
