"""The `brgsa` command, made of one module for each group of verbs, and what it does about errors.

Verbs import what they need inside themselves, so that `brgsa --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from brgsa.errors import UserError
from brgsa_platform.cli import demo, doctor, jobs, runs, search, store, summaries, ui
from brgsa_platform.cli.models import evaluate, report, scans, serving, train, weights
from brgsa_platform.runtime.console import INTERRUPTED

app = typer.Typer(
    help="Zero-shot diagnosis from 3D CT: from scans and reports to a table of diagnoses in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# In the order of `brgsa --help`.
for verb in (
    store.phantom,
    store.prepare,
    summaries.summarize,
    summaries.labels,
    train.train,
    search.tune,
    search.ablate,
    evaluate.evaluate,
    report.report,
    scans.predict,
    scans.heatmap,
    scans.embed,
    serving.register,
    serving.serve,
    weights.import_checkpoint,
    weights.export,
    ui.ui,
    demo.demo,
    jobs.submit,
    doctor.doctor,
):
    app.command()(verb)
for name, group in (("store", store.app), ("summaries", summaries.app), ("runs", runs.app), ("jobs", jobs.app)):
    app.add_typer(group, name=name)


def main(words: Sequence[str] | None = None) -> None:
    """Run a verb; exit 2 with one sentence for a user's mistake, 1 for a failure, 130 when interrupted.

    Args:
        words: the verb and its arguments; None for those of this process.
    """
    try:
        # Typer turns Ctrl-C into an exit status and returns it.
        if app(words, prog_name="brgsa", standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
    except UserError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail(
            "interrupted; what is finished is kept, the same command goes on (tune: --resume NAME)",
            INTERRUPTED,
        )
    except Exception as error:
        click_exit = getattr(error, "exit_code", None)
        if click_exit is not None and hasattr(error, "show"):
            error.show()
            sys.exit(click_exit)
        if os.environ.get("BRGSA_DEBUG"):
            raise
        _fail(f"failed: {type(error).__name__}: {_what_went_wrong(str(error))} (BRGSA_DEBUG=1 shows where)", 1)


def _what_went_wrong(text: str) -> str:
    """The line of an error's text that says it: the last of a traceback, which Ray's errors are, else the first.

    Of several lines none is taken that only points to a page.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    return next((line for line in lines if "://" not in line), lines[0])


def _fail(sentence: str, status: int) -> None:
    print(f"brgsa: {sentence}", file=sys.stderr)
    sys.exit(status)
