"""A store under s3://, on a real server: the same verbs, the same bytes, and what an outage does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archives import SMALL, contents, read_items, save_manifest, write_store
from objectstore import Door, s3_server
from refusals import refused

from brgsa_platform.loading import batches
from brgsa_platform.runtime import locks, session, storage
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.store import Store
from brgsa_platform.store.verify import verify
from brgsa_platform.store.writer import ShardWriter
from brgsa_platform.summaries.summarize import summarize

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def door(ray_of_its_own: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """An S3 server for this process and for Ray's workers, which start after it."""
    tracking = tmp_path_factory.mktemp("tracking")
    with s3_server() as door, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{door.port}")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tracking / 'mlflow.db'}")
        with session.ray_session(num_cpus=2):
            yield door


def remote_contents(url: str) -> dict[str, bytes]:
    folder = Folder(url)
    return {name: folder.read(name) for name in folder.sizes()}


def test_a_store_in_a_bucket_is_the_store_on_a_disk(door: Door, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 6)
    (tmp_path / "in" / "s002.nii.gz").write_bytes(b"")
    url = "s3://archive/stores/chest"
    prepare(manifest, "manifest", url, PrepareOptions(SMALL))
    write_store(manifest, tmp_path / "store")
    for place in (url, tmp_path / "store"):
        summarize(place, ["positives"])
    assert remote_contents(url) == contents(tmp_path / "store")
    assert not verify(url).damage
    assert Store.open(url).styles() == ["positives"]

    rows = batches.split_index(Store.open(url), "train")
    here = batches.split_index(Store.open(tmp_path / "store"), "train")
    for there, local in zip(
        batches.evaluation_batches(batches.BatchSource(rows, (16, 16, 16)), batch_size=2),
        batches.evaluation_batches(batches.BatchSource(here, (16, 16, 16)), batch_size=2),
        strict=True,
    ):
        np.testing.assert_array_equal(there.ct, local.ct)


def test_scans_are_read_from_a_bucket(door: Door, tmp_path: Path) -> None:
    save_manifest(tmp_path / "in", 3)
    bucket = Folder("s3://archive/scans")
    for scan in (tmp_path / "in").glob("*.nii.gz"):
        with bucket.written_aside(scan.name) as aside:
            aside.write_bytes(scan.read_bytes())
    table = tmp_path / "far.csv"
    rows = [f"s3://archive/scans/s{i:03d}.nii.gz,There is pleural effusion.\n" for i in (0, 1, 2, 9)]
    table.write_text("volume,report\n" + "".join(rows))
    result = prepare(table, "manifest", tmp_path / "store", PrepareOptions(SMALL, roots=["s3://archive"]))
    assert (sum(result.volumes.values()), result.quarantined) == (3, 1)


def test_a_server_that_is_away_for_some_seconds_costs_nothing_else(door: Door, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 40)
    url = "s3://archive/stores/outage"
    seen: dict[str, float] = {}

    def outage() -> None:
        folder = Folder(url)
        while not folder.sizes("volumes"):
            time.sleep(0.05)
        door.lock()
        seen["away"] = time.monotonic()
        time.sleep(6)  # longer than the AWS library itself would try
        door.unlock()
        seen["back"] = time.monotonic()

    thread = threading.Thread(target=outage, daemon=True)
    thread.start()
    prepare(manifest, "manifest", url, PrepareOptions(SMALL))
    assert time.monotonic() > seen["back"], "it was over before the server went away"
    thread.join()
    assert remote_contents(url) == contents(write_store(manifest, tmp_path / "store"))


def test_a_server_that_stays_away_is_named(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = save_manifest(tmp_path / "in", 1)
    monkeypatch.setattr(storage, "PATIENCE", 1.0)
    door.lock()
    try:
        with refused("store-unreadable", field="store.json", value="s3://archive/stores/away"):
            prepare(manifest, "manifest", "s3://archive/stores/away", PrepareOptions(SMALL))
    finally:
        door.unlock()


def test_scans_that_are_away_are_not_refused(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "far.csv"
    table.write_text("volume,report\ns3://archive/scans/s000.nii.gz,There is pleural effusion.\n")
    items = read_items(table, "manifest", 0.1, roots=["s3://archive"])
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    door.lock()
    try:
        error = ShardWriter(Folder(tmp_path / "store"), SMALL)("part-00000.parquet", items)
    finally:
        door.unlock()
    assert "NETWORK_CONNECTION" in error
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_a_bucket_that_is_not_there_is_named(door: Door, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 1)
    with refused("folder-not-writable", field="s3://nowhere/store"):
        prepare(manifest, "manifest", "s3://nowhere/store", PrepareOptions(SMALL))


def test_a_second_run_is_refused_in_a_bucket_too(door: Door, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "in", 1)
    with locks.held("s3://archive/stores/held", "prepare"), refused("folder-in-use", field="s3://archive/stores/held"):
        prepare(manifest, "manifest", "s3://archive/stores/held", PrepareOptions(SMALL))
