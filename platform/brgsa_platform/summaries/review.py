"""`brgsa summaries review`: a sample of reports for a radiologist, and the agreement with what the summaries say.

The radiologist sees reports and names of abnormalities, not the summaries. Both files hold patients' data: they stay local.
"""

from __future__ import annotations

import csv
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from brgsa import files
from brgsa.errors import UserError
from brgsa.summaries import STYLES, Status, known_names, load_style
from brgsa.summaries.agreement import Kappa, kappa
from brgsa.summaries.fidelity import FLIPPED, INVENTED, LOST, RIGHT, verdict
from brgsa.summaries.reader import read
from brgsa.summaries.vocabulary import open_vocabulary
from brgsa_platform.runtime.console import print_line, print_table, table
from brgsa_platform.runtime.storage import short_error
from brgsa_platform.store.store import REPORT, Store

SHEET, PAGE = "review.csv", "review.html"
COLUMNS = ("case", "volume_id", "abnormality", "verdict")
VERDICTS = ("present", "absent", "uncertain", "not mentioned")
OTHERS = 3  # abnormalities beside those that the summary or the rules name: what all have missed


@dataclass(frozen=True)
class Case:
    """One report of the sample, and the abnormalities that are asked about."""

    volume: str
    report: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """What a radiologist's verdicts say of a style's summaries.

    Attributes:
        by_name: abnormality → kappa of "present" against the radiologist's, and "" → that of all together.
        errors: abnormality → "right", "lost", "invented", "flipped" → verdicts; see `brgsa.summaries.fidelity`.
        empty: rows without a verdict.
    """

    style: str
    by_name: dict[str, Kappa]
    errors: dict[str, Counter[str]]
    empty: int

    def print(self) -> None:
        """Print a line an abnormality, and one for all."""
        rows = []
        for name, one in self.by_name.items():
            errors = self.errors[name]
            interval = "" if np.isnan(one.value) else f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
            counts = [f"{errors[kind]:,}" for kind in (LOST, INVENTED, FLIPPED)]
            rows.append([name or "all", f"{one.verdicts:,}", f"{one.agreed:.1%}", interval, *counts])
        heads = ("abnormality", "verdicts", "agreed", "kappa (95 %)", LOST, INVENTED, FLIPPED)
        print_table(table(heads, rows, right=range(1, 7)))
        print_line(f"Style {self.style}; {self.empty} rows without a verdict are left out.")


def make_review(store_path: Path | str, style: str, out: Path, count: int = 60, seed: int = 0) -> list[Case]:
    """Write the sample as CSV and as an HTML sheet into a local folder.

    Raises:
        UserError: see `Store.open` and `Store.texts`; the files cannot be written ("review-unwritable").
    """
    store = Store.open(store_path)
    cases = _cases(store, style, count, np.random.default_rng(seed))
    rows = [(number, case.volume, name, "") for number, case in enumerate(cases, 1) for name in case.names]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with files.written_aside(out / SHEET) as aside, aside.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened).writerows([COLUMNS, *rows])
        with files.written_aside(out / PAGE) as aside:
            aside.write_text(_page(cases), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The review cannot be written to {out} ({short_error(error)}): name another folder.",
            code="review-unwritable",
            field="--out",
            value=str(out),
        ) from error
    return cases


def read_review(store_path: Path | str, style: str, sheet: Path) -> Agreement:
    """The agreement of a style's summaries with the verdicts in a CSV.

    Raises:
        UserError: the file cannot be read ("review-unreadable"), or a row is none of this store's ("review-row", with its
            number); no row has a verdict ("no-verdicts").
    """
    store = Store.open(store_path)
    summaries, reports = store.texts(style), store.texts(REPORT)
    rows = _rows(sheet, summaries)
    given = [row for row in rows if row["verdict"]]
    if not given:
        raise UserError(
            f"No row of {sheet} has a verdict: fill the column 'verdict'.", code="no-verdicts", field="verdict"
        )
    volumes = list(dict.fromkeys(row["volume_id"] for row in given))
    said = dict(zip(volumes, _statuses([summaries[volume] for volume in volumes]), strict=True))
    cases = {report: number for number, report in enumerate(dict.fromkeys(reports[volume] for volume in volumes))}
    verdicts = [
        (
            row["abnormality"],
            said[row["volume_id"]].get(row["abnormality"]),
            row["verdict"],
            cases[reports[row["volume_id"]]],
        )
        for row in given
    ]
    by_name, errors = {}, {}
    for name in ("", *dict.fromkeys(row["abnormality"] for row in given)):
        chosen = [one for one in verdicts if name in ("", one[0])]
        by_name[name] = kappa(
            np.array([status is Status.PRESENT for _, status, _, _ in chosen]),
            np.array([given == "present" for _, _, given, _ in chosen]),
            np.array([case for _, _, _, case in chosen]),
        )
        errors[name] = Counter(_error(status, given) for _, status, given, _ in chosen)
    return Agreement(style, by_name, errors, len(rows) - len(given))


