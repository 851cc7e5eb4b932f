"""Searches without any training: a spec to build a study from, and one that MLflow holds as the platform logs it."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

import tune_spaces
from brgsa_platform.config import RunConfig, load_config, merge, parse_overrides
from brgsa_platform.search import report as search_report
from brgsa_platform.search.spec import SearchMethod, SearchSpec, trial_name
from brgsa_platform.tracking import client as tracking

EPOCHS = 6
POINTS = (
    {"model.bank.size": 256, "loss.temperature": 0.05, "data.style": "positives"},
    {"model.bank.size": 1024, "loss.temperature": 0.12, "data.style": "findings"},
    {"model.bank.size": 64, "loss.temperature": 0.4, "data.style": "findings"},
    {"model.bank.size": 4096, "loss.temperature": 0.02, "data.style": "positives"},
)
REACHED = (0.78, 0.84, 0.60, 0.70)
ENDS = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def make_spec(
    parameters: Sequence[tune_spaces.Parameter], epochs: int = 9, data: str = "store-1", **method: Any
) -> SearchSpec:
    """A search over these parameters with the demo's preset as its base.

    Args:
        epochs: of a whole trial.
        data: the store's fingerprint.
        method: fields of `SearchMethod`.
    """
    base = load_config("demo", overrides=[f"train.epochs={epochs}"])
    return SearchSpec(["space"], parameters, base, "store", data, "demo", SearchMethod(**method))


def make_search(folder: Path) -> dict[str, str]:
    """Log a search of four trials, a training and an evaluation to MLFLOW_TRACKING_URI; run folders below `folder`.

    Returns:
        run name → run id.
    """
    base = load_config("demo")
    tags = search_report.search_tags("demo", "store-fingerprint", ["cmki"])
    ids = {}
    (folder / "searches" / "cmki").mkdir(parents=True)
    with tracking.run("tune", name="cmki", params={"trials": 4, "seed": 0, "base": base.to_dict()}, tags=tags) as run:
        ids["cmki"] = run.run_id
        study = _study()
        for trial in study.trials:
            name = trial_name(trial.number)
            config = RunConfig.from_tree(
                merge(base.to_dict(), parse_overrides(f"{key}={value}" for key, value in trial.params.items()))
            )
            out = folder / "searches" / "cmki" / "trials" / name
            ids[name] = _log_training("trial", config, trial, out, {**tags, "brgsa.out": name}, run.run_id)
        search_report.log_search(run, study, folder / "searches" / "cmki")
    slow = RunConfig.from_tree(merge(base.to_dict(), {"optim": {"lr": 3e-5}}))
    tags = {"brgsa.preset": "demo", "brgsa.data": "store-fingerprint", "brgsa.out": "first"}
    ids["first"] = _log_training("train", slow, study.trials[0], folder / "runs" / "first", tags, None)
    with tracking.run("evaluate", name="first/epoch-0006 on test", params={"split": "test"}) as run:
        run.log_metrics({"auroc/macro": 0.77})
    return ids


def _study() -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="maximize")
        study.set_metric_names(["val/auroc"])
    for point, reached, end in zip(POINTS, REACHED, ENDS, strict=True):
        study.enqueue_trial(point)
        trial = study.ask()
        trial.suggest_int("model.bank.size", 64, 8192, log=True)
        trial.suggest_float("loss.temperature", 0.01, 0.5, log=True)
        trial.suggest_categorical("data.style", ["report", "findings", "positives"])
        epochs = EPOCHS if end == TrialState.COMPLETE else 2
        for epoch in range(1, epochs + 1):
            trial.report(reached - 0.2 * 0.5**epoch, epoch)
        if end != TrialState.COMPLETE:
            trial.set_user_attr("reason", "out of memory" if end == TrialState.FAIL else "below the median at epoch 2")
        complete = end == TrialState.COMPLETE
        study.tell(trial, reached - 0.2 * 0.5**EPOCHS if complete else None, state=end)
    return study


def _log_training(
    verb: str,
    config: RunConfig,
    trial: optuna.trial.FrozenTrial,
    out: Path,
    tags: dict[str, str],
    parent: str | None,
) -> str:
    ends = {TrialState.PRUNED: KeyboardInterrupt, TrialState.FAIL: MemoryError}
    logged = tracking.run(verb, name=out.name, params=config.to_dict(), tags=tags, parent=parent)
    with contextlib.suppress(KeyboardInterrupt, MemoryError), logged as run:
        for epoch, value in trial.intermediate_values.items():
            run.log_metrics({"val/auroc": value, "val/loss": 2.5 - value, "train/loss": 2.2 - value}, step=epoch)
        if trial.state in ends:
            raise ends[trial.state]
        run.log_metrics({"best/auroc": trial.value, "best/epoch": EPOCHS}, step=EPOCHS)
    out.mkdir(parents=True)
    (out / "run.json").write_text(json.dumps({"mlflow_run_id": run.run_id, "store": "/data/store"}))
    return run.run_id
