"""A report from what evaluations saved: what stands in it, what may not, and what is refused."""

from __future__ import annotations

import html
import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from commandline import brgsa
from evaluations import NAMES, evaluated
from refusals import refused

from brgsa import metrics
from brgsa.labels import CT_RATE
from brgsa_platform.reports import charts
from brgsa_platform.reports.differences import differ
from brgsa_platform.reports.heat_maps import choose
from brgsa_platform.reports.published import all_published, published_beside
from brgsa_platform.reports.report import report
from brgsa_platform.reports.runs import find, read_run, read_runs
from brgsa_platform.reports.tables import figures_table, gains_table


def plots_of(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="([a-z0-9-]+)-data">(.*?)</script>', page)
    return {key: json.loads(text) for key, text in found}


def test_the_figures_are_those_that_the_evaluation_saved(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    told = json.loads((folder / "evaluation-first.json").read_text())
    run = read_run(find(folder))
    for row in run.abnormalities:
        assert row.figures["auroc"].value == told["abnormalities"][row.name]["auroc"]["value"]
        assert row.figures["f1"].low == told["abnormalities"][row.name]["f1"]["low"]
    assert run.macro.value == told["macro"]["auroc"]["value"]
    made = report([folder], tmp_path / "out" / "report.html")
    page = made.path.read_text()
    assert f"Mean AUROC {run.macro.value:.3f} ({run.macro.low:.3f} to {run.macro.high:.3f})" in page
    table = figures_table(run, "figures-table")
    by_name = {cells[0].text: cells for cells in table.rows}
    assert by_name["Cardiomegaly"][4].by == told["abnormalities"]["Cardiomegaly"]["auroc"]["value"]
    bar = by_name["Cardiomegaly"][4].bar
    assert bar is not None
    assert bar.start <= bar.point <= bar.start + bar.width
    assert any("Heat maps are left out" in line for line in made.said)


def test_curves_are_of_the_saved_scores_and_plotly_takes_every_plot(tmp_path: Path) -> None:
    run = read_run(find(evaluated(tmp_path)))
    assert run.units is not None
    chart = charts.curves([run])
    assert chart is not None
    roc, precision = chart.data[0], chart.data[1]
    labels, scores = run.units.labels[:, 0], run.units.scores[:, 0]
    assert np.trapezoid(roc["y"], roc["x"]) == pytest.approx(metrics.auroc(labels, scores), abs=1e-4)
    steps = np.diff([0.0, *precision["x"]])
    assert steps @ np.array(precision["y"]) == pytest.approx(metrics.auprc(labels, scores), abs=1e-4)
    report([tmp_path / "first"], tmp_path / "report.html")
    plots = plots_of((tmp_path / "report.html").read_text())
    assert plots.keys() == {"curves", "reliability"}
    for plot in plots.values():
        go.Figure(plot)  # refuses what Plotly does not know


def test_a_page_asks_no_host_and_names_neither_volumes_nor_texts(tmp_path: Path) -> None:
    report([evaluated(tmp_path)], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in page
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!data:|#)", own)
    assert "valid_" not in own.replace(html.escape(str(tmp_path)), "")


def test_markup_in_a_name_stays_a_name(tmp_path: Path) -> None:
    hostile = '</script><img src=x onerror="document.title=1"><b>'
    folder = evaluated(tmp_path, names=(hostile, "Cardiomegaly"))
    report([folder], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert hostile not in page
    assert html.escape(hostile).replace("&quot;", "&#34;") in page.replace("&quot;", "&#34;")
    names = [trace["name"] for trace in plots_of(page)["curves"]["data"]]
    assert any(html.escape(hostile) in name for name in names)
    assert not any("<" in name for name in names)


def test_two_runs_of_the_same_volumes_are_paired(tmp_path: Path) -> None:
    files = evaluated(tmp_path / "a"), evaluated(tmp_path / "b", noise=3.0)
    first, other = read_runs(files)
    found = differ(first, other)
    assert found.paired
    assert found.macro is not None
    assert found.macro.first == pytest.approx(first.macro.value)
    assert found.macro.second == pytest.approx(other.macro.value)
    assert found.macro.p < 0.05
    report(files, tmp_path / "two.html")
    page = (tmp_path / "two.html").read_text()
    assert f"Better than {html.escape(other.name)} beyond chance" in page
    assert first.name != other.name


def test_runs_of_other_volumes_are_compared_unpaired_with_wider_intervals(tmp_path: Path) -> None:
    first = read_run(find(evaluated(tmp_path / "a", volumes=range(200))))
    same = read_run(find(evaluated(tmp_path / "b", volumes=range(200), noise=1.2)))
    others = read_run(find(evaluated(tmp_path / "c", volumes=range(200, 400), noise=1.2)))
    paired, apart = differ(first, same), differ(first, others)
    assert (paired.paired, apart.paired) == (True, False)
    assert paired.macro is not None
    assert apart.macro is not None
    assert apart.macro.second == pytest.approx(others.macro.value)
    assert apart.macro.gain.sd > 1.5 * paired.macro.gain.sd
    assert apart.comparison is not None
    assert [column.title for column in gains_table("a", apart, "x").columns][-1] == "p, Holm"  # DeLong's test is paired


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    first = read_run(find(evaluated(tmp_path / "a")))
    other = read_run(find(evaluated(tmp_path / "b", protocol="scan")))
    assert differ(first, other).comparison is None
    bare = replace(first, scored=None)
    assert differ(bare, first).comparison is None
    assert first.scored is not None
    turned = replace(first, scored=replace(first.scored, labels=1 - first.scored.labels))
    assert differ(first, turned).comparison is None


def test_an_evaluation_without_its_scores_still_has_a_report(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    for path in folder.glob("*.parquet"):
        path.unlink()
    made = report([folder], tmp_path / "report.html")
    assert any("Curves are left out" in line for line in made.said)
    page = made.path.read_text()
    assert "Pleural effusion" in page
    assert plots_of(page).keys() == {"reliability"}


def test_published_figures_stand_beside_the_same_labels_and_protocol_alone(tmp_path: Path) -> None:
    run = read_run(find(evaluated(tmp_path / "all", names=CT_RATE, volumes=range(100))))
    assert [row.model for row in published_beside(run)] == ["BrgSA, published checkpoint"]
    fewer = replace(run, abnormalities=run.abnormalities[1:])
    assert published_beside(fewer) == []
    assert published_beside(replace(run, protocol=replace(run.protocol, name="scan"))) == []
    assert published_beside(replace(run, protocol=replace(run.protocol, name="ours"))) == []
    assert published_beside(replace(run, protocol=replace(run.protocol, unit="patient"))) == []
    assert all(row.source and 0.5 < row.auroc < 1 for row in all_published())
    report([tmp_path / "all" / "first"], tmp_path / "report.html")
    assert "published score files" in (tmp_path / "report.html").read_text()


def test_hits_outscore_those_without_it_and_misses_do_not(tmp_path: Path) -> None:
    run = read_run(find(evaluated(tmp_path, noise=1.5)))
    assert run.scored is not None
    cases = choose(run.scored, 4)
    assert [case.is_hit for case in cases] == [True, True, False, False]
    assert len({case.row for case in cases}) == 4
    for case in cases:
        i = NAMES.index(case.name)
        labels, scores = run.scored.labels[:, i], run.scored.scores[:, i]
        assert labels[case.row] == 1
        assert case.above == pytest.approx(float((scores[labels == 0] < scores[case.row]).mean()))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "unreadable-evaluation"),
        ("{}", "not-an-evaluation"),
        ('{"abnormalities": {"A": {}}}', "not-an-evaluation"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, content: str, code: str) -> None:
    folder = evaluated(tmp_path)
    file = folder / "evaluation-first.json"
    file.write_text(content)
    with refused(code, field=str(file)):
        report([folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_damaged_scores_are_refused(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    (folder / "scores-first.parquet").write_bytes(b"PAR1")
    with refused("unreadable-evaluation", field=str(folder / "scores-first.parquet")):
        report([folder], tmp_path / "report.html")
    other = evaluated(tmp_path / "other", volumes=range(40))
    shutil.copy(other / "scores-first.parquet", folder)
    with refused("scores-differ", field=str(folder / "labels-first.parquet")):
        report([folder], tmp_path / "report.html")


def test_a_run_is_found_by_its_folder_or_file(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    file = folder / "evaluation-first.json"
    assert find(file) == find(folder) == file
    with refused("no-evaluation", field="RUN", value=str(tmp_path)):
        find(tmp_path)
    second = shutil.copy(file, folder / "evaluation-second.json")
    with refused("several-evaluations", field="RUN", value=str(folder)):
        find(folder)
    shutil.copy(file, folder / "evaluation-test.json")
    assert find(folder).name == "evaluation-test.json"
    assert find(Path(second)).name == "evaluation-second.json"
    with refused("same-run", field="RUN", value=str(folder)):
        report([folder, folder], tmp_path / "x.html")


def test_a_file_that_is_no_report_is_not_replaced(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    notes = tmp_path / "notes.html"
    notes.write_text("<p>mine")
    with refused("not-a-report", field="--out", value=str(notes)):
        report([folder], notes)
    assert notes.read_text() == "<p>mine"
    with refused("out-not-html", field="--out"):
        report([folder], tmp_path / "report.csv")
    (tmp_path / "folder.html").mkdir()
    with refused("not-a-report", field="--out"):
        report([folder], tmp_path / "folder.html")
    with refused("file-not-writable", field="--out"):
        report([folder], notes / "report.html")
    with refused("below-zero", field="--heatmaps", value=-1):
        report([folder], tmp_path / "report.html", maps=-1)


def test_of_two_reports_into_one_file_one_is_there_whole(tmp_path: Path) -> None:
    folders = [evaluated(tmp_path / name, noise=noise) for name, noise in (("a", 1.0), ("b", 2.0))]
    alone = [report([folder], tmp_path / f"{n}.html").path.read_text() for n, folder in enumerate(folders)]
    out = tmp_path / "both" / "report.html"
    threads = [threading.Thread(target=report, args=([folder], out)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out.read_text() in alone
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    report([folders[0]], out)
    assert out.read_text() == alone[0]


def test_the_command_line_writes_it(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    done = brgsa("report", str(folder), "--out", str(tmp_path / "report.html"))
    assert done.status == 0, done.err
    assert "Written" in done.out
    assert (tmp_path / "report.html").is_file()
