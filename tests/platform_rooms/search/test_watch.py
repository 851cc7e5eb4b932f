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
