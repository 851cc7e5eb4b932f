"""A report of a checkpoint's evaluation: heat maps and texts from the store, and what remains when the store is gone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from refusals import refused
from tiny_models import save_tiny

from brgsa_platform.evaluation.evaluate import EvaluateOptions, evaluate
from brgsa_platform.reports.report import report
from brgsa_platform.reports.retrieval import examples
from brgsa_platform.reports.runs import find, read_run
from brgsa_platform.store.store import Store
from brgsa_platform.tracking import connection

pytestmark = pytest.mark.ray

PICTURE = '<img src="data:image/png;base64,'


@pytest.fixture(scope="module")
def run(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's folder whose best checkpoint has been evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    checkpoint = save_tiny(folder / "checkpoints" / "epoch-0001", config={"optim": {"lr": 0.125}})
    (folder / "checkpoints" / "best.json").write_text('{"checkpoint": "epoch-0001"}')
    evaluate(checkpoint, pairs, "train", EvaluateOptions(resamples=20))
    return folder


def test_a_run_s_report_has_all_sections_and_goes_to_mlflow_without_ids_or_texts(run: Path, tmp_path: Path) -> None:
    made = report([run], tmp_path / "report.html", texts=True, maps=2)
    page = made.path.read_text()
    for section in ("figures", "curve", "calibration", "gap", "retrieval", "heat", "about"):
        assert f'<section id="{section}">' in page
    assert page.count(PICTURE) == 2
    assert "lr: 0.125" in page
    told = read_run(find(run)).told
    assert told["data"] in page
    assert "The heart is of size" in page
    assert re.search(r"<code>s\d+r\d</code>", page)
    api = connection.client()
    logged = Path(api.download_artifacts(told["mlflow_run_id"], "report.html", str(tmp_path / "."))).read_text()
    assert "The heart is of size" not in logged
    assert not re.search(r"\bs\d+r\d\b", re.sub(r"<script>.*?</script>|base64,[^\"]*", "", logged, flags=re.DOTALL))
    assert logged.count(PICTURE) == 2
    assert {"summary.png", "roc.png"} <= {entry.path for entry in api.list_artifacts(told["mlflow_run_id"])}


def test_examples_are_those_that_retrieval_finds_first(run: Path, pairs: Path) -> None:
    evaluated = read_run(find(run))
    alignment = evaluated.alignment
    assert alignment is not None
    assert alignment.clouds.keys() == {"before", "after"}
    told = evaluated.told["alignment"]
    for k in (5, 10):
        assert (alignment.ranks.of_text < k).mean() == pytest.approx(told[f"retrieval/volume_to_report_at_{k}"])
    texts = Store.open(pairs).texts("report")
    shown = examples(evaluated, texts)
    assert [one.text_rank for one in shown] == sorted(one.text_rank for one in shown)
    for one in shown:
        assert one.text == texts[one.volume]
        own = [place for place, other in enumerate(one.first, 1) if other.text == one.text]
        assert own in ([], [one.text_rank]) or one.text_rank > len(one.first)


def test_a_run_whose_store_is_gone_still_has_its_report(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    table = find(moved)
    store = read_run(table).origin["store"]
    table.write_text(table.read_text().replace(store, str(tmp_path / "gone")))
    made = report([moved], tmp_path / "report.html", texts=True)
    page = made.path.read_text()
    assert any("Heat maps are left out" in line for line in made.said)
    assert any("Texts and ids of the examples are left out" in line for line in made.said)
    assert PICTURE not in page
    for section in ("curve", "calibration", "gap", "retrieval"):
        assert f'<section id="{section}">' in page


def test_heat_maps_are_not_drawn_of_other_weights_or_data(run: Path, tmp_path: Path) -> None:
    for key, value in (("weights", "0000"), ("data", "0000")):
        moved = shutil.copytree(run, tmp_path / key)
        table = find(moved)
        was = read_run(table)
        table.write_text(
            table.read_text().replace(was.origin["weights"] if key == "weights" else was.told["data"], value)
        )
        made = report([moved], tmp_path / f"{key}.html")
        assert any(f"other-{key}" in line for line in made.said)


def test_a_run_that_was_never_evaluated_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "run" / "checkpoints" / "epoch-0001")
    (tmp_path / "run" / "checkpoints" / "best.json").write_text('{"checkpoint": "epoch-0001"}')
    with refused("no-evaluation", field="RUN", value=str(tmp_path / "run")):
        report([tmp_path / "run"], tmp_path / "report.html")
