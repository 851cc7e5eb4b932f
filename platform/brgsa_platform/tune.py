"""`brgsa tune`: Tune and Optuna over trainings, each a child run of the search in MLflow."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import tune_spaces
from brgsa.errors import UserError
from brgsa_platform import checkpoints, tracking
from brgsa_platform.config import RunConfig, merge
from brgsa_platform.datasets import split_rows
from brgsa_platform.progress import progress
from brgsa_platform.session import cluster_cpus, ray_session
from brgsa_platform.spaces import check_space, drawn_config
from brgsa_platform.store import Store
from brgsa_platform.train import check_fit, train

METRIC = "val/auroc"


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its folder, the trials' table, the best trial and its preset file."""

    out: Path
    run_id: str
    trials: list[dict[str, Any]]
    best: dict[str, Any]
    preset: Path

    def summary(self) -> str:
        drawn = ", ".join(f"{key}={_shown(self.best[key])}" for key in self.best if "." in key)
        failed = sum(trial["status"] != "complete" for trial in self.trials)
        return (
            f"{self.out}: best of {len(self.trials)} trials ({failed} failed) has validation AUROC {self.best['auroc']:.3f} "
            f"with {drawn}. Next: brgsa train --preset {self.preset} --data STORE"
        )


def tune(
    store_path: Path | str,
    base: RunConfig,
    spaces: Sequence[str],
    *,
    trials: int,
    name: str | None = None,
    out: Path = Path("searches"),
    seed: int = 0,
    concurrent: int | None = None,
    preset: str | None = None,
) -> SearchResult:
    """Search `spaces` for the configuration with the best validation AUROC, starting from `base`.

    Summary styles that the store does not hold yet are computed first.

    Args:
        name: of the search and its folder below `out`; default from the spaces.
        concurrent: trials at a time; default half the cluster's CPUs (a trial and its data tasks each take one).

    Raises:
        UserError: the space does not fit the configuration or the store, the folder is taken, or no trial completed.
    """
    if trials < 1:
        raise UserError(f"--trials must be at least 1, not {trials}.")
    parameters = tune_spaces.load(spaces)
    store = Store.open(store_path)
    check_space(parameters, base)
    _check_comparable(store)
    folder = (out / (name or "+".join(Path(space).stem for space in spaces))).absolute()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"There is a search in {folder} already: choose another --name, or remove it.") from None
    except OSError as error:
        raise UserError(
            f"The search folder {folder} cannot be made ({error.strerror}): choose another --out."
        ) from error

    with ray_session():
        _summarize_missing(store, parameters)
        check_fit(store, base)
        with tracking.run(
            "tune",
            name=folder.name,
            params={"trials": trials, "seed": seed, "base": base.to_dict()},
            tags={"brgsa.space": ",".join(spaces), "brgsa.preset": preset or "", "brgsa.data": store.fingerprint},
        ) as run:
            rows = _search(store, base, parameters, folder, run.run_id, trials, seed, concurrent)
            complete = [row for row in rows if row["status"] == "complete"]
            if not complete:
                raise UserError(f"None of the {trials} trials completed; the first failed with: {rows[0]['reason']}")
            best = max(complete, key=lambda row: row["auroc"])
            best_preset = _write(folder, rows, best, base)
            run.log_metrics({"best/auroc": best["auroc"], "trials": len(rows), "trials/complete": len(complete)})
            run.log_table("trials.json", {key: [row[key] for row in rows] for key in rows[0]})
            run.log_artifact(best_preset)
            run.log_figure(_picture(complete, [p.field for p in parameters], parameters), "slices.png")
    return SearchResult(folder, run.run_id, rows, best, best_preset)


