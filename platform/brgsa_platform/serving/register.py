"""`brgsa register`: a checkpoint as a version of a model in MLflow's registry."""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from brgsa import checkpoint as checkpoint_files
from brgsa import zeroshot
from brgsa_platform.evaluation.calibration import probabilities
from brgsa_platform.serving import scan_model
from brgsa_platform.serving.model_card import model_card
from brgsa_platform.tracking import query
from brgsa_platform.tracking.client import MODEL_FILES
from brgsa_platform.tracking.registry import ServedModel, Version
from brgsa_platform.tracking.registry import register as register_model
from brgsa_platform.training import account, run_checkpoints

NAME = "brgsa"
CODE = ("brgsa", "brgsa_platform", "tune_spaces")
# What the code needs to score a scan; MLflow's own requirement brings the rest of a server.
NEEDED = (
    "torch", "numpy", "scipy", "pandas", "transformers", "tokenizers", "safetensors", "monai", "SimpleITK", "nibabel",
    "pydicom", "blosc2", "isal", "pyarrow", "openpyxl", "pydantic", "pyyaml", "matplotlib", "rich", "mlflow",
)  # fmt: skip
EXAMPLE_SCAN = "/path/to/scan.nii.gz"


def register(checkpoint: Path | str, name: str = NAME) -> Version:
    """Make a checkpoint the next version, and the champion, of a model in MLflow's registry.

    The version holds the model, its code and a model card, and links to the training's run where MLflow has that.

    Args:
        checkpoint: a checkpoint folder, or a run's (its best checkpoint).
        name: of the registered model.

    Raises:
        UserError: the checkpoint or the calibration beside it cannot be used, or see `tracking.registry.register`.
    """
    loaded = checkpoint_files.load(run_checkpoints.resolve(checkpoint))
    folder, run = loaded.path, loaded.run
    probabilities.Probabilities.of(folder, "mean")  # a damaged one would meet those who load the model
    run_id = account.run_id_of(folder)
    with tempfile.TemporaryDirectory() as place:
        files = Path(place) / "checkpoint"
        files.mkdir()
        for entry in (*MODEL_FILES, probabilities.FILE):
            source = folder / entry
            if source.is_dir():
                shutil.copytree(source, files / entry)
            elif entry in MODEL_FILES or source.exists():
                shutil.copy2(source, files / entry)
        model = ServedModel(
            loader=scan_model.__name__,
            files=files,
            code=_code(Path(place) / "code"),
            requirements=[f"{package}=={_public(version(package))}" for package in NEEDED],
            inputs=scan_model.INPUTS,
            outputs=scan_model.OUTPUTS,
            example={"scan": EXAMPLE_SCAN, "prompts": zeroshot.prompts(run["labels"][:1] or ["pleural effusion"])},
            card=model_card(folder, run),
            metadata={"data": run["data"].get("fingerprint", ""), "commit": run.get("commit") or ""},
        )
        return register_model(
            model,
            name,
            logged_as=account.name_of(folder),
            run_id=run_id if run_id is not None and query.exists(run_id) else None,
            model_id=account.model_of(folder),
        )


def _code(place: Path) -> list[Path]:
    """The packages that the model runs on, without what Python has compiled."""
    copies = []
    for package in CODE:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, place / package, ignore=shutil.ignore_patterns("__pycache__"))
        copies.append(place / package)
    return copies


def _public(number: str) -> str:
    """A version as package indexes have it: without the part that tells a build, such as +cpu."""
    return re.sub(r"\+.*", "", number)