def _error(said: Status | None, given: str) -> str:
    denied = Status.ABSENT if given == "absent" else None
    return verdict(given == "present", said, denied) or RIGHT


def _statuses(texts: Sequence[str]) -> list[dict[str, Status]]:
    return [reading.statuses for reading in read(texts, open_vocabulary())]


def _cases(store: Store, style: str, count: int, rng: np.random.Generator) -> list[Case]:
    """A sample with as many reports for each abnormality that the summaries state as for any other, the rarest first."""
    reports, summaries = store.texts(REPORT), store.texts(style)
    first: dict[str, str] = {}
    for volume, report in reports.items():
        if report.strip() and summaries[volume].strip():
            first.setdefault(report, volume)
    volumes = list(first.values())
    said = dict(zip(volumes, _statuses([summaries[volume] for volume in volumes]), strict=True))
    strata: dict[str, list[str]] = {"": [v for v in volumes if Status.PRESENT not in said[v].values()]}
    for volume in volumes:
        for name, status in said[volume].items():
            if status is Status.PRESENT:
                strata.setdefault(name, []).append(volume)
    waiting = [list(rng.permutation(of)) for _, of in sorted(strata.items(), key=lambda item: (len(item[1]), item[0]))]
    chosen: dict[str, None] = {}
    while any(waiting) and len(chosen) < count:
        for stratum in waiting:
            fresh = next((volume for volume in stratum if volume not in chosen), None)
            stratum[:] = [volume for volume in stratum if volume not in chosen and volume != fresh]
            if fresh is not None and len(chosen) < count:
                chosen[str(fresh)] = None
    by_rules = dict(zip(chosen, _statuses([reports[volume] for volume in chosen]), strict=True))
    asked = _asked(style)
    return [
        Case(volume, reports[volume], _names(asked, {*said[volume], *by_rules[volume]}, rng))
        for volume in sorted(chosen)
    ]


def _asked(style: str) -> tuple[str, ...]:
    """The abnormalities that a style speaks of: all known ones, unless it is a shipped one of fewer."""
    return load_style(style).names if style in STYLES else known_names()


def _names(asked: Sequence[str], named: set[str], rng: np.random.Generator) -> tuple[str, ...]:
    others = [name for name in asked if name not in named]
    drawn = set(rng.permutation(others)[:OTHERS].tolist())
    return tuple(name for name in asked if name in named or name in drawn)


def _page(cases: Sequence[Case]) -> str:
    """The HTML sheet: it works without a network and sends nothing."""
    parts = []
    for number, case in enumerate(cases, 1):
        rows = "".join(
            f'<tr data-case="{number}" data-volume="{html.escape(case.volume)}" data-name="{html.escape(name)}">'
            f"<th>{html.escape(name)}</th>"
            + "".join(
                f'<td><label><input type="radio" name="{number}-{i}" value="{one}"> {one}</label></td>'
                for one in VERDICTS
            )
            + "</tr>"
            for i, name in enumerate(case.names)
        )
        parts.append(f"<section><h2>{number}</h2><p>{html.escape(case.report)}</p><table>{rows}</table></section>")
    template = resources.files(__package__).joinpath("review.html").read_text(encoding="utf-8")
    return template.replace("<!-- cases -->", "\n".join(parts))


def _rows(sheet: Path, summaries: Mapping[str, str]) -> list[dict[str, str]]:
    try:
        with sheet.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            rows = [{name: (row.get(name) or "").strip() for name in COLUMNS} for row in reader]
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"The verdicts in {sheet} cannot be read: give the CSV that `brgsa summaries review` wrote, in UTF-8.",
            code="review-unreadable",
            field=str(sheet),
        ) from error
    if missing:
        raise UserError(
            f"{sheet} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}.",
            code="review-unreadable",
            field=missing[0],
        )
    known = set(known_names())
    for number, row in enumerate(rows, 2):
        row["verdict"] = row["verdict"].lower()
        for field, fits in (
            ("volume_id", row["volume_id"] in summaries),
            ("abnormality", row["abnormality"] in known),
            ("verdict", row["verdict"] in ("", *VERDICTS)),
        ):
            if not fits:
                raise UserError(
                    f"{sheet}, line {number}: {field} is none that this store and review know; verdicts are "
                    f"{', '.join(VERDICTS)}.",
                    code="review-row",
                    field=field,
                    value=number,
                )
    return rows
