"""A running search's table: what a terminal shows, what a log file gets, and the time that it says is left."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from brgsa_platform.search import table as module
from brgsa_platform.search.spec import Limits
from brgsa_platform.search.table import TrialLine, search_table, short_names

PARAMS = {"model.bank.size": 512, "loss.temperature": 0.0712345, "data.style": "positives[0]"}


def terminal(width: int = 140) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=40, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rendered(table: module.SearchTable, width: int = 140) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table)
    return console.export_text().splitlines()


def test_a_terminal_shows_the_running_the_ended_and_the_best() -> None:
    console = terminal()
    with search_table(Limits(24), 8, console=console) as table:
        table.update(TrialLine(0, PARAMS, 8, 8, 0.80, 0.93, "complete"))
        for number in range(1, 13):
            table.update(TrialLine(number, PARAMS, 8, 8, 0.7, 0.71, "complete"))
        table.update(TrialLine(13, PARAMS, 3, 8, 0.6, 0.6, "pruned", "below the median at epoch 3"))
        table.update(TrialLine(14, PARAMS, 1, 8, state="failed", reason="out of memory"))
        table.update(TrialLine(15, PARAMS, 2, 8, 0.755, 0.76))
        lines = rendered(table)
    assert "15 of 24 trials done (1 running, 1 pruned, 1 failed), best AUROC 0.930 in trial 0" in lines[0]
    assert f"{13 * 8 + 3 + 1 + 2} epochs" in lines[0]
    assert "left" in lines[0]
    numbers = [line.split()[0] for line in lines[1:] if line[:6].strip().lstrip("*").isdecimal()]
    assert numbers == ["*0", "7", "8", "9", "10", "11", "12", "13", "14", "15"]
    (running,) = (line for line in lines if line.split()[:1] == ["15"])
    assert running.split() == [
        "15", "bank.size=512", "temperature=0.0712", "style=positives[0]", "2/8", "0.755", "0.760", "running",
    ]  # fmt: skip
    assert any("pruned: below the median at epoch 3" in line for line in lines)
    assert "16" not in numbers
    assert "best AUROC 0.930" in text(console)


def test_a_narrow_terminal_cuts_parameters_and_keeps_the_figures() -> None:
    with search_table(Limits(2), 8, console=terminal(60)) as table:
        table.update(TrialLine(0, {**PARAMS, "optim.lr": 1e-4}, 8, 8, 0.80, 0.93, "complete"))
        lines = rendered(table, 60)
    (row,) = (line for line in lines if line.startswith("   *0") or line.strip().startswith("*0"))
    assert "…" in row
    assert "0.930" in row
    assert all(len(line) <= 60 for line in lines)


def test_elsewhere_it_says_a_line_now_and_then_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=80)
    with search_table(Limits(3), 4, console=console) as table:
        for epoch in range(1, 5):
            table.update(TrialLine(0, PARAMS, epoch, 4, 0.1 * epoch, 0.1 * epoch))
        assert text(console) == ""
        now += 6.0
        table.update(TrialLine(1, PARAMS, 1, 4, 0.6, 0.6))
        assert text(console).count("\n") == 1
        assert "best AUROC 0.600 in trial 1" in text(console)
        table.update(TrialLine(0, PARAMS, 4, 4, 0.3, 0.4, "complete"))
        lines_before = text(console).count("\n")
    last = text(console).splitlines()[-1]
    assert text(console).count("\n") == lines_before + 1
    assert last.startswith("search: 1 of 3 trials done (1 running), best AUROC 0.400 in trial 0, 5 epochs")


def test_time_left_follows_today_s_speed_and_what_pruning_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    earlier = [TrialLine(0, PARAMS, 10, 10, 0.8, 0.8, "complete"), TrialLine(1, PARAMS, 2, 10, 0.5, 0.5, "pruned")]
    with search_table(Limits(6), 10, before=earlier, console=Console(file=io.StringIO(), width=80)) as table:
        assert table.seconds_left() is None  # nothing is known of today's speed
        assert "left" not in table.headline()
        now += 30
        table.update(TrialLine(2, PARAMS, 3, 10, 0.7, 0.7))
        # 10 s an epoch; trials that ended ran 6 on average: 3 more here and 6 in each of the three to come
        assert table.seconds_left() == pytest.approx(10 * (3 + 3 * 6))
        assert table.headline().endswith("15 epochs, 3 min 30 s left")
        for number in range(2, 6):
            table.update(TrialLine(number, PARAMS, 10, 10, 0.7, 0.7, "complete"))
        assert table.seconds_left() == 0
        assert table.headline() == table.summary()


def test_time_left_follows_the_limit_that_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    quiet = Console(file=io.StringIO(), width=80)
    with search_table(Limits(epochs=20, seconds=500.0), 10, console=quiet) as table:
        now += 30
        table.update(TrialLine(0, PARAMS, 3, 10, 0.7, 0.7))
        assert table.seconds_left() == pytest.approx(10 * 17)  # not the 470 s to the end of the time
        table.update(TrialLine(0, PARAMS, 10, 10, 0.7, 0.7, "complete"))
        now += 465
        assert table.seconds_left() == pytest.approx(5)
        assert table.headline().startswith("search: 1 trials done, best AUROC 0.700")
    with search_table(
        Limits(patience=3), 10, console=quiet
    ) as table:  # ends when the best has not moved: nobody knows when
        now += 30
        table.update(TrialLine(0, PARAMS, 3, 10, 0.7, 0.7))
        assert table.seconds_left() is None


def test_names_lose_their_section_where_they_stay_apart() -> None:
    assert short_names(["model.bank.size", "loss.weight", "optim.weight", "seed"]) == {
        "model.bank.size": "bank.size",
        "loss.weight": "loss.weight",
        "optim.weight": "optim.weight",
        "seed": "seed",
    }
