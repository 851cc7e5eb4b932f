"""What becomes of Tune's events in the study, with Tune's own trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.exceptions import ActorDiedError
from ray.train._internal.storage import StorageContext
from ray.tune import TuneError
from ray.tune.experiment import Trial
from searches import make_spec

import tune_spaces
from brgsa_platform.search import study as studies
from brgsa_platform.search.searcher import Search
from brgsa_platform.search.spec import Limits
from brgsa_platform.search.watch import Watch

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def search(tmp_path: Path) -> Search:
    spec = make_spec(tune_spaces.load(["cmki-small"]), epochs=3)
    storage = studies.open_storage(tmp_path, spec)
    return Search(spec, studies.open_study("s", spec, storage), storage, Limits(trials=4))


def tunes(search: Search, folder: Path) -> Trial:
    """The study's next trial, as Tune has it: its files lie in a staging folder first, in the storage later."""
    trial = Trial(
        "run", stub=True, storage=StorageContext(str(folder / "storage"), "search", trial_dir_name=folder.name)
    )
    drawn = search.next(trial.trial_id)
    assert drawn is not None
    trial.config = drawn
    Path(str(trial.local_path)).mkdir(parents=True, exist_ok=True)
    return trial


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ActorDiedError(), "its process was killed"),
        (TuneError("Traceback:\n  torch.cuda.OutOfMemoryError: CUDA out of memory"), "out of memory"),
        (TuneError("Traceback:\n  ...\nbrgsa.errors.UserError: The loss is inf.\n"), "The loss is inf."),
        (TuneError("Traceback:\n  ...\nValueError: no\n"), "ValueError: no"),
    ],
    ids=["killed", "memory", "refused", "error"],
)
def test_a_failure_is_recorded_at_once(search: Search, tmp_path: Path, error: TuneError, reason: str) -> None:
    trial = tunes(search, tmp_path)
    trial.handle_error(error)
    assert trial.get_error() is None  # the storage does not have it yet
    Watch(search, tmp_path).on_trial_error(0, [trial], trial)
    (recorded,) = studies.own_trials(search.study)
    assert (recorded.state, recorded.user_attrs[studies.REASON]) == (TrialState.FAIL, reason)


def test_what_an_earlier_start_knew_is_shown_again(search: Search, tmp_path: Path) -> None:
    """The reason of a trial that failed, and the best epoch of one that the killed driver left running."""
    failed = tunes(search, tmp_path)
    search.failed(failed.trial_id, "out of memory")
    left = tunes(search, tmp_path)
    search.epoch(left.trial_id, {"epoch": 1, "val/auroc": 0.9})
    again = Search(search.spec, search.study, search.storage, search.limits)
    watch = Watch(again, tmp_path)
    assert [(line.number, line.state, line.reason) for line in watch._before()] == [(0, "failed", "out of memory")]
    resumed = tunes(again, tmp_path)
    watch.on_trial_start(0, [resumed], resumed)
    watch.on_trial_result(0, [resumed], resumed, {"epoch": 2, "val/auroc": 0.4})
    line = watch._lines[resumed.trial_id]
    assert (line.number, line.value, line.best) == (1, 0.4, 0.9)
