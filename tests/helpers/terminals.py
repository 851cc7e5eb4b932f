"""Processes at a terminal of their own, and what they print."""

from __future__ import annotations

import os
import pty
import subprocess


class Terminal:
    """Give `theirs` to a process as standard input and error; `answer` its questions."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()

    def answer(self, question: str, text: str) -> None:
        shown = b""
        while question.encode() not in shown:
            shown += os.read(self.ours, 1000)
        os.write(self.ours, text.encode())


def await_line(process: subprocess.Popen[str], line: str) -> list[str]:
    """What it printed up to this line."""
    assert process.stdout is not None
    printed = []
    while (text := process.stdout.readline()) != f"{line}\n":
        assert text, process.poll()
        printed.append(text.strip())
    return printed
