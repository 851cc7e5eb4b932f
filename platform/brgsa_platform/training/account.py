"""What MLflow's readers are told of a training: its kept checkpoints as models, and a description."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brgsa.errors import UserError
from brgsa.files import read_json
from brgsa_platform.config import RunConfig
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking.lineage import Dataset, KeptModel, model_name
from brgsa_platform.training import run_checkpoints


def kept_models(out: Path, config: RunConfig, steps: int) -> list[KeptModel]:
    """The checkpoints that a run's folder keeps at the ends of epochs, of `steps` each."""
    best = run_checkpoints.resolve(out)
    return [
        KeptModel(model_name(out.name, path.name), epoch * steps, path == best, {"epoch": epoch, **config.to_dict()})
        for epoch, path in run_checkpoints.whole(out)
    ]


def run_id_of(checkpoint: Path) -> str | None:
    """The id in MLflow of a checkpoint's training, as its run's folder tells; None where there is none."""
    try:
        run_id = read_json(run_checkpoints.run_of(checkpoint) / "run.json").get("mlflow_run_id")
    except UserError:
        return None
    return str(run_id) if run_id else None


def name_of(checkpoint: Path) -> str:
    """The name of a checkpoint among MLflow's models."""
    return model_name(run_checkpoints.run_of(checkpoint).name, checkpoint.name)


def model_of(checkpoint: Path) -> str | None:
    """The id in MLflow of a checkpoint of a run's folder; None where it has none, or lies elsewhere."""
    run_id = run_id_of(checkpoint)
    return None if run_id is None else tracking.find_model(run_id, name_of(checkpoint))


def description(config: RunConfig, data: Sequence[Dataset], history: Sequence[dict[str, Any]] = ()) -> str:
    """What was done, with what, and what came out; without a history, that it has begun."""
    model, splits = config.model, ", ".join(f"{one.volumes} volumes of {one.split}" for one in data)
    bank = f" and a knowledge bank of {model.bank.size}" if model.bank.enabled else ""
    towers = f"a `{model.vision.name}` and a `{model.text.name}` tower{bank}"
    of = f" of the store `{data[0].name.partition(':')[0]}` (fingerprint `{data[0].fingerprint}`)" if data else ""
    told = [f"Training of {towers} on {splits}{of}, with texts of the style `{config.data.style}`."]
    if config.loss.supervised > 0:
        told.append("It also learns from labels: of the abnormalities that they name its figures are not zero-shot.")
    if not history:
        return "\n\n".join([*told, f"It has begun; it is to run {config.train.epochs} epochs."])
    best = max(history, key=run_checkpoints.merit)
    auroc = f", with a validation AUROC of {best['val/auroc']:.3f}" if "val/auroc" in best else ""
    told.append(f"{len(history)} of {config.train.epochs} epochs were run. The best is epoch {best['epoch']}{auroc}.")
    return "\n\n".join(told)
