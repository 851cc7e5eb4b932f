"""How true must a summary be, and which style serves best: the demo's model on one store of the phantom, several seeds.

    python benchmarks/summary_truth.py [--scans N] [--epochs N] [--width W] [--seeds S] [--arms NAME …] [--out DIR] [--json]

An arm is a summary style, or `positives` with a share of its statements corrupted: in equal parts lost, turned round ("There
is no …") and followed by one that is invented. AUROC on the test split, as a mean over the seeds with their standard
deviation; all arms see the same volumes for a seed. `--out` keeps the store and what was measured: the same command goes on.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from arms import NAMES, Budget, Comparison, command

from brgsa.summaries import NOTHING_FOUND, statement
from brgsa.text import split_sentences
from brgsa_platform.store.store import Store, summary_file
from brgsa_platform.summaries.summarize import summarize

STYLES = ("positives", "positives+negatives", "findings", "impression", "by-anatomy", "short", "report")
SHARES = (5, 10, 20)  # % of the statements
CORRUPTED = {f"positives, {share} % corrupted": share for share in SHARES}
ARMS = (*STYLES, *CORRUPTED)


def corrupted(summary: str, share: float, rng: np.random.Generator) -> str:
    """A summary of positives in which each statement is corrupted with this probability."""
    out = []
    for said in [] if summary == NOTHING_FOUND else split_sentences(summary):
        kind = rng.choice(["lost", "flipped", "invented"]) if rng.random() < share else ""
        if kind != "lost":
            out.append(said.replace("There is ", "There is no ") if kind == "flipped" else said)
        if kind == "invented":
            absent = [name for name in NAMES if statement(name).rstrip(".") not in summary]
            out.append(statement(str(rng.choice(absent))))
    return " ".join(out) or NOTHING_FOUND


def column(arm: str) -> str:
    """The store's column of an arm."""
    return f"corrupted-{CORRUPTED[arm]}" if arm in CORRUPTED else arm


def write_columns(store: Path) -> None:
    """The styles, and the corrupted positives; volumes with equal reports get equal summaries."""
    summarize(store, [style for style in STYLES if style != "report"])
    opened = Store.open(store)
    reports, positives = opened.texts("report"), opened.texts("positives")
    for arm, share in CORRUPTED.items():
        texts = {
            volume: corrupted(
                summary, share / 100, np.random.default_rng([share, zlib.crc32(reports[volume].encode())])
            )
            for volume, summary in positives.items()
        }
        file = store / summary_file(column(arm))
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"volume_id": list(texts), "summary": list(texts.values())}), file)


COMPARISON = Comparison(
    "summary_truth",
    "summaries",
    {arm: [f"data.style={column(arm)}"] for arm in ARMS},
    "positives",
    ("common", "rare"),
    write_columns,
)


def main(arguments: Sequence[str] | None = None) -> int:
    return command(COMPARISON, (__doc__ or "").splitlines()[0], Budget(500, 5, 8), "--arms", arguments)


if __name__ == "__main__":
    sys.exit(main())
