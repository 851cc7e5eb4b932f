"""A search on MLflow's own pages, as far as how it was logged decides it: a real server in a headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from browsers import browser, find_programs
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from brgsa_platform.tracking import connection

pytestmark = pytest.mark.slow

SECONDS = 60  # that a page may take on a busy machine
SIZE = (1400, 900)
PLOTS = "return [...document.querySelectorAll('.js-plotly-plot')]"


class Page:
    """One browser tab on the server."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, path: str) -> None:
        self.driver.get("about:blank")  # the UI is one page: only its fragment would change
        self.driver.get(self.address + path)

    def wait(self, ready: Any, what: str) -> Any:
        return WebDriverWait(self.driver, SECONDS).until(lambda driver: ready(), f"{what}\n{self.text()[:3000]}")

    def text(self) -> str:
        return str(self.driver.execute_script("return document.body.innerText"))

    def script(self, code: str) -> Any:
        return self.driver.execute_script(code)


@pytest.fixture(scope="session")
def programs() -> tuple[str, str]:
    """Chromium and its driver; asked for before a server is started for nothing."""
    return find_programs()


@pytest.fixture(scope="module")
def page(programs: tuple[str, str], search_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile"), SIZE) as driver:
        yield Page(driver, search_server)


@pytest.fixture(autouse=True)
def store(programs: tuple[str, str], searched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", searched.uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def compare_path(ids: dict[str, str], *names: str) -> str:
    experiment = connection.client().get_run(ids[names[0]]).info.experiment_id
    runs = quote(json.dumps([ids[name] for name in names]))
    return f"/#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment]))}&workflowType=machine_learning"


def test_the_compare_page_shows_parameters_and_parallel_coordinates(page: Page, searched: Any, tmp_path: Path) -> None:
    page.open(compare_path(searched.ids, "trial-0000", "trial-0001"))
    page.wait(lambda: "Comparing 2 Runs" in page.text(), "the compare page")
    (plot,) = page.wait(lambda: page.script(f"{PLOTS}.map(plot => plot.data)"), "the parallel coordinates")
    (lines,) = plot
    assert lines["type"] == "parcoords"
    axes = {axis["label"]: axis["values"] for axis in lines["dimensions"]}
    assert {"data.style", "loss.temperature", "model.bank.size"} <= set(axes)
    assert sorted(axes["loss.temperature"]) == [0.05, 0.12]
    assert sorted(axes["model.bank.size"]) == [256, 1024]
    # What the trials have in common is hidden where the page's own switches hide it; the names stand in full.
    table = page.text()
    for shown in ("trial-0000", "trial-0001", "loss.temperature", "0.12", "model.bank.size", "1024", "findings"):
        assert shown in table
    for metric in ("val/auroc", "best/auroc"):
        assert page.driver.find_elements(By.LINK_TEXT, metric), metric

    # MLflow opens a chat beside every page; it is no part of what a search looks like.
    for close in page.driver.find_elements(By.CSS_SELECTOR, '[data-component-id="mlflow.assistant.chat_panel.close"]'):
        close.click()
        page.open(compare_path(searched.ids, "trial-0000", "trial-0001"))  # a plot keeps the width that it was given
    page.wait(lambda: page.script(f"{PLOTS}.some(plot => plot.getBoundingClientRect().width > 700)"), "the wide plot")
    picture = tmp_path / "search-compare.png"
    assert page.driver.save_screenshot(str(picture))
    assert picture.stat().st_size > 20_000
    if kept := os.environ.get("BRGSA_SCREENSHOT"):  # how docs/search-compare.png was made
        shutil.copy(picture, kept)


def test_the_search_s_run_shows_its_table_with_values(page: Page, searched: Any) -> None:
    experiment = connection.client().get_run(searched.ids["cmki"]).info.experiment_id
    page.open(f"/#/experiments/{experiment}/runs/{searched.ids['cmki']}/artifacts/trials.json")
    page.wait(lambda: "model/bank/size" in page.text(), "the table")
    page.wait(lambda: "4096" in page.text() and "out of memory" in page.text(), "its values")
