"""A headless Chromium, as Debian installs it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver


def find_programs() -> tuple[str, str]:
    """Chromium and its driver; the test skips where they are absent."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are absent: apt-get install chromium chromium-driver")
    return chromium, driver


@contextmanager
def browser(profile: Path, size: tuple[int, int], logs: dict[str, str] | None = None) -> Iterator[Any]:
    """A driver whose pages are as large as told; `logs` are the levels of what it keeps."""
    chromium, program = find_programs()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    if logs:
        options.set_capability("goog:loggingPrefs", logs)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(program))
    try:
        # The window has no bars in headless mode, but Chromium sets their height aside.
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False},
        )
        yield driver
    finally:
        driver.quit()
