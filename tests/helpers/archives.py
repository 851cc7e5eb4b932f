"""Small archives of synthetic chests, and what a store on this disk holds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from brgsa.volumes import Geometry, decode
from brgsa_platform.layouts import Item, read_archive
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.store.index import commit_batch
from brgsa_platform.store.plan import PlannedBatch, new_batch, write_plan
from brgsa_platform.store.prepare import PrepareOptions
from brgsa_platform.store.store import Meta, Store
from brgsa_platform.store.writer import ShardWriter

SMALL = Geometry((6.0, 6.0, 9.0), (24, 24, 16), antialias=True)
REPORT = "There is pleural effusion on the right."


def chest(seed: int = 0, shape: tuple[int, int, int] = (24, 22, 16)) -> npt.NDArray[np.int16]:
    """HU (x, y, z) of air, a body and two lungs, with noise."""
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.8) ** 2 < 1, 40.0, -1000.0)
    hu[((np.abs(x) - 0.4) / 0.3) ** 2 + (y / 0.5) ** 2 < 1] = -850
    return np.rint(hu + np.random.default_rng(seed).normal(0, 12, shape)).clip(-1024).astype(np.int16)


def save_scan(
    path: Path,
    stored: npt.NDArray[Any],
    bare: bool = False,
    spacing: tuple[float, float, float] = (8.0, 8.0, 11.0),
) -> None:
    """A NIfTI in canonical order, or one whose header says nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(
        nibabel.Nifti1Image(stored, np.eye(4) if bare else np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])), path
    )


def save_table(path: Path, header: tuple[str, ...], rows: list[list[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def save_manifest(folder: Path, scans: int) -> Path:
    for i in range(scans):
        save_scan(folder / f"s{i:03d}.nii.gz", chest(i))
    return save_table(folder / "scans.csv", ("volume", "report"), [[f"s{i:03d}.nii.gz", REPORT] for i in range(scans)])


def save_rad_chestct(folder: Path, scans: int) -> Path:
    """An archive in RAD-ChestCT's layout, which has no reports; voxels of 5 mm."""
    folder.mkdir(parents=True)
    for i in range(scans):
        np.savez_compressed(folder / f"trn{i:05d}.npz", ct=chest(i, (44, 40, 30)).transpose(2, 1, 0)[::-1])
    save_table(
        folder / "CT_Scan_Metadata_Complete_35747.csv",
        ("NoteAcc_DEID", "MRN_DEID", "orig_orientation", "final_spacing"),
        [[f"trn{i:05d}", i, "[1, 0, 0, 0, 1, 0]", 5.0] for i in range(scans)],
    )
    return folder


def read_items(source: Path, layout: str, validation_fraction: float, **given: Any) -> list[Item]:
    """The volumes of an archive, sorted by id; see `layouts.read_archive`."""
    return read_archive(source, layout, validation_fraction, **given).items


def write_store(manifest: Path, out: Path, options: PrepareOptions = PrepareOptions(SMALL)) -> Path:
    """The store that `prepare` makes of a manifest, shard by shard in this process, without Ray and MLflow."""
    folder = Folder(out)
    items = read_items(manifest, "manifest", options.validation_fraction)
    batch = new_batch(items, "manifest", options.geometry, first=0)
    write_plan(folder, 0, items)
    writer = ShardWriter(folder, options.geometry, options.strict, options.trust_geometry)
    for shard in batch.shards:
        assert writer(shard, PlannedBatch(batch, items).items_of(shard)) == ""
    commit_batch(folder, Meta(options.settings(), batches=(batch,)))
    return out


def volumes(store: Path) -> dict[str, npt.NDArray[np.int16]]:
    tables = [pq.read_table(shard, columns=["volume_id", "ct"]) for shard in Store.open(store).shards()]
    return {row["volume_id"]: decode(row["ct"]) for table in tables for row in table.to_pylist()}


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def quarantine(store: Path) -> dict[str, tuple[str, str]]:
    """volume_id → (stage, reason)."""
    rows = pq.read_table(store / "quarantine.parquet").to_pylist()
    return {row["volume_id"]: (row["stage"], row["reason"]) for row in rows}
