"""`brgsa store info|show|verify` as a user sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from archives import SMALL, chest, save_scan, save_table

from brgsa.errors import UserError
from brgsa_platform.store.info import info, show
from brgsa_platform.store.prepare import PrepareOptions, prepare
from brgsa_platform.store.writer import hu_histogram

pytestmark = pytest.mark.ray

REPORT = "Mrs Secretname has a pleural effusion."


@pytest.fixture(scope="module")
def labelled(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four volumes of three scans of two patients, one more refused."""
    folder = tmp_path_factory.mktemp("labelled")
    rows: list[list[object]] = []
    for i, (scan, patient, split, effusion, nodule) in enumerate(
        (("x", "p", "train", 1, 0), ("x", "p", "train", 1, 0), ("y", "p", "train", 0, ""), ("z", "q", "test", 1, ""))
    ):
        save_scan(folder / f"s{i}.nii.gz", chest(i))
        rows.append([f"s{i}.nii.gz", REPORT, scan, patient, split, effusion, nodule])
    rows.append(["gone.nii.gz", REPORT, "g", "g", "train", 0, 0])
    header = ("volume", "report", "scan_id", "patient_id", "split", "Pleural effusion", "Lung nodule")
    prepare(save_table(folder / "scans.csv", header, rows), "manifest", folder / "store", PrepareOptions(SMALL))
    return folder / "store"


def test_counts_are_those_of_the_archive(labelled: Path) -> None:
    found = info(str(labelled))
    assert found.splits == {
        "train": {"patients": 1, "scans": 2, "volumes": 3},
        "test": {"patients": 1, "scans": 1, "volumes": 1},
    }
    assert found.prevalence == {
        "Lung nodule": {"train": (0, 2), "test": (0, 0)},
        "Pleural effusion": {"train": (2, 3), "test": (1, 1)},
    }
    assert found.spacing["x"]["50"] == found.spacing["y"]["50"] == 4.0
    assert found.spacing["z"]["50"] == 8.0
    assert found.size["x"]["50"] == 4.0 * 23
    assert found.quarantine == {"read": 1}
    assert sum(found.histogram) == pytest.approx(1.0)
    assert -500 <= found.hu["50"] <= 100
    assert found.shards == 5
    assert found.bytes == sum(file.stat().st_size for file in (labelled / "volumes").iterdir())


def test_the_histogram_counts_every_second_voxel() -> None:
    hu = np.full((4, 4, 4), -1000, dtype=np.int16)
    hu[0, 0, 0], hu[2, 2, 2], hu[1, 1, 1] = 40, 1000, 500
    counts = hu_histogram(hu)
    assert counts.sum() == 8
    assert (counts[0], counts[(40 + 1024) // 64], counts[(1000 + 1024) // 64]) == (6, 1, 1)


def test_a_volume_is_shown_and_its_report_only_when_asked(labelled: Path, tmp_path: Path) -> None:
    said = show(str(labelled), "s3", tmp_path / "s3.png")
    assert (tmp_path / "s3.png").read_bytes()[:4] == b"\x89PNG"
    assert "scan z, patient q, split test" in said
    assert "24×22×16 voxels of 4×4×8 mm from s3.nii.gz" in said
    assert "Pleural effusion" in said
    assert "Secretname" not in said
    assert "Secretname" in show(str(labelled), "s3", tmp_path / "s3.png", with_report=True)
    with pytest.raises(UserError, match="has no volume 's9'"):
        show(str(labelled), "s9", tmp_path / "s9.png")
    with pytest.raises(UserError, match="cannot be written"):
        show(str(labelled), "s3", tmp_path / "absent" / "s3.png")


def test_the_commands(labelled: Path, tmp_path: Path) -> None:
    def brgsa(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "brgsa_platform.cli", "store", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    plain = brgsa("info", str(labelled), "--picture", "fingerprint.png")
    assert plain.returncode == 0, plain.stderr
    for words in ("24×24×16 voxels of 6×6×9 mm", "Pleural effusion", "2 (66.7%)", "quarantine: read 1"):
        assert words in plain.stdout
    assert (tmp_path / "fingerprint.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(brgsa("info", str(labelled), "--json").stdout)["splits"]["test"]["volumes"] == 1
    assert brgsa("show", str(labelled), "s0").returncode == 0
    assert (tmp_path / "s0.png").is_file()
    lost = brgsa("info", "absent")
    assert lost.returncode == 2
    assert "is not a store" in lost.stderr
