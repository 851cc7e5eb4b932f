"""Tables on a terminal and in a pipe."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.text import Text

from brgsa_platform.runtime.console import PIPE_WIDTH, Row, print_line, print_table, stdout_console, table


def drawn(width: int, **options: object) -> list[str]:
    console = Console(width=width)
    rows = [["[b]a[/b]", "1.5"], Row([Text("of several words"), "20"], "bold", ends_section=True), ["last", ""]]
    with console.capture() as captured:
        console.print(table(["name", "AUROC"], rows, **options))  # type: ignore[arg-type]
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return lines[lines.index(next(filter(None, lines))) :]  # from the first that is not empty


def test_cells_are_shown_as_they_are() -> None:
    lines = drawn(80)
    assert lines[0].split() == ["name", "AUROC"]
    assert lines[2].split() == ["[b]a[/b]", "1.5"]
    assert lines[3].endswith("20")
    assert [line.strip() for line in lines[4:6]] == ["", "last"]  # the section has ended


def test_figures_stand_at_the_right() -> None:
    head, _, first, second, *_ = drawn(80, right=[1])
    assert len(head) == len(first) == len(second)


def test_a_narrow_terminal_breaks_all_but_the_unbroken_columns() -> None:
    assert any("of several words" in line for line in drawn(20, unbroken=[0]))
    assert not any("of several words" in line for line in drawn(20, unbroken=[1]))
    assert not any("of several words" in line for line in drawn(80, widest={0: 10}))


def test_a_title_is_above() -> None:
    assert "two [CT]" in drawn(80, title="two [CT]")[0]


def test_a_pipe_has_no_width_to_fit_into(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(table(["text"], [["x" * (PIPE_WIDTH - 10)]]))
    print_line("y " * PIPE_WIDTH + "[b]")
    out = capsys.readouterr().out
    assert "x" * (PIPE_WIDTH - 10) in out
    assert "y " * PIPE_WIDTH + "[b]" in out
    monkeypatch.setenv("COLUMNS", "50")
    assert stdout_console().width == 50
