"""How true a language model's summaries are, and how many of its wrong statements the check against the report catches.

    python benchmarks/summary_fidelity.py --reports FILE.csv --endpoint URL [--style YAML] [--rows A:B] [--cache FOLDER]

FILE is a CSV with a column `report_text` and one 0/1 column per abnormality of CT-RATE. `python tests/helpers/smollm.py` serves
SmolLM2-135M. A statement is wrong where the given label says so: it states what is labelled 0 (invented; flipped where the
report denies it), or denies what is labelled 1 (flipped).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from summaries import load

from brgsa.errors import UserError
from brgsa.labels import CT_RATE
from brgsa.summaries import Status, load_style, read_many, summarize_many
from brgsa.summaries.fidelity import FLIPPED, INVENTED, RIGHT, fidelity, judge_many, verdict
from brgsa.summaries.llm.claims import Claim, read_answer
from brgsa.summaries.llm.grounding import POLICIES, Support, ground
from brgsa.summaries.styles import Style
from brgsa_platform.runtime.storage import Folder
from brgsa_platform.summaries import asking
from brgsa_platform.summaries.options import LlmOptions
from brgsa_platform.summaries.spending import Spending
from brgsa_platform.summaries.summarize import checked_summary


def caught(
    claims: Sequence[Sequence[Claim]], reports: Sequence[str], true: Sequence[set[str]]
) -> tuple[Counter[str], Counter[str]]:
    """verdict → statements, and those of them that the check flags; a statement is a claim about one of CT-RATE's 18."""
    made, flagged = Counter[str](), Counter[str]()
    for of_report, report, labels, read in zip(claims, reports, true, read_many(reports), strict=True):
        for claim, support in zip(of_report, ground(of_report, report), strict=True):
            for name, status in claim.findings:
                if name not in CT_RATE or status is Status.UNCERTAIN:
                    continue
                kind = verdict(name in labels, status, read.get(name)) or RIGHT
                made[kind] += 1
                flagged[kind] += support is Support.NONE
    return made, flagged


def run(path: Path, rows: slice, style: Style, options: LlmOptions) -> dict[str, object]:
    """Print the tables, return the figures."""
    all_reports, all_true = load(path)
    reports, true = all_reports[rows], all_true[rows]
    asked = asking.questions(reports, style, masked=False)
    backend = asking.make_backend(style, options, Spending())
    answers = asking.ask(asked, backend, asking.cache_of(Folder("."), style, backend.model, options), "reports")
    of_reports = [[answers[text] for text in asked.texts[report]] for report in reports]
    read = [[read_answer(one.content, style, one.cut) for one in of_report] for of_report in of_reports]
    claims = [[claim for one in of_report for claim in one.claims] for of_report in read]
    faults = Counter(one.fault for of_report in read for one in of_report if one.fault)
    made, flagged = caught(claims, reports, true)
    wrong, hit = made[INVENTED] + made[FLIPPED], flagged[INVENTED] + flagged[FLIPPED]
    print(
        f"{len(reports)} reports, {sum(map(len, claims))} claims, {made.total()} about CT-RATE's 18; unusable: {dict(faults)}"
    )
    for kind in (RIGHT, INVENTED, FLIPPED):
        print(
            f"{kind:10}{made[kind]:6} statements, flagged {flagged[kind]:5} ({flagged[kind] / max(1, made[kind]):.1%})"
        )
    print(f"invented or flipped: {hit} of {wrong} caught ({hit / max(1, wrong):.1%})\n")

    labels = [{name: name in of_report for name in CT_RATE} for of_report in true]
    by_policy = {
        policy: [checked_summary(r, a, style, policy).summary for r, a in zip(reports, of_reports, strict=True)]
        for policy in POLICIES
    }
    by_policy["rules alone"] = summarize_many(reports, style)
    print(f"{'flagged are':14}{'statements':>11}{'lost':>8}{'invented':>10}{'flipped':>9}{'words':>8}{'identical':>11}")
    table = {}
    for policy, summaries in by_policy.items():
        judged = judge_many(reports, summaries, CT_RATE, labels)
        figures = fidelity(reports, summaries, judged, lambda text: False)
        table[policy] = {
            name: getattr(figures, name)
            for name in ("statements", "lost", "invented", "flipped", "words_after", "identical")
        }
        print(
            f"{policy:14}{figures.statements:11d}{figures.lost:8d}{figures.invented:10d}{figures.flipped:9d}"
            f"{figures.words_after:8.1f}{figures.identical:11.1%}"
        )
    return {
        "benchmark": "summary_fidelity",
        "ratios": {"caught": hit / max(1, wrong), "right_flagged": flagged[RIGHT] / max(1, made[RIGHT])},
        "figures": {"style": style.key, "reports": len(reports), "made": made, "flagged": flagged, "policies": table},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--reports", type=Path, required=True, help="CSV with report_text and CT-RATE's 18 label columns"
    )
    parser.add_argument("--endpoint", required=True, help="an OpenAI-compatible URL")
    parser.add_argument("--style", type=Path, default=Path(__file__).with_name("smollm.yaml"))
    parser.add_argument(
        "--rows", default="400:600", metavar="A:B", help="rows of the CSV (default: 400:600, never tuned on)"
    )
    parser.add_argument("--cache", default="answers", help="folder of the answers")
    parser.add_argument("--answer-tokens", type=int, default=220)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line at the end")
    given = parser.parse_args(arguments)
    try:
        rows = slice(*(int(part) if part else None for part in given.rows.split(":")))
        options = LlmOptions(
            endpoint=given.endpoint, cache=given.cache, concurrency=1, answer_tokens=given.answer_tokens, timeout=600.0
        )
        result = run(given.reports, rows, load_style(given.style), options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
