"""What the summaries' benchmark measures on real reports, and what it refuses."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from brgsa.labels import CT_RATE


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "summaries", Path(__file__).parents[2] / "benchmarks" / "summaries.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.shared
def test_real_reports_reach_the_agreed_f1(
    shared_data: Path, benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = shared_data / "reports" / "ct_rate_reports_18labels.csv"
    assert benchmark.main(["--reports", str(reports), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "summaries"
    assert result["figures"]["macro_f1"] >= 0.90
    assert result["figures"]["macro_f1_held_out"] >= 0.90
    assert result["ratios"]["macro_f1_over_terms_only"] > 1.1


def test_a_missing_column_or_file_is_named(
    tmp_path: Path, benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "reports.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["report_text", *CT_RATE[:-1]], ["Normal.", *"0" * 17]])
    for path, word in ((table, CT_RATE[-1]), (tmp_path / "none.csv", "none.csv")):
        assert benchmark.main(["--reports", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert word in line
