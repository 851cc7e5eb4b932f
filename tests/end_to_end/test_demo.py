"""`make demo`, its sizes shrunk: the same steps, table, picture and JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from brgsa_platform import demo
from brgsa_platform.config import RunConfig, load_config
from brgsa_platform.tracking import connection

pytestmark = pytest.mark.ray


def smoke(preset: str, overrides: Sequence[str]) -> RunConfig:
    """The preset's smoke twin, trained in the demo's own process; what Ray Train's workers do has tests of its own."""
    return load_config(f"{preset}-smoke", overrides=[*overrides, "train.workers=0", "train.threads=1"])


def test_the_demo_ends_in_a_table(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_tree(out: Path, scans: int, seed: int, *, on_scan: Callable[[], None]) -> None:
        shutil.copytree(place / "phantom", out)

    monkeypatch.setattr(demo, "write_tree", write_tree)
    monkeypatch.setattr(demo, "load_config", smoke)
    monkeypatch.setattr(demo, "FULL", demo.Size(scans=0, epochs=1, trials=1, trial_epochs=1, resamples=50))
    demo.demo(tmp_path / "demo")
    report = json.loads((tmp_path / "demo" / "demo.json").read_text())
    for name in ("baseline", "clip_summaries", "brgsa"):
        for figure in ("macro_auroc", "rare_auroc"):
            low, high = report[name][f"{figure}_interval"]
            assert 0 <= low <= report[name][figure] <= high <= 1
        assert 0 <= report[name]["modality_gap"] <= 2
        assert connection.client().get_run(report[name]["mlflow_run"]).info.status == "FINISHED"
    assert report["seconds"] > 0
    arms = [report[name]["macro_auroc"] for name in ("baseline", "clip_summaries", "brgsa")]
    for name, gained in (
        ("gain_summaries", arms[1] - arms[0]),
        ("gain_bank", arms[2] - arms[1]),
        ("gain", arms[2] - arms[0]),
    ):
        low, high = report[name]["macro_auroc_interval"]
        assert low <= report[name]["macro_auroc"] <= high
        assert report[name]["macro_auroc"] == pytest.approx(gained, abs=1e-9)
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 10_000
    printed = capsys.readouterr()
    assert "Cardiomegaly" in printed.out
    assert "ui" in printed.out.splitlines()[-1]
    for noise in ("Warning", "WARNING", "(pid="):
        assert noise not in printed.out + printed.err