def _search(
    store: Store,
    base: RunConfig,
    parameters: Sequence[tune_spaces.Parameter],
    folder: Path,
    parent_run: str,
    trials: int,
    seed: int,
    concurrent: int | None,
) -> list[dict[str, Any]]:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from ray import tune as ray_tune
    from ray.tune import Callback, RunConfig, TuneConfig, Tuner
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    at_once = concurrent or max(1, int(cluster_cpus() // 2))
    settings = {
        "base": base.to_dict(),
        "store": store.path,
        "folder": str(folder),
        "parent_run": parent_run,
        "uri": tracking.tracking_uri(),
        "experiment": tracking.experiment_name(),
        "threads": base.train.threads or max(1, (os.cpu_count() or 1) // at_once),
    }

    class Watch(Callback):  # type: ignore[misc, unused-ignore]
        """Draws the search's progress from the results that reach the driver."""

        best = 0.0

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            self.best = max(self.best, result.get(METRIC, 0.0))
            advance(1, f"best AUROC {self.best:.3f}")

    with progress(trials * base.train.epochs, "search: epochs of all trials") as advance:
        results = Tuner(
            ray_tune.with_resources(ray_tune.with_parameters(_trial, settings=settings), {"cpu": 1}),
            tune_config=TuneConfig(
                num_samples=trials,
                max_concurrent_trials=at_once,
                search_alg=OptunaSearch(
                    space={p.field: _distribution(p) for p in parameters},
                    points_to_evaluate=_base_point(base, parameters),
                    metric=METRIC,
                    mode="max",
                    sampler=optuna.samplers.TPESampler(
                        seed=seed, multivariate=True, n_startup_trials=min(10, trials // 2)
                    ),
                    storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
                    study_name=folder.name,
                ),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=RunConfig(
                name="ray", storage_path=str(folder), verbose=0, callbacks=[Watch()], log_to_file=True
            ),
        ).fit()
    return [_row(folder, result, [p.field for p in parameters]) for result in results]


def _base_point(base: RunConfig, parameters: Sequence[tune_spaces.Parameter]) -> list[dict[str, Any]] | None:
    """The base configuration as the first trial, where it lies in the space: what is found is then no worse than it."""
    values = tracking.flatten(base.to_dict())
    point = {p.field: tune_spaces.scalar(values[p.field]) for p in parameters}
    return [point] if all(p.takes(point[p.field]) for p in parameters) else None


def _trial(drawn: dict[str, Any], settings: dict[str, Any]) -> None:
    """One trial, in a process of its own: a training that reports each epoch to Tune."""
    from ray import tune as ray_tune

    os.environ["MLFLOW_TRACKING_URI"] = settings["uri"]
    os.environ["MLFLOW_EXPERIMENT_NAME"] = settings["experiment"]
    trial_id = str(ray_tune.get_context().get_trial_id())
    # A training in this very process: starting Ray Train's workers would cost each trial 12-20 s more.
    fixed = {"train": {"workers": 0, "threads": settings["threads"]}}
    config = drawn_config(RunConfig.from_tree(merge(settings["base"], fixed)), drawn)
    train(
        settings["store"],
        config,
        out=Path(settings["folder"]) / "trials" / trial_id,
        parent_run=settings["parent_run"],
        name=trial_id,
        on_epoch=ray_tune.report,
        quiet=True,
    )


def _check_comparable(store: Store) -> None:
    """Trials are compared by validation AUROC; losses of other temperatures or styles say nothing of each other."""
    try:
        labels = split_rows(store, "validation").labels
    except UserError:
        raise UserError(
            f"{store.path} has no validation split to compare trials on: prepare it with a --validation-fraction."
        ) from None
    if not ((labels == 1).any(axis=0) & (labels == 0).any(axis=0)).any():
        raise UserError(
            f"{store.path} has no abnormality that is both present and absent in its validation split, so trials cannot be "
            "compared: add labels, or prepare it with a larger --validation-fraction."
        )


def _summarize_missing(store: Store, parameters: Sequence[tune_spaces.Parameter]) -> None:
    from brgsa_platform.summarize import summarize

    wanted = {str(choice) for p in parameters if p.field == "data.style" for choice in p.choices}
    missing = sorted(wanted - set(store.styles()) - {"report"})
    if missing:
        summarize(store.path, missing)


def _distribution(parameter: tune_spaces.Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.choices:
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.kind == "int":
        return IntDistribution(
            int(parameter.low), int(parameter.high), log=parameter.log, step=int(parameter.step or 1)
        )
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _row(folder: Path, result: Any, drawn: Sequence[str]) -> dict[str, Any]:
    """A trial's line: its values, the AUROC of its best epoch, whether it completed and otherwise why not."""
    trial_id = Path(result.path).name
    row: dict[str, Any] = {"trial": trial_id, **{field: result.config[field] for field in drawn}}
    if result.error is not None:
        reason = str(result.error).strip().splitlines()[-1]
        return {**row, "auroc": float("nan"), "epoch": 0, "status": "failed", "reason": reason}
    best = checkpoints.read_json(folder / "trials" / trial_id / checkpoints.FOLDER / "best.json")
    return {**row, "auroc": best["score"], "epoch": best["epoch"], "status": "complete", "reason": ""}


def _write(folder: Path, rows: Sequence[dict[str, Any]], best: dict[str, Any], base: RunConfig) -> Path:
    """trials.csv, and the best configuration as a file that `brgsa train --preset` takes."""
    aside = folder / f".trials.{os.getpid()}"
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, folder / "trials.csv")
    config = drawn_config(base, {key: value for key, value in best.items() if "." in key})
    aside.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    os.replace(aside, folder / "best.yaml")
    return folder / "best.yaml"


def _picture(rows: Sequence[dict[str, Any]], drawn: Sequence[str], parameters: Sequence[tune_spaces.Parameter]) -> Any:
    """Validation AUROC over each searched field."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(drawn), 3.2), layout="constrained")
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for axis, parameter in zip(axes, parameters, strict=True):
        axis.scatter([row[parameter.field] for row in rows], [row["auroc"] for row in rows], color="#0072B2")
        axis.set_xlabel(parameter.field)
        axis.grid(alpha=0.3)
        if parameter.log:
            axis.set_xscale("log")
    axes[0].set_ylabel("validation AUROC")
    return figure


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
