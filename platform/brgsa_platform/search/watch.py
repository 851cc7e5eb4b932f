"""Tune's events of a running search, passed on to the study and to the table on the terminal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from optuna.trial import FrozenTrial
from ray.tune import Callback

from brgsa_platform.runtime.placement_groups import PlacementGroupReaper
from brgsa_platform.search.report import STATES
from brgsa_platform.search.searcher import Search
from brgsa_platform.search.study import EPOCHS, REASON, SCORES, own_trials
from brgsa_platform.search.table import SearchTable, TrialLine, search_table
from brgsa_platform.search.trials import trial_folder

# In the errors of Ray's monitor and of CUDA; of torch on a CPU; of Python and NumPy.
OUT_OF_MEMORY = ("OutOfMemory", "can't allocate memory", "MemoryError")
PROCESS_DIED = "actor died"


class Watch(Callback):  # type: ignore[misc, unused-ignore]
    """A Tune callback around a search; draws while it is entered.

    Args:
        folder: the search's.
    """

    def __init__(self, search: Search, folder: Path) -> None:
        self.search = search
        self.folder = folder
        self._reaper = PlacementGroupReaper()
        self._lines: dict[str, TrialLine] = {}
        self._stack = contextlib.ExitStack()
        self._table: SearchTable | None = None

    def __enter__(self) -> Self:
        table = search_table(self.search.limits, self.search.trial_epochs, before=self._before())
        self._table = self._stack.enter_context(table)
        return self

    def __exit__(self, *error: object) -> None:
        self._reaper.sweep(grace=0)
        self._stack.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # Tune pickles its callbacks; nothing reads the copy

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Show a trial that begins, or goes on after a kill with what its epochs had reached."""
        self._show(trial, best=_best(self._recorded(trial).user_attrs.get(SCORES, [])))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Show a trial's epoch."""
        before = self._lines.get(trial.trial_id)
        value = float(result[self.search.objectives[0]])
        best = _best([value] if before is None or before.best is None else [before.best, value])
        self._show(trial, epoch=int(result["epoch"]), value=value, best=best)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Show how a trial ended."""
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record a failure before the next trial is drawn: with the driver killed a little later, it is not run again."""
        # Where Tune has just written the error; `trial.get_error` reads the storage, to which it is copied seconds later.
        error = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        self.search.failed(trial.trial_id, reason_of(error))
        self._ended(trial)

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Release what ended trials still hold."""
        self._reaper.sweep()

    def _ended(self, trial: Any) -> None:
        recorded = self._recorded(trial)
        self._reaper.add(trial_folder(self.folder, recorded.number))
        self._show(trial, state=STATES[recorded.state.name], reason=recorded.user_attrs.get(REASON, ""))

    def _recorded(self, trial: Any) -> FrozenTrial:
        """The study's record of a trial of Tune's."""
        (recorded,) = (t for t in own_trials(self.search.study) if t.number == trial.config["number"])
        return recorded

    def _show(self, trial: Any, **changed: Any) -> None:
        new = TrialLine(trial.config["number"], trial.config["values"], epochs=self.search.trial_epochs)
        line = self._lines[trial.trial_id] = replace(self._lines.get(trial.trial_id, new), **changed)
        if self._table is not None:
            self._table.update(line)

    def _before(self) -> list[TrialLine]:
        """The trials that ended before this start of the search."""
        return [
            TrialLine(
                number=trial.number,
                params=trial.params,
                epoch=int(trial.user_attrs.get(EPOCHS, 0)),
                epochs=self.search.trial_epochs,
                best=_best(trial.user_attrs.get(SCORES, [])),
                state=STATES[trial.state.name],
                reason=trial.user_attrs.get(REASON, ""),
            )
            for trial in own_trials(self.search.study)
            if trial.state.is_finished()
        ]


def reason_of(error: str) -> str:
    """Why a trial failed, in one line: its training's refusal, or how its process died.

    Args:
        error: the text that Tune keeps of it.
    """
    if any(words in error for words in OUT_OF_MEMORY):
        return "out of memory"
    if PROCESS_DIED in error:
        return "its process was killed"
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1].removeprefix("brgsa.errors.UserError: ")


def _best(scores: Iterable[float]) -> float | None:
    """The best of the scores that are numbers."""
    return max((score for score in scores if math.isfinite(score)), default=None)
