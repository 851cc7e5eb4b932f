"""`import platform` must stay the standard library's: `platform/` is a source root, never a package.

In a job of a cluster, whose working folder is the repository, `platform_rooms/jobs/test_submit_ray.py` looks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
STDLIB = Path(sysconfig.get_paths()["stdlib"])
PRINT = "import platform; print(platform.__file__); platform.system()"


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_under_pytest() -> None:
    import platform

    assert Path(platform.__file__).parent == STDLIB


def test_from_the_repository_root() -> None:
    assert Path(run("-c", PRINT, cwd=ROOT)).parent == STDLIB


def test_with_the_source_root_on_the_path() -> None:
    assert Path(run("-c", PRINT, cwd=ROOT, PYTHONPATH="platform")).parent == STDLIB


def test_installed_and_elsewhere(tmp_path: Path) -> None:
    found = run("-c", PRINT + "; import brgsa_platform; print(brgsa_platform.__name__)", cwd=tmp_path)
    assert Path(found.splitlines()[0]).parent == STDLIB


def test_under_python_m() -> None:
    # `python -m` puts the current folder first on sys.path.
    assert "Zero-shot" in run("-m", "brgsa_platform.cli", "--help", cwd=ROOT)
    assert Path(run("-m", "platform", cwd=ROOT) and run("-c", PRINT, cwd=ROOT)).parent == STDLIB
