"""`brgsa import-checkpoint`: the public reference's checkpoint as a run's folder, which `evaluate` and `predict` take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brgsa import checkpoint, labels
from brgsa.errors import UserError
from brgsa.text import DAMAGED, require_fast
from brgsa.volumes import Geometry
from brgsa.weights.fitting import Fitted
from brgsa.weights.reading import read_weights
from brgsa.weights.reference import reference_model
from brgsa_platform.config import RunConfig
from brgsa_platform.runtime.version import git_commit
from brgsa_platform.training.run_folder import check_free, not_writable

FINGERPRINT = "reference"  # of the data, which are not known here


def import_reference(
    file: Path,
    out: Path,
    tokenizer: str,
    *,
    volume: tuple[int, int, int] | None = None,
    geometry: Geometry = Geometry(),  # noqa: B008 (frozen)
) -> Fitted:
    """Write a reference checkpoint as one of ours.

    Args:
        out: a new or an empty folder.
        tokenizer: folder or hub name of the BERT's tokenizer, which the file does not hold.
        volume: see `reference_model`.
        geometry: of the volumes that the model was trained on; default the paper's.

    Returns:
        What became of the file's tensors; run.json holds it too.

    Raises:
        UserError: the folder is there already, the tokenizer cannot be had, or the file is not what it should be (see
            `read_weights`, `reference_model`). Nothing is written then.
    """
    check_free(out)
    weights = read_weights(file)
    model, report = reference_model(weights, _tokenizer(tokenizer), str(out / "text"), volume)
    config = RunConfig(model=model.config)
    record: dict[str, Any] = {
        "config": config.to_dict(),
        "data": {
            "geometry": geometry.to_dict(),
            "style": config.data.style,
            "fingerprint": FINGERPRINT,
        },
        "labels": list(labels.CT_RATE),
        "commit": git_commit(),
        "imported": report.to_dict(),
    }
    try:
        checkpoint.save(out, model, record)
    except OSError as error:
        raise not_writable(out, error) from error
    return report


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except DAMAGED as error:
        raise UserError(
            f"--tokenizer {name} is neither a folder with a tokenizer nor a model that the hub gives: correct it.",
            code="no-tokenizer",
            field="--tokenizer",
            value=name,
        ) from error
    require_fast(tokenizer, name, "--tokenizer")
    return tokenizer
