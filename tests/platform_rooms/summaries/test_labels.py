"""Labels that are read from reports: what they hold, what they are used for, and what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import save_manifest, save_table, write_store
from refusals import refused

from brgsa_platform.config import load_config
from brgsa_platform.loading.batches import split_index
from brgsa_platform.loading.supervision import supervised_labels
from brgsa_platform.store.info import info
from brgsa_platform.store.store import READ_LABELS, Store
from brgsa_platform.summaries.fidelity import store_fidelity
from brgsa_platform.summaries.labels import labels_from_reports
from brgsa_platform.summaries.summarize import summarize
from brgsa_platform.tracking import connection

pytestmark = pytest.mark.ray

REPORTS = [
    "There is a lung nodule. No pleural effusion.",
    "Pleural effusion on the right. Emphysema?",
    "Kein Pneumothorax. Rundherd rechts.",
    "There is a lung nodule. No pleural effusion.",
]


@pytest.fixture
def unlabelled(ray_session: None, tmp_path: Path) -> Path:
    manifest = save_manifest(tmp_path / "in", len(REPORTS))
    rows: list[list[object]] = [[f"s{i:03d}.nii.gz", text, "train"] for i, text in enumerate(REPORTS)]
    save_table(manifest, ("volume", "report", "split"), rows)
    return write_store(manifest, tmp_path / "store")


def test_an_archive_without_labels_gets_those_of_its_reports(
    unlabelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = labels_from_reports(unlabelled)
    store = Store.open(unlabelled)
    assert len(store.labels) == 33
    assert store.label_source == read.source
    assert read.source.startswith("reports by the rules")
    assert "macro-F1" in read.source
    assert read.counts["Pleural effusion"] == {"present": 1, "absent": 2, "unread": 1}
    assert read.counts["Emphysema"] == {"uncertain": 1, "not mentioned": 2, "unread": 1}
    table = store.read_labels
    assert table is not None
    assert table["Lung nodule"].to_pylist() == ["present", "not mentioned", "unread", "present"]
    index = split_index(store, "train")
    by_name = dict(zip(store.labels, index.labels.T, strict=True))
    np.testing.assert_array_equal(by_name["Pleural effusion"], [0, 1, np.nan, 0])
    np.testing.assert_array_equal(by_name["Emphysema"], [0, np.nan, np.nan, 0])
    assert info(str(unlabelled)).prevalence["Lung nodule"]["train"] == (2, 3)
    summarize(unlabelled, ["positives"])
    config = load_config("demo-smoke", overrides=["loss.supervised=1", "loss.labels=store"])
    supervised = supervised_labels(Store.open(unlabelled), config)
    assert supervised is not None
    assert supervised.names == ("Lung nodule", "Pleural effusion")
    assert supervised.source == f"store: {read.source}"
    info(str(unlabelled)).print()
    assert f"labels from {read.source}" in capsys.readouterr().out


def test_an_archive_with_labels_keeps_them_and_measures_the_reading(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    before = Store.open(copy).index().to_pylist()
    read = labels_from_reports(copy, names="all")
    assert read.f1 == {"Pleural effusion": 1.0}
    assert "macro-F1 1.000 on this archive's labels" in read.source
    after = Store.open(copy)
    assert (after.labels, after.label_source) == (("Pleural effusion",), "archive")
    assert after.index().to_pylist() == before
    assert store_fidelity(copy, ["report"]).truth == "labels"

    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    run = api.search_runs([experiment.experiment_id], "tags.`brgsa.verb` = 'labels'", max_results=1)[0]
    path = api.download_artifacts(run.info.run_id, "labels.json")
    logged = json.loads(Path(path).read_text())
    assert {row[-1] for row in logged["data"]} == {read.source}
    assert "nodule of 7" not in Path(path).read_text()


def test_a_styles_summaries_can_be_read_instead(unlabelled: Path) -> None:
    summarize(unlabelled, ["positives"])
    read = labels_from_reports(unlabelled, "positives", "ct-rate")
    assert read.counts["Pleural effusion"] == {"present": 1, "not mentioned": 2, "unread": 1}
    assert "F1 not measured" in read.source


def test_refusals(unlabelled: Path) -> None:
    with refused("unknown-names", field="--names", value="most"):
        labels_from_reports(unlabelled, names="most")
    with refused("no-summaries", field="short"):
        labels_from_reports(unlabelled, "short")
    (unlabelled / "labels").write_text("a file where the folder belongs")
    with refused("labels-unwritable", field=READ_LABELS):
        labels_from_reports(unlabelled)


def test_fidelity_of_a_store(unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summarize(unlabelled, ["positives", "short"])
    part = unlabelled / "summaries" / "short" / "part-00000.parquet"
    table = pq.read_table(part)
    wrong = pa.array(["Pleural effusion; hiatal hernia.", *table["summary"].to_pylist()[1:]])
    pq.write_table(table.set_column(1, "summary", wrong), part)
    found = store_fidelity(unlabelled, worst_file=tmp_path / "worst.csv")
    assert found.truth == "rules"
    assert (found.styles["positives"].lost, found.styles["positives"].invented) == (0, 0)
    short = found.styles["short"]
    assert (short.reports, short.judged, short.lost, short.invented, short.flipped) == (3, 2, 1, 1, 1)
    found.print()
    shown = capsys.readouterr().out
    assert "short" in shown
    assert (tmp_path / "worst.csv").read_text().splitlines() == [
        "style,volume_id,lost,invented,flipped",
        "short,s000,Lung nodule,Hiatal hernia,Pleural effusion",
    ]
    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    run = api.search_runs([experiment.experiment_id], "tags.`brgsa.verb` = 'summaries'", max_results=1)[0]
    assert [file.path for file in api.list_artifacts(run.info.run_id)] == ["fidelity.json"]
    assert "s000" not in Path(api.download_artifacts(run.info.run_id, "fidelity.json")).read_text()
    assert run.data.metrics["short/flipped"] == 1
    with refused("worst-unwritable", field="--worst"):
        store_fidelity(unlabelled, ["short"], worst_file=tmp_path / "no" / "worst.csv")
