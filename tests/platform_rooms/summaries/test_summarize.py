"""Reports to summaries beside the shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from archives import SMALL, contents, save_manifest, save_rad_chestct, save_table, write_store
from refusals import refused

from brgsa.summaries import NOTHING_FOUND, summarize_many
from brgsa_platform.loading.batches import split_index
from brgsa_platform.store.prepare import PrepareOptions, PrepareResult, prepare
from brgsa_platform.store.store import UNREAD, Store, summary_file
from brgsa_platform.summaries.summarize import summarize
from brgsa_platform.tracking import connection

pytestmark = pytest.mark.ray


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "store"))


def test_summaries_join_the_store_as_columns(copy: Path) -> None:
    before = contents(copy)
    result = summarize(copy, ["positives", "findings", "positives"])
    store = Store.open(copy)
    assert store.styles() == ["findings", "positives"]
    reports = store.texts("report")
    for style in ("positives", "findings"):
        expected = dict(zip(reports, summarize_many(list(reports.values()), style), strict=True))
        assert store.texts(style) == expected
        rows = store.index(["volume_id", f"summary.{style}"]).to_pylist()
        assert {row["volume_id"]: row[f"summary.{style}"] for row in rows} == expected
    assert store.texts("positives")["a1"] == "There is lung nodule."
    assert store.texts("positives")["c1"] == NOTHING_FOUND
    figures = result.styles["positives"]
    assert (figures["reports"], figures["nothing_found"]) == (4, 1)
    assert figures["words_after"] < figures["words_before"]
    assert "positives" in result.summary()
    after = contents(copy)
    assert {name: after[name] for name in before} == before, "nothing that was there is written again"


def test_a_style_is_computed_once_for_a_summariser_and_rows(copy: Path) -> None:
    summarize(copy, ["positives"])
    file = copy / summary_file("positives")
    first, when = file.read_bytes(), file.stat().st_mtime_ns
    summarize(copy, ["positives"])
    assert file.stat().st_mtime_ns == when
    for about in ({b"brgsa": b'{"summariser": "an older one"}'}, None):
        pq.write_table(pq.read_table(file).replace_schema_metadata(about), file)
        summarize(copy, ["positives"])
        assert file.read_bytes() == first


def test_report_needs_no_table(copy: Path) -> None:
    result = summarize(copy, ["report"])
    assert Store.open(copy).styles() == []
    assert result.styles["report"]["words_before"] == result.styles["report"]["words_after"]


def test_mlflow_gets_figures_and_no_text(copy: Path) -> None:
    summarize(copy, ["positives"])
    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    run = api.search_runs([experiment.experiment_id], "tags.`brgsa.verb` = 'summarize'", max_results=1)[0]
    assert run.info.status == "FINISHED"
    assert run.data.params["style"] == "positives"
    assert run.data.tags["brgsa.data"] == Store.open(copy).fingerprint
    assert {"reports", "words_before", "words_after", "nothing_found"} <= set(run.data.metrics)
    logged = json.dumps([run.data.params, run.data.tags, run.data.metrics])
    assert "Secretname" not in logged
    assert "secretpatient" not in logged


def test_refusals(copy: Path, tmp_path: Path) -> None:
    for styles, name in ((["positive"], "positive"), ([], "")):
        with refused("unknown-style", field="--style", value=name):
            summarize(copy, styles)
    with refused("no-store", value=str(tmp_path)):
        summarize(tmp_path, ["positives"])
    (copy / "summaries").write_text("a file where the folder belongs")
    with refused("summaries-unwritable", field=summary_file("positives")):
        summarize(copy, ["positives"])


def test_volumes_without_a_report_have_an_empty_summary(ray_session: None, tmp_path: Path) -> None:
    archive, manifest = save_rad_chestct(tmp_path / "rad", 1), save_manifest(tmp_path / "in", 1)
    prepare(archive, "rad-chestct", tmp_path / "store", PrepareOptions(SMALL))
    summarize(tmp_path / "store", ["positives"])
    assert Store.open(tmp_path / "store").texts("positives") == {"trn00000": ""}
    prepare(manifest, "manifest", tmp_path / "store", PrepareOptions(SMALL))
    summarize(tmp_path / "store", ["positives"])
    assert Store.open(tmp_path / "store").texts("positives") == {
        "trn00000": "",
        "s000": "There is pleural effusion.",
    }


def test_reports_that_are_not_understood_are_flagged_counted_and_left_out(ray_session: None, tmp_path: Path) -> None:
    reports = [
        "There is a lung nodule.",
        "Kein Pneumothorax. Rundherd rechts.",
        "See dictated report.",
        "Lungs are clear.",
    ]
    manifest = save_manifest(tmp_path / "in", len(reports))
    save_table(
        manifest, ("volume", "report", "split"), [[f"s{i:03d}.nii.gz", text, "train"] for i, text in enumerate(reports)]
    )
    store = Store.open(write_store(manifest, tmp_path / "store"))
    flags = dict(
        zip(*(store.index(["volume_id", "flags"])[name].to_pylist() for name in ("volume_id", "flags")), strict=True)
    )
    assert [UNREAD in flags[f"s{i:03d}"] for i in range(4)] == [False, True, True, False]

    result = summarize(store.path, ["positives"])
    assert Store.open(store.path).texts("positives") == {
        "s000": "There is lung nodule.",
        "s001": "",
        "s002": "",
        "s003": NOTHING_FOUND,
    }
    assert result.styles["positives"]["unread"] == 2
    assert len(result.summary().splitlines()) == 2
    assert split_index(Store.open(store.path), "train", "positives").volume_ids == ["s000", "s003"]
    assert len(split_index(Store.open(store.path), "train", "report")) == 4


def test_the_screen_speaks_of_reports_that_were_not_understood_only_where_there_are_some() -> None:
    said = PrepareResult("store", {"train": 3}, 0, "f", unread=2).summary()
    assert UNREAD in said.splitlines()[1]
    assert len(PrepareResult("store", {"train": 3}, 0, "f").summary().splitlines()) == 1
