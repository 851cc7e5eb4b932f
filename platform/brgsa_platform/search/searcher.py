"""Between Tune and Optuna: Tune runs the trials, the study says what they are and when they stop.

Ray's own OptunaSearch is not used: with it pruned trials count as complete, a resumed search runs its unfinished trials
under new numbers, and two objectives cannot be had together with conditions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from brgsa_platform.search import study as studies
from brgsa_platform.search.spec import Limits, SearchSpec
from brgsa_platform.search.study import BEST_EPOCH, EPOCHS, REASON, SCORES, VALUES

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import Trial

PRUNED_BECAUSE = {
    "asha": "not in the best third",
    "hyperband": "not in the best third of its bracket",
    "median": "below the median",
}


@dataclass
class Search:
    """A study at work: draws trials, takes their epochs, prunes them and ends them.

    A trial counts by its best epoch in the first objective.

    Attributes:
        spec: what is searched, and how.
        study, storage: where trials are recorded; see `study.open_study`.
        limits: when no more trials are started.
        running: Tune's id of a trial → the trial.
    """

    spec: SearchSpec
    study: Study
    storage: BaseStorage
    limits: Limits
    running: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.objectives = self.spec.method.objectives
        self.trial_epochs = self.spec.base.train.epochs
        self._started = time.monotonic()
        self._pruned: set[str] = set()
        own = studies.own_trials(self.study)
        # Trials that a killed driver left running are run again under their numbers.
        self._left = [trial.number for trial in own if trial.state == TrialState.RUNNING]
        known = sum(studies.WARM_START_SOURCE in trial.user_attrs for trial in self.study.get_trials(deepcopy=False))
        self.study.pruner = studies.make_pruner(self.spec.method.pruner, self.trial_epochs, known)

    def next(self, tune_id: str) -> dict[str, Any] | None:
        """The next trial as {"number": …, "values": value by field}; None where no more are to be started."""
        if self.ended_because():
            return None
        trial = self._reopened(self._left.pop(0)) if self._left else self._asked()
        if trial is None:
            return None
        values = studies.draw(trial, self.spec.parameters)
        self.running[tune_id] = trial
        return {"number": trial.number, "values": values}

    def epoch(self, tune_id: str, metrics: Mapping[str, Any]) -> bool:
        """Record an epoch's metrics; whether the trial is to stop.

        Args:
            metrics: the epoch's report: `epoch`, from 1, and each objective. A resumed training may report an epoch again.
        """
        trial = self.running[tune_id]
        epoch = int(metrics["epoch"])
        if epoch > trial.user_attrs.get(EPOCHS, 0):
            self._record(trial, epoch, [float(metrics[objective]) for objective in self.objectives])
        if len(self.objectives) == 1 and epoch < self.trial_epochs and trial.should_prune():
            self._pruned.add(tune_id)
            trial.set_user_attr(REASON, f"{PRUNED_BECAUSE[self.spec.method.pruner]} at epoch {epoch}")
            return True
        reason = self._budget_spent()
        if reason:
            trial.set_user_attr(REASON, reason)
        return bool(reason)

    def finished(self, tune_id: str) -> None:
        """The trial ran to its end, or was told to stop."""
        trial = self.running.pop(tune_id)
        values = trial.user_attrs.get(VALUES)
        if values is None:
            self._fail(trial, "it ended without an epoch that has a score")
        elif tune_id in self._pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif unmeasured := [
            name for name, value in zip(self.objectives, values, strict=True) if not math.isfinite(value)
        ]:
            self._fail(trial, f"its {unmeasured[0]} is no finite number")
        else:
            self.study.tell(trial, values)

    def failed(self, tune_id: str, reason: str) -> None:
        """The trial's code or its process failed."""
        trial = self.running.pop(tune_id, None)
        if trial is not None:
            self._fail(trial, reason)

    def ended_because(self) -> str:
        """Why no more trials are started; "" while they are."""
        return self._budget_spent() or self._patience_spent()

    def epochs_spent(self) -> int:
        """Epochs of all trials of this search."""
        return sum(int(trial.user_attrs.get(EPOCHS, 0)) for trial in studies.own_trials(self.study))

    def _asked(self) -> Trial | None:
        """A new trial of the study; None where the search has all of its trials, or its grid is used up."""
        started = len(studies.own_trials(self.study))
        if self.limits.trials is not None and started >= self.limits.trials:
            return None
        self.study.sampler = studies.make_sampler(self.spec.method, self.spec.parameters, started)
        return None if studies.grid_exhausted(self.study) else self.study.ask()

    def _reopened(self, number: int) -> Trial:
        """An unfinished trial. Where the driver died in the midst of its draw, the rest is drawn as it would have been."""
        before = sum(trial.number < number for trial in studies.own_trials(self.study))
        self.study.sampler = studies.make_sampler(self.spec.method, self.spec.parameters, before)
        return studies.reopen_trial(self.study, self.storage, number)

    def _record(self, trial: Trial, epoch: int, values: list[float]) -> None:
        score = values[0]
        scores = trial.user_attrs.get(SCORES, [])
        best = max((s for s in scores if math.isfinite(s)), default=-math.inf)
        trial.set_user_attr(SCORES, [*scores, score])
        trial.set_user_attr(EPOCHS, epoch)
        if score > best:
            trial.set_user_attr(BEST_EPOCH, epoch)
            trial.set_user_attr(VALUES, values)
        if len(values) == 1:
            # Pruned by its best epoch, by which it counts: on a small validation split a good trial's curve dips, too.
            trial.report(max(score, best) if math.isfinite(score) else score, epoch)

    def _budget_spent(self) -> str:
        limits = self.limits
        if limits.seconds is not None and time.monotonic() - self._started > limits.seconds:
            return "the time is over"
        if limits.epochs is not None and self.epochs_spent() + self._ended_without_epoch() >= limits.epochs:
            return "the epochs are spent"
        return ""

    def _ended_without_epoch(self) -> int:
        """Trials that failed before their first epoch. Each counts as one: where all do so, the search ends nevertheless."""
        own = studies.own_trials(self.study)
        return sum(trial.state.is_finished() and not trial.user_attrs.get(EPOCHS) for trial in own)

    def _patience_spent(self) -> str:
        if self.limits.patience is None or len(self.objectives) > 1:
            return ""
        ended = [trial for trial in studies.own_trials(self.study) if trial.state.is_finished()]
        best = studies.best_trial(ended)
        # Failed trials count too, and all that ended where none is complete: a search in which all fail ends.
        since = sum(best is None or trial.number > best.number for trial in ended)
        return f"the best has not moved for {since} trials" if since >= self.limits.patience else ""

    def _fail(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)


class StudySearcher(Searcher):  # type: ignore[misc, unused-ignore]
    """A `Search` in the form in which Tune asks for trials."""

    def __init__(self, search: Search) -> None:
        super().__init__(metric=search.objectives[0], mode="max")
        self.search = search

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's number and values, or that there are no more."""
        drawn = self.search.next(trial_id)
        return Searcher.FINISHED if drawn is None else drawn

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End a trial in the study. A failure is told by `watch`, which knows the reason."""
        if not error and trial_id in self.search.running:
            self.search.finished(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study lies in its storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study lies in its storage."""


class StudyScheduler(FIFOScheduler):  # type: ignore[misc, unused-ignore]
    """Trials stop where the study prunes them, or where the budget ends."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on after this epoch."""
        return str(TrialScheduler.STOP if self.search.epoch(trial.trial_id, result) else TrialScheduler.CONTINUE)
