"""What is checked about a job before anything is sent: its command, its address, the files that go with it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from commandline import brgsa
from refusals import refused

from brgsa_platform.cli.main import app
from brgsa_platform.jobs import base, commands, kuberay, packing
from brgsa_platform.jobs import ray_jobs as submit

VERBS = typer.main.get_command(app).commands
NOBODY = "http://127.0.0.1:9"
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("https://ray.example.org/head/", "https://ray.example.org/head"),
        ("head:8265", "http://head:8265"),
        ("head", "http://head:8265"),
        ("[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_addresses_of_a_job_server(given: str, taken: str) -> None:
    assert submit.parse_address(given) == taken


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("ray://head:10001", "not-a-dashboard"),
        ("head:6379", "not-a-dashboard"),
        ("auto", "bad-address"),
        ("", "bad-address"),
        ("ftp://head", "bad-address"),
        ("http://head:port", "bad-address"),
    ],
)
def test_other_addresses_are_refused(given: str, code: str) -> None:
    with refused(code, field="--ray", value=given):
        submit.parse_address(given)


@pytest.mark.parametrize("given", ["http://me:sekret@head:8265", "sekret@head", "ray://me:sekret@head"])
def test_an_address_with_a_password_is_refused_and_not_repeated(given: str) -> None:
    with refused("password-in-address", field="--ray", value=None) as error:
        submit.parse_address(given)
    assert "sekret" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "code", "value"),
    [
        ([], "no-verb", None),
        (["tran"], "unknown-verb", "tran"),
        (["ui"], "local-verb", "ui"),
        (["submit", "--", "train"], "local-verb", "submit"),
    ],
)
def test_a_verb_is_checked_before_it_is_sent(words: list[str], code: str, value: str | None) -> None:
    with refused(code, value=value):
        commands.parse(words, VERBS)


@pytest.mark.parametrize(
    "words", [["train", "--dta", "x"], ["tune", "--trials", "many"], ["evaluate", "--splt", "test"]]
)
def test_arguments_are_checked_before_they_are_sent(words: list[str]) -> None:
    with refused("bad-arguments", field=words[0]):
        commands.parse(words, VERBS)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["train", "--data", "store", "--out", "/runs/a"], "--data", "store"),
        (["train", "--data", "/store"], "--out", None),
        (["tune", "--data", "/store", "--space", "cmki"], "--out", "searches"),
        (["evaluate", "runs/a", "--data", "/store"], "--checkpoint", "runs/a"),
        (["evaluate", "--data", "/store"], "--checkpoint", None),
        (["evaluate", "/runs/a", "--data", "/store", "--compare", "b"], "--compare", "b"),
        (["evaluate", "--scores", "/s.csv", "--labels", "l.csv", "--out", "/out"], "--labels", "l.csv"),
        (["summarize", "/store", "--style", "positives", "--cache", "answers"], "--cache", "answers"),
    ],
)
def test_paths_in_the_jobs_own_folder_are_refused(words: list[str], field: str, value: str | None) -> None:
    with refused("relative-path", field=field, value=value):
        commands.check_paths(commands.parse(words, VERBS))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "s3://bucket/store", "--out", "/runs/a"],
        ["evaluate", "/runs/a", "--data", "/store"],
        ["evaluate", "--scores", "/s.csv", "--labels", "/l.csv"],
        ["summarize", "/store", "--style", "positives"],
        ["summarize", "/store", "--style", "positives", "--cache", "s3://bucket/answers"],
        ["tune", "--resume", "cmki", "--out", "/searches"],
        ["prepare", "scans.csv", "--layout", "manifest", "--out", "/store"],
    ],
)
def test_paths_that_all_nodes_see_are_taken(words: list[str]) -> None:
    commands.check_paths(commands.parse(words, VERBS))


@pytest.mark.parametrize(
    ("base", "given", "made"),
    [
        (
            "train --data /d --preset paper --out /o optim.lr=1e-3",
            "train --preset=demo optim.lr=1e-4",
            "train --data /d --out /o optim.lr=1e-3 --preset=demo optim.lr=1e-4",
        ),
        (
            "tune --space cmki --space optim --trials 4",
            "tune --space losses",
            "tune --trials 4 --space losses",
        ),
        ("evaluate /runs/a --data /d", "evaluate /runs/b", "evaluate --data /d /runs/b"),
        ("evaluate /runs/a --data /d", "evaluate", "evaluate /runs/a --data /d"),
        (
            "prepare /a --out /s --shape 1 2 3 --strict",
            "prepare --shape 4 5 6",
            "prepare /a --out /s --strict --shape 4 5 6",
        ),
    ],
)
def test_arguments_laid_over_a_manifests(base: str, given: str, made: str) -> None:
    assert commands.merge_arguments(base.split(), given.split(), VERBS) == made.split()


def test_names_are_new_and_labels() -> None:
    names = {commands.new_name("train") for _ in range(50)}
    assert len(names) == 50
    assert all(len(name) <= kuberay.NAME_LENGTH and name.startswith("brgsa-train-") for name in names)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A working folder with what does and what does not go with a job."""
    folder = tmp_path / "study"
    for name in (
        *("mine.yaml", "notes/readme.md", "platform/__init__.py", "brgsa/old.py"),
        *("data/scan.txt", "runs/a/x.txt", "mlruns-brgsa/mlflow.db", "scan.nii.gz", "notes/patients.parquet"),
        *(".env", ".ssh/id_ed25519", "tls.key", "big/ignored.bin", "notes/draft.tmp", "notes/kept.tmp"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / ".gitignore").write_text("big/\n")
    (folder / "notes" / ".rayignore").write_text("*.tmp\n!kept.tmp\n")
    (folder / "notes" / "up").symlink_to(tmp_path)
    return folder


def test_what_goes_with_a_job(study: Path) -> None:
    files = packing.collect_files(study).files
    own = {name for name, path in files.items() if path.is_relative_to(study)}
    assert own == {
        *("mine.yaml", "notes/readme.md", "notes/kept.tmp", ".gitignore", "notes/.rayignore"),
        "platform/__init__.py",
    }
    assert files["brgsa/errors.py"] == ROOT / "brgsa" / "errors.py"
    assert files["platform/brgsa_platform/cli/main.py"] == ROOT / "platform" / "brgsa_platform" / "cli" / "main.py"
    assert "tune_spaces/cmki.yaml" in files


def test_the_repository_itself_goes_once(tmp_path: Path) -> None:
    files = packing.collect_files(ROOT).files
    assert "platform/brgsa_platform/presets/paper.yaml" in files
    assert "platform/__init__.py" not in files
    assert not [name for name in files if "__pycache__" in name or name.startswith(".git/")]


def test_code_from_the_archive_runs(study: Path, tmp_path: Path) -> None:
    (study / "platform" / "__init__.py").unlink()
    packing.collect_files(study).write_archive(tmp_path / "job.zip")
    with zipfile.ZipFile(tmp_path / "job.zip") as packed:
        packed.extractall(tmp_path / "job")
    script = (
        "import platform, brgsa_platform.cli.main as c, brgsa; print(platform.__file__, c.__file__, brgsa.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "job",
        env={"PYTHONPATH": "platform"},
        capture_output=True,
        text=True,
    )
    standard, *ours = done.stdout.split()
    assert not standard.startswith(str(tmp_path))
    assert all(place.startswith(str(tmp_path / "job")) for place in ours), done.stderr


def test_the_same_files_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    archives = [tmp_path / "a.zip", tmp_path / "b.zip"]
    packing.collect_files(study).write_archive(archives[0])
    (study / "mine.yaml").touch()
    packing.collect_files(study).write_archive(archives[1])
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_a_folder_that_is_too_large_is_refused_with_its_largest(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LIMIT", 3 * 2**20)
    (study / "notes" / "movie").write_bytes(bytes(2 * 2**20))
    (study / "table.csv").write_bytes(bytes(2**20))
    with refused("too-large", field="--working-dir") as error:
        packing.collect_files(study)
    assert [name for name, _ in error.value.value[:2]] == ["notes", "."]  # type: ignore[index]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with refused("not-a-folder", value=str(tmp_path / "none")):
        packing.collect_files(tmp_path / "none")


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("sqlite:////tmp/x.db", "local-tracking"),
        ("file:///tmp/x", "local-tracking"),
        ("https://me:sekret@mlflow.example.org", "password-in-address"),
    ],
)
def test_tracking_stores_that_make_no_sense_elsewhere(
    study: Path, monkeypatch: pytest.MonkeyPatch, uri: str, code: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with refused(code, field="MLFLOW_TRACKING_URI") as error:
        submit.build_submission(commands.parse(["phantom", "/x"], VERBS), study)
    assert "sekret" not in str(error.value)


def test_the_tracking_address_is_passed_on_and_no_password(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lungs")
    for name in submit.CREDENTIALS:
        monkeypatch.setenv(name, "sekret")
    submission = submit.build_submission(commands.parse(["phantom", "/x y"], VERBS), study)
    assert submission.entrypoint == "python -m brgsa_platform.cli phantom '/x y'"
    assert submission.environment["MLFLOW_TRACKING_URI"] == "http://localhost:5000"
    assert submission.environment["MLFLOW_EXPERIMENT_NAME"] == "lungs"
    shown = submission.as_json("http://head:8265")
    assert "sekret" not in shown + repr(submission)
    assert json.loads(shown)["not_sent"] == list(submit.CREDENTIALS)
    elsewhere, here = submit.warnings("http://head:8265"), submit.warnings("http://127.0.0.1:8265")
    assert len(elsewhere) == len(here) + 1  # of the address, and of the passwords in both
    assert all(name in here[0] for name in submit.CREDENTIALS)


def test_a_database_with_its_password_is_refused(study: Path) -> None:
    database = "postgresql://u:sekret@host/db"
    words = ["tune", "--data", "/d", "--space", "cmki", "--out", "/o", "--storage", database]
    with refused("password-in-argument", value=None) as error:
        submit.build_submission(commands.parse(words, VERBS), study)
    assert "sekret" not in str(error.value)


def test_a_dry_run_needs_no_cluster(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    done = brgsa("submit", "--ray", NOBODY, "--dry-run", "--", "phantom", "/x", "--seed", 7)
    assert done.status == 0, done.err
    assert json.loads(done.out)["entrypoint"] == "python -m brgsa_platform.cli phantom /x --seed 7"


def test_nobody_there() -> None:
    with refused("unreachable", field="--ray", value=NOBODY) as error:
        submit.RayJobs(NOBODY)
    assert isinstance(error.value, base.ClusterUnreachable)


@pytest.fixture
def other_server() -> Iterator[str]:
    """The address of a web server that is no Ray dashboard."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_another_server_is_no_dashboard(other_server: str) -> None:
    with refused("not-a-dashboard", field="--ray", value=other_server):
        submit.RayJobs(other_server)
