"""A small store for the tests that only read one."""

from __future__ import annotations

from pathlib import Path

import pytest
from archives import chest, save_scan, save_table, write_store

REPORT = "Mrs Secretname has a pleural effusion."


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four volumes s0 to s3 of three scans of two patients, in shards of one; a fifth one refused. To be read, not changed."""
    folder = tmp_path_factory.mktemp("labelled")
    rows: list[list[object]] = []
    for i, (scan, patient, split, effusion, nodule) in enumerate(
        (("x", "p", "train", 1, 0), ("x", "p", "train", 1, 0), ("y", "p", "train", 0, ""), ("z", "q", "test", 1, ""))
    ):
        save_scan(folder / f"s{i}.nii.gz", chest(i))
        rows.append([f"s{i}.nii.gz", REPORT, scan, patient, split, effusion, nodule])
    rows.append(["gone.nii.gz", REPORT, "g", "g", "train", 0, 0])
    header = ("volume", "report", "scan_id", "patient_id", "split", "Pleural effusion", "Lung nodule")
    return write_store(save_table(folder / "scans.csv", header, rows), folder / "store")
