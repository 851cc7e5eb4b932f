"""What Tune tells of a running search, to the table on the terminal and to the study."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Self

from ray.tune import Callback

from brgsa_platform.search.report import STATES
from brgsa_platform.search.searcher import Search
from brgsa_platform.search.study import WARM_START_SOURCE
from brgsa_platform.search.table import SearchTable, TrialLine, search_table
from brgsa_platform.search.trials import trial_folder
from brgsa_platform.training.placement_groups import PlacementGroupReaper

# Of Ray's monitor and CUDA; of torch on a CPU; of Python and NumPy.
OUT_OF_MEMORY = ("OutOfMemory", "can't allocate memory", "MemoryError")


class Watch(Callback):  # type: ignore[misc, unused-ignore]
    """A Tune callback around a search; draws while it is entered.

    Args:
        epochs: of a whole trial.
        folder: the search's.
    """

    def __init__(self, search: Search, epochs: int, folder: Path) -> None:
        self.search = search
        self.epochs = epochs
        self.folder = folder
        self._reaper = PlacementGroupReaper()
        self._lines: dict[str, TrialLine] = {}
        self._stack = contextlib.ExitStack()
        self._table: SearchTable | None = None
        self._failed: list[Any] = []

    def __enter__(self) -> Self:
        limits = self.search.limits
        table = search_table(
            limits.trials or 0,
            self.epochs,
            before=self._before(),
            limit_epochs=limits.epochs,
            limit_seconds=limits.seconds,
        )
        self._table = self._stack.enter_context(table)
        return self

    def __exit__(self, *error: object) -> None:
        for trial in list(self._failed):
            self._fail(trial)
        self._reaper.sweep(grace=0)
        self._stack.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "folder": self.folder}  # Tune keeps a copy that nobody reads

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._show(trial)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        before = self._lines.get(trial.trial_id)
        value = float(result[self.search.goals[0]])
        best = value if before is None or before.best is None else max(value, before.best)
        self._show(trial, epoch=int(result["epoch"]), value=value, best=best)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._failed.append(trial)  # its error is not told yet

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        for trial in [trial for trial in self._failed if trial.get_error() is not None]:
            self._fail(trial)
        self._reaper.sweep()

    def _fail(self, trial: Any) -> None:
        self._failed.remove(trial)
        self.search.failed(trial.trial_id, reason_of(trial))
        self._ended(trial)

    def _ended(self, trial: Any) -> None:
        self._reaper.add(trial_folder(self.folder, trial.config["number"]))
        rows = [t for t in self.search.study.get_trials(deepcopy=False) if t.number == trial.config["number"]]
        state = STATES[rows[0].state.name] if rows else "failed"
        self._show(trial, state=state, reason=rows[0].user_attrs.get("reason", "") if rows else "")

    def _show(self, trial: Any, **changed: Any) -> None:
        known = self._lines.get(trial.trial_id)
        fields: dict[str, Any] = {} if known is None else dict(vars(known))
        line = TrialLine(
            **{
                **fields,
                "number": trial.config["number"],
                "params": trial.config["values"],
                "epochs": self.epochs,
                **changed,
            }
        )
        self._lines[trial.trial_id] = line
        if self._table is not None:
            self._table.update(line)

    def _before(self) -> list[TrialLine]:
        ended = [
            trial
            for trial in self.search.study.get_trials(deepcopy=False)
            if trial.state.is_finished() and WARM_START_SOURCE not in trial.user_attrs
        ]
        return [
            TrialLine(
                number=t.number,
                params=t.params,
                epoch=int(t.user_attrs.get("epochs", 0)),
                epochs=self.epochs,
                best=max(t.user_attrs.get("scores", []), default=None),
                state=STATES[t.state.name],
            )
            for t in ended
        ]


def reason_of(trial: Any) -> str:
    """Why a trial failed, in one line: what its training refused, or how its process died."""
    error = trial.get_error()
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip()
    name = type(error).__name__
    if any(words in f"{name} {text}" for words in OUT_OF_MEMORY):
        return "out of memory"
    if (
        name in ("ActorDiedError", "RayActorError", "ActorUnavailableError", "WorkerCrashedError")
        or "actor died" in text
    ):
        return "its process was killed"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("brgsa.errors.UserError: ") if lines else name
