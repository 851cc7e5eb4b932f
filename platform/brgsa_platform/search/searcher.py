"""Between Tune and Optuna: Tune runs the trials, the study says what they are and when they stop.

Ray's own OptunaSearch is not used: with it pruned trials count as complete, a resumed search runs its unfinished trials
under new numbers, and two goals cannot be had together with conditions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import Trial, TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

import tune_spaces
from brgsa_platform.search import study as studies

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# User attributes of a trial, as `report` reads them.
REASON, EPOCHS, BEST_EPOCH = "reason", "epochs", "best_epoch"
PRUNED_FOR = {
    "SuccessiveHalvingPruner": "not in the best third",
    "HyperbandPruner": "not in the best third of its bracket",
    "MedianPruner": "below the median",
}


@dataclass
class Limits:
    """When a search ends. None: no such limit.

    Attributes:
        trials: in the study, whatever became of them.
        seconds: of wall clock, of this run of the driver.
        epochs: of all trials together.
        patience: completed or pruned trials without a better one.
    """

    trials: int | None = None
    seconds: float | None = None
    epochs: int | None = None
    patience: int | None = None


@dataclass
class Search:
    """A study at work: draws trials, takes their epochs, prunes them and ends them.

    Attributes:
        goals: metrics of an epoch's report, to be maximised; trials count by their best epoch in the first of them.
        sampler: makes the sampler for the trial of a number.
        epochs: of a whole trial; one that has come so far is not pruned any more.
    """

    study: Study
    parameters: Sequence[tune_spaces.Parameter]
    goals: tuple[str, ...]
    limits: Limits
    sampler: Callable[[int], Any]
    epochs: int
    started: float = field(default_factory=time.monotonic)
    running: dict[str, Trial] = field(default_factory=dict)
    _left: list[FrozenTrial] = field(default_factory=list)
    _pruned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        # What a killed driver left running is run again under its number.
        self._left = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def next(self, tune_id: str) -> dict[str, Any] | None:
        """The next trial's number and values; None where no more are to be started."""
        if self.over():
            return None
        if self._left:
            trial = Trial(self.study, self._left.pop(0)._trial_id)
        else:
            number = self.started_trials()
            if self.limits.trials is not None and number >= self.limits.trials:
                return None
            self.study.sampler = self.sampler(number)
            if studies.exhausted(self.study):
                return None
            trial = self.study.ask()
        values = studies.draw(trial, self.parameters)
        self.running[tune_id] = trial
        return {"number": trial.number, "values": values}

    def epoch(self, tune_id: str, result: Mapping[str, Any]) -> bool:
        """Take an epoch's metrics; whether the trial is to stop."""
        trial = self.running[tune_id]
        epoch, score = int(result["epoch"]), float(result[self.goals[0]])
        known = self._frozen(trial)
        if epoch <= int(known.user_attrs.get(EPOCHS, 0)):
            return bool(self._out_of_budget())  # a training that goes on tells its last epoch again
        best = max((s for s in known.user_attrs.get("scores", []) if math.isfinite(s)), default=-math.inf)
        trial.set_user_attr("scores", [*known.user_attrs.get("scores", []), score])
        trial.set_user_attr(EPOCHS, epoch)
        if score > best:
            trial.set_user_attr(BEST_EPOCH, epoch)
            trial.set_user_attr("values", [float(result[goal]) for goal in self.goals])
        if len(self.goals) == 1:
            # Pruned by its best epoch, for which it counts: on a small validation split a good trial's curve dips, too.
            trial.report(max(score, best) if math.isfinite(score) else score, epoch)
            if epoch < self.epochs and trial.should_prune():
                self._pruned.add(tune_id)
                self._stop(trial, f"{PRUNED_FOR.get(type(self.study.pruner).__name__, 'pruned')} at epoch {epoch}")
                return True
        out = self._out_of_budget()
        if out:
            self._stop(trial, out)
        return bool(out)

    def finished(self, tune_id: str) -> None:
        """The trial ran to its end, or was told to stop."""
        trial = self.running.pop(tune_id)
        known = self._frozen(trial)
        values = known.user_attrs.get("values")
        if values is None:
            self._fail(trial, "it ended without an epoch")
        elif tune_id in self._pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif not all(math.isfinite(value) for value in values):
            self._fail(trial, f"its {self.goals[0]} is {values[0]}")
        else:
            self.study.tell(trial, values)

    def failed(self, tune_id: str, reason: str) -> None:
        """The trial's code or its process failed."""
        trial = self.running.pop(tune_id, None)
        if trial is not None:
            self._fail(trial, reason)

    def over(self) -> str:
        """Why no more trials are to be started; "" while they are."""
        return self._out_of_budget() or self._stuck()

    def started_trials(self) -> int:
        """Trials of this search, whatever became of them; not those that another search lent or that wait in line."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(t.state != TrialState.WAITING and studies.WARM_START_SOURCE not in t.user_attrs for t in trials)

    def epochs_spent(self) -> int:
        """Epochs of all trials of the study."""
        return sum(int(t.user_attrs.get(EPOCHS, 0)) for t in self.study.get_trials(deepcopy=False))

    def _out_of_budget(self) -> str:
        limits = self.limits
        if limits.seconds is not None and time.monotonic() - self.started > limits.seconds:
            return "the time is over"
        if limits.epochs is not None and self.epochs_spent() >= limits.epochs:
            return "the epochs are spent"
        return ""

    def _stuck(self) -> str:
        if self.limits.patience is None or len(self.goals) > 1:
            return ""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        done = [t for t in ended if t.state == TrialState.COMPLETE]
        if not done:
            return ""
        best = max(done, key=lambda t: (t.value, -t.number))
        since = sum(t.number > best.number for t in ended)
        return f"the best has not moved for {since} trials" if since >= self.limits.patience else ""

    def _stop(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr(REASON, reason)

    def _fail(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)


class StudySearcher(Searcher):  # type: ignore[misc, unused-ignore]
    """A `Search` as Tune asks for trials."""

    def __init__(self, search: Search) -> None:
        super().__init__(metric=search.goals[0], mode="max")
        self.search = search

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        found = self.search.next(trial_id)
        return Searcher.FINISHED if found is None else found

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        # A failure is told by the callback, which knows the reason.
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
        return str(TrialScheduler.STOP if self.search.epoch(trial.trial_id, result) else TrialScheduler.CONTINUE)
