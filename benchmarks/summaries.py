"""How well the rule-based reader finds CT-RATE's 18 abnormalities in real reports, and how fast.

    python benchmarks/summaries.py --reports FILE.csv [--held-out-from ROW] [--json]

FILE is a CSV with a column `report_text` and one 0/1 column per abnormality of CT-RATE. Beside the reader stands its peer
of the same run: the same vocabulary without any judgement of denial, doubt or past.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from brgsa.errors import UserError
from brgsa.labels import CT_RATE
from brgsa.summaries import Status, read_many, read_mentions
from brgsa.summaries.vocabulary import vocabulary

TEXT = "report_text"
Sets = Sequence[set[str]]
Scores = dict[str, tuple[float, float, float]]


def load(path: Path) -> tuple[list[str], list[set[str]]]:
    """The reports and the set of abnormalities labelled 1 in each."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            rows = list(table)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a CSV of reports with --reports") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is not a CSV in UTF-8; give one with column {TEXT!r} and the 18 abnormalities"
        ) from error
    if missing := [name for name in (TEXT, *CT_RATE) if name not in (table.fieldnames or [])]:
        raise UserError(f"{path} has no column {missing[0]!r}; it needs {TEXT!r} and CT-RATE's 18 abnormalities")
    if not rows:
        raise UserError(f"{path} holds no report; give a CSV with at least one row")
    for number, row in enumerate(rows):
        if wrong := [name for name in CT_RATE if row[name] not in {"0", "1", "0.0", "1.0"}]:
            raise UserError(f"{path}, row {number}: {wrong[0]!r} is {row[wrong[0]]!r}; labels are 0 or 1")
    return [row[TEXT] for row in rows], [{name for name in CT_RATE if float(row[name])} for row in rows]


def score(found: Sets, true: Sets) -> Scores:
    """Precision, recall and F1 per abnormality; an abnormality that nobody has and nobody finds scores 1."""
    out = {}
    for name in CT_RATE:
        hits = sum(name in f and name in t for f, t in zip(found, true, strict=True))
        named, labelled = sum(name in f for f in found), sum(name in t for t in true)
        out[name] = (
            hits / named if named else float(not labelled),
            hits / labelled if labelled else 1.0,
            2 * hits / (named + labelled) if named + labelled else 1.0,
        )
    return out


def macro(scores: Scores) -> float:
    return sum(f1 for _, _, f1 in scores.values()) / len(scores)


def run(path: Path, held_out_from: int | None) -> dict[str, object]:
    """Print the table, return the figures."""
    reports, true = load(path)
    cut = held_out_from if held_out_from is not None else len(reports) // 2
    if not 0 < cut < len(reports):
        raise UserError(f"--held-out-from {cut} leaves one part of {len(reports)} reports empty; give a row in between")
    read_many(["Warm-up: no nodule."])
    start = time.perf_counter()
    statuses = read_many(reports)
    seconds = time.perf_counter() - start
    present = [{name for name, status in of_report.items() if status is Status.PRESENT} for of_report in statuses]
    normal = {entry.name: entry.denies for entry in vocabulary().entries}
    named = [
        {mention.name for mention in mentions if not normal[mention.name](mention.clause.lower())}
        for mentions in read_mentions(reports)
    ]

    scores, peer = score(present, true), score(named, true)
    print(f"{'abnormality':36}{'reports':>8}{'precision':>11}{'recall':>8}{'F1':>7}{'  F1, terms only':>17}")
    for name, (precision, recall, f1) in scores.items():
        count = sum(name in labels for labels in true)
        print(f"{name:36}{count:8d}{precision:11.3f}{recall:8.3f}{f1:7.3f}{peer[name][2]:17.3f}")
    figures = {
        "macro_f1": macro(scores),
        "macro_f1_terms_only": macro(peer),
        "macro_f1_tuned_on": macro(score(present[:cut], true[:cut])),
        "macro_f1_held_out": macro(score(present[cut:], true[cut:])),
        "macro_f1_held_out_terms_only": macro(score(named[cut:], true[cut:])),
        "reports": len(reports),
        "held_out_from": cut,
        "reports_per_second": len(reports) / seconds,
    }
    ratios = {
        "macro_f1_over_terms_only": figures["macro_f1"] / figures["macro_f1_terms_only"],
        "held_out_over_terms_only": figures["macro_f1_held_out"] / figures["macro_f1_held_out_terms_only"],
    }
    print(
        f"\nmacro-F1 {figures['macro_f1']:.3f} over {len(reports)} reports; same terms without judging denial, doubt and"
    )
    print(f"past {figures['macro_f1_terms_only']:.3f}, ratio {ratios['macro_f1_over_terms_only']:.3f}")
    print(f"rows 0-{cut - 1} (tuned on) {figures['macro_f1_tuned_on']:.3f}, ", end="")
    print(f"rows {cut}-{len(reports) - 1} (held out) {figures['macro_f1_held_out']:.3f}")
    print(f"{figures['reports_per_second']:.0f} reports/s in one process")
    return {
        "benchmark": "summaries",
        "ratios": ratios,
        "figures": figures | {"f1": {n: s[2] for n, s in scores.items()}},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--reports", type=Path, required=True, help="CSV with report_text and CT-RATE's 18 label columns"
    )
    parser.add_argument(
        "--held-out-from", type=int, metavar="ROW", help="first row not looked at while tuning (default: the middle)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line at the end")
    options = parser.parse_args(arguments)
    try:
        result = run(options.reports, options.held_out_from)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
