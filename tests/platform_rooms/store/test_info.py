"""`brgsa store info` and `brgsa store show` as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import brgsa
from refusals import refused

from brgsa_platform.store.info import info, show


def test_counts_are_those_of_the_archive(labelled: Path) -> None:
    counts = info(str(labelled))
    assert counts.splits == {
        "train": {"patients": 1, "scans": 2, "volumes": 3},
        "test": {"patients": 1, "scans": 1, "volumes": 1},
    }
    assert counts.prevalence == {
        "Lung nodule": {"train": (0, 2), "test": (0, 0)},
        "Pleural effusion": {"train": (2, 3), "test": (1, 1)},
    }
    assert counts.spacing["x"]["50"] == counts.spacing["y"]["50"] == 8.0
    assert counts.spacing["z"]["50"] == 11.0
    assert counts.size["x"]["50"] == 8.0 * 23
    assert counts.quarantine == {"read": 1}
    assert sum(counts.histogram) == pytest.approx(1.0)
    assert -500 <= counts.hu["50"] <= 100
    assert counts.shards == 5
    assert counts.bytes == sum(file.stat().st_size for file in (labelled / "volumes").iterdir())


def test_a_volume_is_shown_and_its_report_only_when_asked(labelled: Path, tmp_path: Path) -> None:
    lines = show(str(labelled), "s3", tmp_path / "s3.png")
    assert (tmp_path / "s3.png").read_bytes()[:4] == b"\x89PNG"
    assert "scan z, patient q, split test" in lines
    assert "24×22×16 voxels of 8×8×11 mm from s3.nii.gz" in lines
    assert "Pleural effusion" in lines
    assert "Secretname" not in lines
    assert "Secretname" in show(str(labelled), "s3", tmp_path / "s3.png", with_report=True)
    with refused("unknown-volume", value="s9"):
        show(str(labelled), "s9", tmp_path / "s9.png")
    with refused("picture-unwritable", value=str(tmp_path / "absent" / "s3.png")):
        show(str(labelled), "s3", tmp_path / "absent" / "s3.png")
    with refused("picture-unwritable", value=str(tmp_path / "absent" / "fingerprint.png")):
        info(str(labelled)).draw(tmp_path / "absent" / "fingerprint.png")


def test_the_commands(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = brgsa("store", "info", labelled, "--picture", "fingerprint.png")
    assert plain.status == 0, plain.err
    for words in ("24×24×16 voxels of 6×6×9 mm", "Pleural effusion", "2 (66.7%)", "quarantine: read 1"):
        assert words in plain.out
    assert (tmp_path / "fingerprint.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(brgsa("store", "info", labelled, "--json").out)["splits"]["test"]["volumes"] == 1
    assert brgsa("store", "show", labelled, "s0").status == 0
    assert (tmp_path / "s0.png").is_file()
    absent = brgsa("store", "info", "absent")
    assert absent.status == 2
    assert str(tmp_path / "absent") in absent.err
