"""docs/summaries.md: its commands are those of the command line, its style is one, its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from brgsa.summaries import load_style
from brgsa_platform.cli.main import app
from brgsa_platform.jobs.commands import parse

PAGE = (Path(__file__).parents[3] / "docs" / "summaries.md").read_text()
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ brgsa ")]
INLINE = [one for one in re.findall(r"`(brgsa [^`]+)`", PAGE) if "STORE" in one]


@pytest.mark.parametrize("command", [*COMMANDS, *INLINE])
def test_a_command_is_one_that_brgsa_takes(command: str) -> None:
    words = shlex.split(command)[1:]
    verbs, name = VERBS, words[0]
    while hasattr(verbs[name], "commands"):
        verbs, words = verbs[name].commands, words[1:]
        name = words[0]
    parse(words, verbs)


def test_the_style_is_one(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    file = tmp_path / "my.yaml"
    file.write_text(block)
    style = load_style(file)
    assert (style.say, len(style.names), style.parents) == (("present", "absent"), 98, "drop")


def test_the_python_runs() -> None:
    (block,) = blocks("python")
    report = re.search(r"^> (.*(?:\n> .*)*)", PAGE, re.MULTILINE)
    assert report is not None
    names: dict[str, object] = {"report": report[1].replace("\n> ", " ")}
    exec(block, names)
    shown = re.search(r'summarize\(report, "positives"\)  # (.*)', block)
    assert shown is not None
    assert repr(names["summarize"](names["report"], "positives")) == shown[1]  # type: ignore[operator]
