"""The floors of the house: who may import whom, and what the command line may cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
    found = imported_by("import importlib; " + "; ".join(f"importlib.import_module({m!r})" for m in modules))
    assert found & {"ray", "mlflow", "optuna", "pydantic", "typer", "brgsa_platform", "tune_spaces"} == set()


def test_importing_the_method_is_light() -> None:
    assert imported_by("import brgsa") & {"torch", "monai", "transformers", "spacy", "SimpleITK"} == set()


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
