"""What is settled about a job before anything is sent: its command, its address, the files that go with it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import typer

from brgsa.errors import UserError
from brgsa_platform.cli.main import app
from brgsa_platform.jobs import commands, kuberay, packing
from brgsa_platform.jobs import ray_jobs as submit

VERBS = typer.main.get_command(app).commands
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
    ("given", "said"),
    [
        ("ray://head:10001", "Ray client, which takes no jobs: give the dashboard's, http://head:8265"),
        ("head:6379", "Ray's GCS"),
        ("auto", "no address of a cluster"),
        ("", "no address of a cluster"),
        ("ftp://head", "unknown kind"),
        ("http://head:port", "no address"),
        ("http://me:secret@head:8265", "holds a name or password"),
    ],
)
def test_other_addresses_are_refused(given: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        submit.parse_address(given)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "stands behind --"),
        (["tran"], "did you mean train"),
        (["ui"], "cannot run in a job"),
        (["submit", "--", "train"], "cannot run in a job"),
        (["train", "--dta", "x"], "No such option: --dta"),
        (["tune", "--trials", "many"], "valid integer"),
        (["evaluate", "--data", "/d"], "Missing argument .checkpoint."),
    ],
)
def test_a_command_is_checked_before_it_is_sent(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        commands.parse(words, VERBS)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["train", "--data", "store", "--out", "/runs/a"], "--data is store"),
        (["train", "--data", "/store"], "--out is not given"),
        (["tune", "--data", "/store", "--space", "cmki"], "--out is searches"),
        (["evaluate", "runs/a", "--data", "/store"], "--checkpoint is runs/a"),
    ],
)
def test_places_in_the_jobs_own_folder_are_refused(words: list[str], field: str) -> None:
    with pytest.raises(UserError, match=field):
        commands.check_paths(commands.parse(words, VERBS))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "s3://bucket/store", "--out", "/runs/a"],
        ["evaluate", "/runs/a", "--data", "/store"],
        ["tune", "--resume", "cmki", "--out", "/searches"],
        ["prepare", "scans.csv", "--layout", "manifest", "--out", "/store"],
    ],
)
def test_places_that_all_nodes_see_are_taken(words: list[str]) -> None:
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
    packing.collect_files(study).write(tmp_path / "job.zip")
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
    packing.collect_files(study).write(archives[0])
    (study / "mine.yaml").touch()
    packing.collect_files(study).write(archives[1])
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_a_folder_that_is_too_large_is_refused_with_its_largest(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LIMIT", 3 * 2**20)
    (study / "notes" / "movie").write_bytes(bytes(2 * 2**20))
    (study / "table.csv").write_bytes(bytes(2**20))
    with pytest.raises(UserError, match=r"3\.0 MiB .*largest: notes 2\.0 MiB, \. 1\.0 MiB.*\.gitignore"):
        packing.collect_files(study)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        packing.collect_files(tmp_path / "none")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:////tmp/x.db", "cannot reach: start a server"),
        ("file:///tmp/x", "cannot reach"),
        ("https://me:sekret@mlflow.example.org", "take it out"),
    ],
)
def test_tracking_stores_that_make_no_sense_elsewhere(
    study: Path, monkeypatch: pytest.MonkeyPatch, uri: str, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=said) as refused:
        submit.build_submission(commands.parse(["phantom", "/x"], VERBS), study)
    assert "sekret" not in str(refused.value)


def test_a_plan_passes_the_address_on_and_no_password(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lungs")
    for name in submit.CREDENTIALS:
        monkeypatch.setenv(name, "sekret")
    plan = submit.build_submission(commands.parse(["phantom", "/x y"], VERBS), study)
    assert plan.entrypoint == "python -m brgsa_platform.cli phantom '/x y'"
    assert plan.environment["MLFLOW_TRACKING_URI"] == "http://localhost:5000"
    assert plan.environment["MLFLOW_EXPERIMENT_NAME"] == "lungs"
    shown = plan.as_json("http://head:8265") + repr(plan)
    assert "sekret" not in shown
    assert '"not_sent": [\n  "MLFLOW_TRACKING_USERNAME"' in shown
    told = submit.warnings("http://head:8265")
    assert "another machine" in told[0]
    assert "MLFLOW_TRACKING_PASSWORD" in told[1]


def test_a_database_with_its_password_is_refused(study: Path) -> None:
    database = "postgresql://u:sekret@host/db"
    words = ["tune", "--data", "/d", "--space", "cmki", "--out", "/o", "--storage", database]
    with pytest.raises(UserError, match="address with a password") as refused:
        submit.build_submission(commands.parse(words, VERBS), study)
    assert "sekret" not in str(refused.value)
