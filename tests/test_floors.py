"""The floors of the house: who may import whom, and what the command line may cost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return set(done.stdout.split())


def test_the_method_needs_no_platform() -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "brgsa").rglob("*.py")
        if path.name != "__init__.py"
    )
    everything = "import importlib; " + "; ".join(f"importlib.import_module({m!r})" for m in modules)
    towers = "brgsa.vision.vision_tower(brgsa.config.VisionConfig(name='resnet10', width=8))"
    # A tower needs no MONAI, which takes seconds to import.
    found = imported_by(f"{everything}; import brgsa.vision; {towers}")
    others = {"ray", "mlflow", "optuna", "pydantic", "typer", "brgsa_platform", "tune_spaces", "monai"}
    assert found & others == set()


def test_importing_the_method_is_light() -> None:
    assert imported_by("import brgsa") & {"torch", "monai", "transformers", "spacy", "SimpleITK"} == set()


@pytest.mark.parametrize("module", ["config", "store.prepare", "summaries.summarize", "loading.batches"])
def test_what_computes_nothing_imports_no_torch(module: str) -> None:
    # Each of Ray Data's workers would pay for it.
    assert imported_by(f"import brgsa_platform.{module}") & {"torch", "transformers", "monai", "mlflow"} == set()


def test_the_search_spaces_are_data() -> None:
    assert imported_by("import tune_spaces; tune_spaces.load(['cmki'])") & {"ray", "mlflow", "torch", "optuna"} == set()


def test_the_command_line_imports_nothing_heavy() -> None:
    # What makes `brgsa --help` answer at once.
    heavy = {"torch", "numpy", "pandas", "pyarrow", "ray", "mlflow", "transformers", "monai", "matplotlib"}
    assert imported_by("import brgsa_platform.cli.main") & heavy == set()


def test_only_the_tracking_room_imports_mlflow() -> None:
    for path in (ROOT / "platform").rglob("*.py"):
        imports = [
            line for line in path.read_text().splitlines() if line.strip().startswith(("import mlflow", "from mlflow"))
        ]
        assert not imports or path.parent.name == "tracking", path


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "platform")))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The three packages and the rules over them, to be spoilt."""
    for folder in ("brgsa", "tune_spaces", "platform"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_rooms_keep_to_their_floors(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "statement", "broken"),
    [
        ("brgsa/bank.py", "import brgsa_platform.config", "The method knows no platform"),
        ("tune_spaces/loader.py", "import torch", "Search spaces are data"),
        ("platform/brgsa_platform/loading/order.py", "import mlflow", "Only the tracking room knows MLflow"),
        ("platform/brgsa_platform/store/reader.py", "from brgsa_platform.loading import order", "A room knows"),
        ("platform/brgsa_platform/layouts/item.py", "from brgsa_platform.tracking import runs", "A room knows"),
        ("platform/brgsa_platform/search/spec.py", "from brgsa_platform.search import driver", "No circles"),
    ],
    ids=["method-platform", "space-torch", "training-mlflow", "store-training", "layouts-tracking", "circle"],
)
def test_a_forbidden_import_is_refused(copy: Path, file: str, statement: str, broken: str) -> None:
    with (copy / file).open("a") as module:
        module.write(f"\n{statement}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(broken) and " BROKEN" in line]


def test_a_new_room_has_to_be_given_its_floor(copy: Path) -> None:
    room = copy / "platform" / "brgsa_platform" / "attic"
    room.mkdir()
    (room / "__init__.py").touch()
    assert lint(copy).returncode == 1
