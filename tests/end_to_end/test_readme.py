"""The commands of the README and of the pages on evaluation and store run as they are printed; those of others are read."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import typer
from commandline import Done, brgsa, quiet
from sharedray import SharedRay

from brgsa.checkpoint import load
from brgsa_platform.training import run_checkpoints
from scans import chest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
RUN_ELSEWHERE = {
    "make demo": "test_demo.py",
    "make test": "this run",
    "make test-fast": "this run",
    "brgsa ui": "platform_rooms/tracking/test_ui.py",
}

# Verbs that are run as the installed command; the others run in the test's process, which has imported all that they need.
# What a verb with a Ray of its own says is seen in test_search.py.
IN_A_PROCESS = {"train", "predict"}
PAGES = ("README.md", "docs/evaluation.md", "docs/store.md")


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def commands() -> list[str]:
    lines = [
        line.split("#")[0].strip() for page in PAGES for block in blocks("bash", page) for line in block.splitlines()
    ]
    return [line for line in lines if line]


def test_no_page_prints_commands_that_nobody_runs() -> None:
    pages = ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    assert [page for page in pages if blocks("bash", page)] == sorted(PAGES)


def test_every_printed_command_is_one_that_is_run() -> None:
    shell_commands = commands()
    assert len(shell_commands) >= 8
    for command in shell_commands:
        verb = " ".join(command.split()[:2])
        assert verb.startswith("brgsa ") or verb in RUN_ELSEWHERE, command
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"demo", "test", "setup", "lint"} <= set(targets)


def test_every_page_prints_commands_that_the_command_line_takes() -> None:
    from brgsa_platform.cli.main import app

    lines = [
        line.removeprefix("$ ").split(" #")[0].strip()
        for page in sorted((ROOT / "docs").glob("*.md"))
        for block in blocks("console", f"docs/{page.name}")
        for line in block.splitlines()
        if line.startswith("$ brgsa ")
    ]
    assert len(lines) >= 15
    for line in lines:
        command: Any = typer.main.get_command(app)
        words = shlex.split(line)[1:]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(line, words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: scans.csv with twenty scans, scan.nii.gz, and score files of two models."""
    made = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        nibabel.save(
            nibabel.Nifti1Image(chest((40, 36, 30), number), np.diag([-8.0, -8.0, 10.0, 1.0])),
            made / f"{number}.nii.gz",
        )
        split = "test" if number % 4 == 3 else "validation" if number % 8 == 2 else "train"
        sick = number // 8 % 2
        report = "There is a pleural effusion." if sick else "No pleural effusion is seen. Heart size is normal."
        rows.append([f"{number}.nii.gz", report, split, sick])
    with (made / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["volume", "report", "split", "Pleural effusion"], *rows])
    volumes = {"labels": range(80), "scores": range(40), "rival": range(40), "validation": range(40, 80)}
    truth = rng.integers(0, 2, (80, 2))
    for name, of in volumes.items():
        cells = truth if name == "labels" else truth + rng.normal(size=truth.shape)
        with (made / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [["VolumeName", "Cardiomegaly", "Pleural effusion"], *([i, *cells[i]] for i in of)]
            )
    (made / "scan.nii.gz").write_bytes((made / "0.nii.gz").read_bytes())
    return made


def test_the_commands_run_one_after_the_other(
    folder: Path, shared_ray: SharedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_ray.start(num_cpus=5)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlruns-brgsa' / 'mlflow.db'}")
    monkeypatch.setenv("RAY_ADDRESS", shared_ray.address)
    for line in commands():
        command = shlex.split(line)
        if " ".join(command[:2]) in RUN_ELSEWHERE:
            continue
        done = run(command) if command[1] in IN_A_PROCESS else brgsa(*command[1:])
        assert done.status == 0, f"{line}\n{done.out}\n{done.err}"
        assert quiet(done.out + done.err), f"{line}\n{done.out}\n{done.err}"
    assert (folder / "seen.png").stat().st_size > 10_000
    assert run_checkpoints.resolve(folder / "runs" / "first").is_dir()


def run(command: list[str]) -> Done:
    """The installed command, in a process of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def test_the_python_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks("python")
    if not (folder / "runs" / "first").is_dir():
        pytest.skip("the commands before it did not run")
    best = run_checkpoints.resolve(folder / "runs" / "first")
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(example.replace("runs/first/checkpoints/epoch-0001", str(best)), names)
    assert names["texts"].plain.shape == (2, load(best).model.config.embedding)  # type: ignore[attr-defined]
