"""`brgsa serve` as a person sees it: a real server, a headless Chromium, a scan that is dropped."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import browser, find_programs
from calibrated import calibrate
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from tiny_models import PROMPTS, save_noise, save_tiny

pytestmark = pytest.mark.slow

SECONDS = 90  # on a busy machine
SIZE = (1280, 860)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The page's address, and the file with all that its server prints."""
    find_programs()
    model = calibrate(save_tiny(tmp_path / "epoch-0001"), Cardiomegaly=(1e6, 1.0))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "server.log"
    command = [sys.executable, "-m", "brgsa_platform.cli", "serve", str(model), "--port", str(port), "--max-mb", "100"]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield f"http://127.0.0.1:{port}", log
    finally:
        server.terminate()
        server.wait(timeout=60)


def test_a_dropped_scan_is_shown_scored_and_explained(served: tuple[str, Path], tmp_path: Path) -> None:
    address, log = served
    scan = save_noise(tmp_path / "anna-secretname.nii.gz")
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    logs = {"browser": "ALL", "performance": "ALL"}
    with browser(tmp_path / "profile", SIZE, logs) as driver:
        wait = WebDriverWait(driver, SECONDS, ignored_exceptions=[Exception])

        def shown() -> str:
            return str(driver.execute_script("return document.body.innerText"))

        def see(words: str) -> None:
            wait.until(lambda _: words in shown(), f"{words}\n{log.read_text()}")

        def go(_: Any) -> bool:
            driver.get(address)
            return "Drop a CT" in shown()

        wait.until(go, log.read_text())
        wait.until(lambda _: driver.find_element(By.ID, "prompts").get_property("value"), "the model's prompts")
        file = driver.find_element(By.ID, "file")
        file.send_keys(str(text))
        see("The upload is no CT")
        file.send_keys(str(scan))
        see("slice 6 of 10")
        see("where")
        wait.until(lambda _: driver.execute_script("return document.getElementById('slice').naturalWidth") > 8)
        rows = [" ".join(row.text.split()) for row in driver.find_elements(By.CSS_SELECTOR, "#rows tr")]
        for row, number, share in zip(rows, (1, 0, 2), (" 100 %", " 75 %", " 0 %"), strict=True):
            assert row.startswith(PROMPTS[number])
            assert share in row
        # Only what was calibrated has a probability: sigmoid(1) for any score.
        assert [" 0.73 where" in row for row in rows] == [False, True, False]
        assert "probability" in driver.find_element(By.TAG_NAME, "thead").text
        see("No probability where the column is empty: no calibration was fitted for this prompt")
        driver.find_element(By.CSS_SELECTOR, "#rows button").click()
        see("Drawn as strongly as the model's opinion")
        wait.until(lambda _: driver.execute_script("return document.getElementById('heat').naturalWidth") > 8)
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            picture = tmp_path / f"page-{scheme}.png"
            assert driver.save_screenshot(str(picture))
            if kept := os.environ.get("BRGSA_SCREENSHOT"):  # a folder for those who look
                shutil.copy(picture, kept)
        for button in driver.find_elements(By.CSS_SELECTOR, "#windows button"):
            button.click()
        driver.execute_script("const n = document.getElementById('number'); n.value = 0; n.oninput()")
        see("slice 1 of")
        complaints = [entry for entry in driver.get_log("browser") if "/scans" not in entry["message"]]
        assert complaints == []
        asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        urls = {one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"}
        assert any("/slices/" in url for url in urls)
        assert {url for url in urls if re.match("https?:|wss?:", url) and not url.startswith(address)} == set()
    told = log.read_text()
    assert "secretname" not in told
    assert len(told.splitlines()) == 1  # where it listens
