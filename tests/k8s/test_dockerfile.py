"""The Dockerfile, linted, and held to what the manifests and the project expect of its images."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


def stages() -> dict[str, list[str]]:
    """Instructions of each stage by its name, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = [line]
        elif line and not line.startswith("#"):
            list(found.values())[-1].append(line)
    return found


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not any(line.startswith("ADD ") for lines in stages().values() for line in lines)  # it would fetch addresses


def test_images_run_as_the_manifests_user() -> None:
    for target in ("cpu", "cuda", "mlflow"):
        assert stages()[target][-1].startswith("CMD ")
        assert "USER 1000:1000" in stages()[target]


def test_packages_come_from_the_constraints_before_the_code() -> None:
    for name in ("build-cpu", "build-cuda", "build-mlflow"):
        lines = stages()[name]
        for command in re.findall(r"pip install [^&]*", " && ".join(lines)):
            assert "--constraint constraints.txt" in command or command.strip() == "pip install --no-deps ."
        copies = [i for i, line in enumerate(lines) if line.startswith("COPY ")]
        installs = next(i for i, line in enumerate(lines) if "--constraint" in line)
        assert all(installs < copy for copy in copies)


def test_what_is_copied_is_sent_to_the_builder() -> None:
    copied = {
        source
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    sent = (DOCKERFILE.with_name("Dockerfile.dockerignore")).read_text().splitlines()
    assert {f"!{source}" for source in copied} == {line for line in sent if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)


def test_the_manifests_versions_are_the_pinned_ones() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    cluster = yaml.safe_load((ROOT / "k8s" / "raycluster" / "raycluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == pins["ray"]
    assert f"image: brgsa-mlflow:{pins['mlflow']}\n" in (ROOT / "k8s" / "base" / "mlflow.yaml").read_text()
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    for file in (ROOT / "k8s").rglob("*.yaml"):
        for image in re.findall(r"brgsa-platform:(\S+)", file.read_text()):
            assert image.rpartition("-")[0] == version[1], file
