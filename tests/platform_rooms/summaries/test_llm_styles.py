"""A language model's summaries in a store: their columns, their provenance, and what leaves no trace."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from archives import contents
from llm_server import LlmServer, llm_server, says
from refusals import refused

import tune_spaces
from brgsa.summaries import load_style, summarize_many
from brgsa_platform.config import RunConfig
from brgsa_platform.runtime.locks import held
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.search.driver import _summarize_missing
from brgsa_platform.store.info import info
from brgsa_platform.store.store import Store, summary_file
from brgsa_platform.summaries.options import LlmOptions
from brgsa_platform.summaries.summarize import dry_run, summarize
from brgsa_platform.tracking import connection

pytestmark = pytest.mark.ray

MINE = """
version: 2
form: statements
say: [present, absent]
names: [fatty liver, Lung nodule, Pleural effusion]
"""


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "store"))


@pytest.fixture
def server() -> Iterator[LlmServer]:
    with llm_server() as running:
        yield running


def test_a_users_style_is_a_column_of_its_own(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    first = load_style(file)
    summarize(copy, [str(file), "positives"])
    file.write_text(MINE.replace("version: 2", "version: 3"))
    second = load_style(file)
    summarize(copy, [str(file)])
    assert Store.open(copy).styles() == sorted([first.key, second.key, "positives"])
    assert first.key.startswith("mine-")
    assert Store.open(copy).texts(first.key)["a1"] == "There is lung nodule. There is no pleural effusion."
    told = info(str(copy)).written_by
    assert told[second.key] == {"style": "mine", "hash": second.hash, "backend": "rules"}
    config = RunConfig.from_tree({"data": {"style": str(file)}}, "here")
    assert config.data.style == second.key


def test_a_search_space_takes_styles_by_name_and_by_file(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    space = tmp_path / "styles.yaml"
    space.write_text(f"data.style:\n  kind: categorical\n  choices: [positives, {file}, report]\n  why: a test\n")
    parameters = tune_spaces.load([str(space)])
    _summarize_missing(Store.open(copy), parameters)
    assert Store.open(copy).styles() == sorted([load_style(file).key, "positives"])
    (parameter,) = parameters
    drawn = [RunConfig.from_tree({"data": {"style": choice}}, "here").data.style for choice in parameter.choices]
    assert drawn == ["positives", load_style(file).key, "report"]


def test_a_language_models_summaries_stand_beside_the_rules(copy: Path, server: LlmServer) -> None:
    options = LlmOptions(endpoint=server.url)
    summarize(copy, ["positives"])
    rules = (copy / summary_file("positives")).read_bytes()
    result = summarize(copy, ["positives"], options, backend="openai", model="known")
    key = load_style("positives").with_backend("openai", "known").key
    store = Store.open(copy)
    assert store.styles() == sorted(["positives", key])
    assert store.texts(key) == store.texts("positives")
    assert (copy / summary_file("positives")).read_bytes() == rules
    assert len(server.requests) == 3, "two volumes share a report"
    figures = result.styles[key]
    assert (figures["distinct"], figures["flagged"], figures["failed"], figures["requests"]) == (3, 0, 0, 3)
    assert info(str(copy)).written_by[key]["model"] == "known"

    summarize(copy, ["positives"], options, backend="openai", model="known")
    shutil.rmtree(copy / "summaries" / key)
    summarize(copy, ["positives"], options, backend="openai", model="known")
    assert len(server.requests) == 3
    other = copy.parent / "other"
    shutil.copytree(copy, other, ignore=shutil.ignore_patterns("summaries", "answers"))
    shared = LlmOptions(endpoint=server.url, cache=str(copy / "answers"))
    summarize(other, ["positives"], shared, backend="openai", model="known")
    assert len(server.requests) == 3, "stores share a cache"


def test_unsupported_statements_are_replaced_dropped_or_kept_and_counted(copy: Path, server: LlmServer) -> None:
    server.answer = says(("pneumothorax", "present"), ("pleural effusion", "present"))
    expected = {
        "replace": {"a1": "There is no pleural effusion.", "b1": "There is pleural effusion."},
        "drop": {"a1": "There is no abnormality.", "b1": "There is pleural effusion."},
        "keep": {"a1": "There is pleural effusion. There is pneumothorax."},
    }
    key = load_style("positives+negatives").with_backend("openai", "liar").key
    for policy, summaries in expected.items():
        options = LlmOptions(endpoint=server.url, flagged=policy)
        figures = summarize(copy, ["positives+negatives"], options, backend="openai", model="liar").styles[key]
        texts = Store.open(copy).texts(key)
        assert {volume: texts[volume] for volume in summaries} == summaries
        assert (figures["claims"], figures["flagged"], figures["by_rules"]) == (6, 5, 1)
    assert len(server.requests) == 3, "a policy costs no further answer"
    table = pq.read_table(copy / summary_file(key)).to_pylist()
    assert {row["volume_id"]: row["flagged"] for row in table} == {"a1": 2, "a2": 2, "b1": 1, "c1": 2}


def test_no_report_in_logs_errors_or_mlflow(
    copy: Path, server: LlmServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    key = summarize(copy, ["short"], LlmOptions(endpoint=server.url), backend="openai", model="known").styles
    api = connection.client()
    experiment = api.get_experiment_by_name(connection.experiment_name())
    run = api.search_runs([experiment.experiment_id], f"tags.`brgsa.style` = '{next(iter(key))}'", max_results=1)[0]
    assert run.data.params["model"] == "known"
    assert run.data.metrics["requests"] == 3
    logged = json.dumps([run.data.params, run.data.tags, run.data.metrics]) + caplog.text + "".join(capfd.readouterr())
    assert "Secretname" not in logged
    assert "secretpatient" not in logged


def test_two_runs_at_once_on_one_column_are_refused(copy: Path, server: LlmServer) -> None:
    key = load_style("short").with_backend("openai", "known").key
    with held(Folder(copy / "summaries" / key), "summarize"), refused("folder-in-use"):
        summarize(copy, ["short"], LlmOptions(endpoint=server.url), backend="openai", model="known")
    assert server.requests == []


def test_a_dry_run_changes_nothing(copy: Path) -> None:
    before = contents(copy)
    told = dry_run(copy, ["positives", "short"], LlmOptions(price=(1.0, 1.0)), backend="openai", model="known")
    assert told.count("3 distinct reports") == 2
    assert contents(copy) == before


def test_a_hybrid_asks_about_doubtful_sentences_only(copy: Path, server: LlmServer) -> None:
    result = summarize(copy, ["positives"], LlmOptions(endpoint=server.url), backend="hybrid", model="known")
    assert server.requests == []
    (figures,) = result.styles.values()
    assert (figures["sentences_asked"], figures["cost"]) == (0.0, 0.0)
    (key,) = result.styles
    assert Store.open(copy).texts(key) == dict(
        zip(
            Store.open(copy).texts("report"),
            summarize_many(list(Store.open(copy).texts("report").values()), "positives"),
            strict=True,
        )
    )
