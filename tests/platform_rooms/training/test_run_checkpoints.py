"""A run's checkpoints: the best and the last stay, the newest is found, and a wrong folder is named."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from brgsa_platform.config import TrainSection
from brgsa_platform.training import run_checkpoints


def add(run: Path, epoch: int) -> Path:
    folder = run_checkpoints.folder_of(run, epoch)
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    return folder


def train(run: Path, scores: list[float], keep: int) -> list[dict[str, Any]]:
    """What a training does at the end of each epoch."""
    history: list[dict[str, Any]] = []
    for epoch, score in enumerate(scores, start=1):
        add(run, epoch)
        history.append({"epoch": epoch, "score": score})
        run_checkpoints.keep_best(run, history, keep)
    return history


def epochs(run: Path) -> list[int]:
    return [epoch for epoch, _ in run_checkpoints.whole(run)]


def best(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / run_checkpoints.FOLDER / "best.json").read_text())
    return found


def test_the_best_and_the_last_stay(tmp_path: Path) -> None:
    train(tmp_path, [0.5, 0.9, 0.6, 0.8, 0.7, 0.1], keep=2)
    assert epochs(tmp_path) == [2, 4, 6]
    assert best(tmp_path) == {"checkpoint": "epoch-0002", "epoch": 2, "score": 0.9}
    assert run_checkpoints.latest(tmp_path) == run_checkpoints.folder_of(tmp_path, 6)
    assert run_checkpoints.resolve(tmp_path) == run_checkpoints.folder_of(tmp_path, 2)
    # Nothing lies about: no file aside, no folder half removed.
    names = sorted(path.name for path in (tmp_path / run_checkpoints.FOLDER).iterdir())
    assert names == ["best.json", "epoch-0002", "epoch-0004", "epoch-0006"]


@pytest.mark.parametrize(
    ("metrics", "select", "score"),
    [
        ({"train/loss": 3.0, "val/loss": 2.0, "val/auroc": 0.7}, "loss", -2.0),
        ({"train/loss": 3.0, "val/loss": 2.0, "val/auroc": 0.7}, "auroc", 0.7),
        ({"train/loss": 3.0, "val/loss": 2.0}, "auroc", -2.0),  # nothing is labelled
        ({"train/loss": 3.0}, "loss", -3.0),
    ],
)
def test_what_an_epoch_is_worth(metrics: dict[str, float], select: str, score: float) -> None:
    assert run_checkpoints.score_of(metrics, select) == score


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, -math.inf]), max_size=12), st.integers(1, 4))
def test_a_training_stops_when_so_many_epochs_were_no_better(scores: list[float], stop_after: int) -> None:
    config = TrainSection(stop_after=stop_after, epochs=12)
    history = [{"epoch": epoch, "score": score} for epoch, score in enumerate(scores, start=1)]
    numbers = [-math.inf if math.isnan(score) else score for score in scores]
    # The last ones were no better if the best of all, first come, lies before them.
    first = numbers.index(max(numbers)) + 1 if numbers and max(numbers) > -math.inf else 0
    expected = len(scores) >= 12 or len(scores) - first >= stop_after
    assert run_checkpoints.is_over(history, config) == expected
    assert not run_checkpoints.is_over(history[:11], TrainSection(stop_after=None, epochs=12))


def test_of_equal_scores_the_later_is_best(tmp_path: Path) -> None:
    train(tmp_path, [0.5, 0.5, 0.4], keep=1)
    assert best(tmp_path)["epoch"] == 2
    assert epochs(tmp_path) == [2, 3]


def test_a_score_that_is_no_number_is_never_best(tmp_path: Path) -> None:
    train(tmp_path, [math.nan, 0.4, math.nan, 0.2, math.nan], keep=1)
    assert best(tmp_path)["epoch"] == 2
    assert epochs(tmp_path) == [2, 5]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan]), min_size=1, max_size=12), st.integers(1, 4))
def test_kept_is_top_k_and_last_whatever_the_scores(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float], keep: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    train(run, scores, keep)
    # Worst first; NaN counts as -inf; of equal ones the later is better.
    order = sorted(range(1, len(scores) + 1), key=lambda e: (-1 if math.isnan(scores[e - 1]) else scores[e - 1], e))
    assert epochs(run) == sorted({*order[-keep:], len(scores)})
    assert best(run)["epoch"] == order[-1]


def test_epochs_that_are_gone_are_not_chosen(tmp_path: Path) -> None:
    history = train(tmp_path, [0.9, 0.5, 0.4], keep=2)
    shutil.rmtree(run_checkpoints.folder_of(tmp_path, 1))
    run_checkpoints.keep_best(tmp_path, history, keep=2)
    assert best(tmp_path)["epoch"] == 2
    assert run_checkpoints.resolve(tmp_path).is_dir()


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert run_checkpoints.whole(tmp_path) == []
    assert run_checkpoints.latest(tmp_path) is None
    (tmp_path / run_checkpoints.FOLDER).mkdir()
    run_checkpoints.keep_best(tmp_path, [{"epoch": 1, "score": 0.5}], keep=1)
    assert not (tmp_path / run_checkpoints.FOLDER / "best.json").exists()


def test_only_whole_ones_of_the_run_count(tmp_path: Path) -> None:
    for epoch in (2, 10, 9):
        add(tmp_path, epoch)
    folder = tmp_path / run_checkpoints.FOLDER
    (folder / ".epoch-0011.1a2b3c4d").mkdir()  # written aside when the run was killed
    (folder / "epoch-0012-good").mkdir()  # a user's copy
    assert epochs(tmp_path) == [2, 9, 10]
    assert run_checkpoints.latest(tmp_path) == folder / "epoch-0010"


def test_removing_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = train(tmp_path, [0.9, 0.5], keep=1)
    add(tmp_path, 3)

    def ends(path: Path) -> None:
        (Path(path) / "model.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(run_checkpoints.shutil, "rmtree", ends)
    with pytest.raises(KeyboardInterrupt):
        run_checkpoints.keep_best(tmp_path, [*history, {"epoch": 3, "score": 0.4}], keep=1)
    assert epochs(tmp_path) == [1, 3]
    assert all((folder / "model.json").is_file() for _, folder in run_checkpoints.whole(tmp_path))


def test_a_checkpoint_is_found_from_itself_or_its_run(tmp_path: Path) -> None:
    train(tmp_path, [0.9, 0.5], keep=1)
    last = run_checkpoints.folder_of(tmp_path, 2)
    assert run_checkpoints.resolve(last) == last
    assert run_checkpoints.resolve(str(last)) == last
    assert run_checkpoints.resolve(tmp_path) == run_checkpoints.folder_of(tmp_path, 1)


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with refused("not-a-checkpoint", field=str(path)):
            run_checkpoints.resolve(path)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "unreadable-json"),
        ("[]", "unreadable-json"),
        ("{}", "best-not-a-checkpoint"),
        ('{"checkpoint": "../../elsewhere"}', "best-not-a-checkpoint"),
        ('{"checkpoint": "/etc"}', "best-not-a-checkpoint"),
        ('{"checkpoint": "epoch-0009"}', "best-not-a-checkpoint"),
    ],
)
def test_a_damaged_pointer_to_the_best(tmp_path: Path, content: str, code: str) -> None:
    train(tmp_path, [0.5], keep=1)
    file = tmp_path / run_checkpoints.FOLDER / "best.json"
    file.write_text(content)
    with refused(code, field=str(file)):
        run_checkpoints.resolve(tmp_path)


def test_a_checkpoint_elsewhere_is_not_followed(tmp_path: Path) -> None:
    train(tmp_path / "run", [0.5], keep=1)
    train(tmp_path / "other", [0.5], keep=1)
    elsewhere = "../../other/checkpoints/epoch-0001"
    assert (tmp_path / "run" / run_checkpoints.FOLDER / elsewhere / "model.json").is_file()
    (tmp_path / "run" / run_checkpoints.FOLDER / "best.json").write_text(json.dumps({"checkpoint": elsewhere}))
    with refused("best-not-a-checkpoint", value=elsewhere):
        run_checkpoints.resolve(tmp_path / "run")


def add_step(run: Path, epoch: int, step: int) -> Path:
    folder = run_checkpoints.folder_of(run, epoch, step)
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    run_checkpoints.forget_steps(run)
    return folder


def test_within_an_epoch_the_last_is_kept_to_go_on_from(tmp_path: Path) -> None:
    add_step(tmp_path, 0, 3)
    last = add_step(tmp_path, 0, 10)
    assert run_checkpoints.latest(tmp_path) == last
    assert [path.name for path in (tmp_path / run_checkpoints.FOLDER).iterdir()] == ["epoch-0000-step-00000010"]
    assert run_checkpoints.whole(tmp_path) == []

    history = train(tmp_path, [0.5, 0.9], keep=1)
    run_checkpoints.forget_steps(tmp_path)
    assert run_checkpoints.latest(tmp_path) == run_checkpoints.folder_of(tmp_path, 2)
    assert epochs(tmp_path) == [2]

    last = add_step(tmp_path, 2, 41)
    run_checkpoints.keep_best(tmp_path, history, keep=1)
    assert run_checkpoints.latest(tmp_path) == last
    assert epochs(tmp_path) == [2]
    assert run_checkpoints.resolve(tmp_path) == run_checkpoints.folder_of(tmp_path, 2)  # never the best


def test_a_run_in_its_first_epoch_has_no_best(tmp_path: Path) -> None:
    last = add_step(tmp_path, 0, 7)
    with refused("run-without-epoch", field=str(tmp_path), value=last.name):
        run_checkpoints.resolve(tmp_path)
    assert run_checkpoints.resolve(last) == last


def test_mending_points_to_the_best_and_removes_what_is_not_kept(tmp_path: Path) -> None:
    """Epoch 3 was saved and the run killed: best.json still points to an older epoch, and nothing was removed."""
    history = train(tmp_path, [0.5, 0.4], keep=1)
    add_step(tmp_path, 2, 41)
    history.append({"epoch": 3, "score": 0.9})
    (add(tmp_path, 3) / "training.json").write_text(json.dumps({"history": history}))
    assert run_checkpoints.mend(tmp_path, keep=1) == history
    assert best(tmp_path) == {"checkpoint": "epoch-0003", "epoch": 3, "score": 0.9}
    assert [path.name for path in (tmp_path / run_checkpoints.FOLDER).glob("epoch-*")] == ["epoch-0003"]
    assert run_checkpoints.mend(tmp_path, keep=1) == history


def test_nothing_is_mended_in_a_run_that_has_not_begun(tmp_path: Path) -> None:
    assert run_checkpoints.mend(tmp_path, keep=1) == []
    assert list(tmp_path.iterdir()) == []
