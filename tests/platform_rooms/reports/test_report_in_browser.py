"""A report as a person sees it, in a headless Chromium: it draws, sorts, asks nobody, and runs nobody else's script."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from browsers import browser, find_programs
from evaluations import NAMES, evaluated
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from brgsa_platform.reports.report import report

pytestmark = pytest.mark.slow

SECONDS = 90  # on a busy machine
SIZE = (1280, 900)
HOSTILE = '</script><img src="https://example.org/x" onerror="document.title=\'run\'"><b>Goitre'


@pytest.fixture
def pages(tmp_path: Path) -> list[Path]:
    """A report of one evaluation, and one of two."""
    find_programs()
    names = (*NAMES, HOSTILE)
    one = evaluated(tmp_path / "a", "first", names=names)
    two = evaluated(tmp_path / "b", "second", names=names, noise=2.0)
    return [report(runs, tmp_path / f"{len(runs)}.html").path for runs in ([one], [one, two])]


def test_a_report_in_a_browser(pages: list[Path], tmp_path: Path) -> None:
    logs = {"browser": "ALL", "performance": "ALL"}
    with browser(tmp_path / "profile", SIZE, logs) as driver:
        wait = WebDriverWait(driver, SECONDS)
        for page in pages:
            driver.get(page.as_uri())
            wait.until(lambda _: driver.execute_script("return document.documentElement.dataset.ready") == "yes")
            assert driver.title != "run"
            assert driver.execute_script("return document.images.length") == 0
            plots = driver.find_elements(By.CSS_SELECTOR, ".plot")
            assert len(plots) == 2
            assert all(plot.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace") for plot in plots)
            _see(driver, page, tmp_path)
        driver.get(pages[0].as_uri())
        wait.until(lambda _: driver.execute_script("return document.documentElement.dataset.ready") == "yes")
        areas = _column(driver, 4)
        driver.find_element(By.CSS_SELECTOR, "#figures-table th:nth-child(5) button").click()
        assert _column(driver, 4) == sorted(areas, key=float, reverse=True)
        driver.find_element(By.CSS_SELECTOR, "#figures-table th:nth-child(5) button").click()
        assert _column(driver, 4) == sorted(areas, key=float)
        driver.find_element(By.CSS_SELECTOR, "#figures-table th button").click()
        assert _column(driver, 0) == sorted(_column(driver, 0))
        assert "mean of all" in driver.find_element(By.CSS_SELECTOR, "#figures-table tfoot").text
        traces = len(driver.find_elements(By.CSS_SELECTOR, "#curves .trace"))
        Select(driver.find_element(By.ID, "curves-choice")).select_by_index(1)
        wait.until(lambda _: len(driver.find_elements(By.CSS_SELECTOR, "#curves .trace")) < traces)
        assert driver.get_log("browser") == []
        asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
        assert page.as_uri() in urls
        assert [url for url in urls if url.startswith(("http:", "https:", "ws:", "wss:"))] == []


def _column(driver: Any, number: int) -> list[str]:
    """What the rows of the first table sort by in a column, from the top."""
    cells = driver.find_elements(By.CSS_SELECTOR, f"#figures-table tbody td:nth-child({number + 1})")
    return [cell.get_attribute("data-by") for cell in cells]


def _see(driver: Any, page: Path, folder: Path) -> None:
    """Screenshots, light and dark, for those who look: they come into the folder that BRGSA_SCREENSHOT names."""
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        picture = folder / f"report-{page.stem}-{scheme}.png"
        assert driver.save_screenshot(str(picture))
        if kept := os.environ.get("BRGSA_SCREENSHOT"):
            shutil.copy(picture, kept)
