"""`brgsa summaries fidelity`: how true a store's summaries are, style by style."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brgsa import files
from brgsa.config import TextConfig
from brgsa.errors import UserError
from brgsa.summaries import known_names, load_style
from brgsa.summaries.fidelity import FLIPPED, INVENTED, LOST, Fidelity, Judged, fidelity, judge_many
from brgsa.summaries.styles import is_file
from brgsa_platform.runtime.console import print_line, print_table, table
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.runtime.storage import short_error
from brgsa_platform.store.store import GIVEN, REPORT, Store
from brgsa_platform.summaries.mapping import mapped
from brgsa_platform.tracking import client as tracking

COLUMNS = (
    ("reports", "reports", "{:.0f}"),
    ("lost", "lost_share", "{:.2%}"),
    ("invented", "invented_share", "{:.2%}"),
    ("flipped", "flipped_share", "{:.2%}"),
    ("words before", "words_before", "{:.0f}"),
    ("after", "words_after", "{:.1f}"),
    ("over the limit", "over_limit", "{:.1%}"),
    ("identical", "identical", "{:.1%}"),
    ("nothing found", "nothing_found", "{:.1%}"),
)


@dataclass(frozen=True)
class StoreFidelity:
    """The figures of a store's styles.

    Attributes:
        truth: what the summaries are held to: "labels" of the archive, or "rules" (what they read in the reports).
        styles: the style's column → figures.
        worst: style's column → the volumes of the worst summaries and what is wrong in each.
    """

    store: str
    truth: str
    styles: dict[str, Fidelity]
    worst: dict[str, list[tuple[str, Judged]]]

    def print(self) -> None:
        """Print a line a style."""
        rows = [
            [key, *(form.format(getattr(one, name)) for _, name, form in COLUMNS)] for key, one in self.styles.items()
        ]
        print_table(table(("style", *(head for head, _, _ in COLUMNS)), rows, right=range(1, len(COLUMNS) + 1)))
        held_to = "the archive's labels" if self.truth == "labels" else "what the rules read in the reports"
        print_line(f"Held to {held_to}; lost of what is there, invented and flipped of what is stated.")


def store_fidelity(
    store_path: Path | str,
    styles: Sequence[str] = (),
    *,
    text: TextConfig = TextConfig(),
    worst_file: Path | None = None,
    worst: int = 20,
) -> StoreFidelity:
    """Hold the summaries of a store to its labels, or where it has none to what the rules read; the table goes to MLflow.

    Args:
        styles: columns of the store, or styles by file; default all.
        text: the text tower whose limit counts.
        worst_file: a local CSV of the worst summaries by volume id; these go nowhere else.
        worst: how many for each style.

    Raises:
        UserError: see `Store.open` and `Store.texts`; the store has no summaries ("no-summaries"); the file cannot be written
            ("worst-unwritable").
    """
    store = Store.open(store_path)
    keys = [load_style(style).key if is_file(style) else style for style in styles] or store.styles()
    if not keys:
        raise UserError(
            f"{store.path} holds no summaries: write some with `brgsa summarize`.",
            code="no-summaries",
            value=store.path,
        )
    given = _labels(store, [name for name in store.labels if name in known_names()])
    names = tuple(name for name in store.labels if any(of_volume.get(name) is not None for of_volume in given.values()))
    if store.label_source != GIVEN:
        names = ()  # they were read by the rules, or in these summaries
    truth = "labels" if names else "rules"
    names = names or load_style("positives").names
    figures, cases = {}, {}
    with (
        ray_session(),
        tracking.run(
            "summaries", name="fidelity", params={"truth": truth}, tags={"brgsa.data": store.fingerprint}
        ) as run,
    ):
        for key in keys:
            rows, judged = _judged(store, key, names, given if truth == "labels" else None)
            reports, summaries = [row["report"] for row in rows], [row["summary"] for row in rows]
            of_rows = [judged[row["volume"]] for row in rows]
            figures[key] = fidelity(reports, summaries, of_rows, over_limit(summaries, text))
            ordered = sorted(judged.items(), key=lambda item: (-item[1].wrong, item[0]))
            cases[key] = [(volume, one) for volume, one in ordered[:worst] if one.wrong]
        columns = {name: [getattr(one, name) for one in figures.values()] for name in Fidelity.__dataclass_fields__}
        run.log_table("fidelity.json", {"style": list(figures), "truth": [truth] * len(figures), **columns})
        run.log_metrics(
            {f"{_metric(key)}/{name}": v for key, one in figures.items() for name, v in asdict(one).items()}
        )
    if worst_file is not None:
        _write_worst(worst_file, cases)
    return StoreFidelity(store.path, truth, figures, cases)


def _judged(
    store: Store, key: str, names: Sequence[str], labels: dict[str, dict[str, bool | None]] | None
) -> tuple[list[dict[str, Any]], dict[str, Judged]]:
    """A row for one volume of each distinct report, with its summary in a style, and the verdicts on each."""
    reports, summaries = store.texts(REPORT), store.texts(key)
    rows = [
        {
            "volume": volume,
            "report": reports[volume],
            "summary": summaries[volume],
            "labels": json.dumps(labels[volume] if labels is not None else None),
        }
        for volume in _one_of_each_report(store)
    ]
    judged: dict[str, Judged] = {}
    for batch in mapped(rows, _judge_batch, {"names": names}, f"fidelity {key}"):
        for volume, verdicts in zip(batch["volume"].tolist(), batch["verdicts"].tolist(), strict=True):
            judged[volume] = Judged(json.loads(verdicts))
    return rows, judged


def over_limit(summaries: Sequence[str], text: TextConfig) -> Callable[[str], bool]:
    """Whether a summary is longer than a text tower reads. A small tower's vocabulary is trained on these summaries."""
    from transformers import AutoTokenizer

    from brgsa.text import as_read, train_tokenizer

    read = as_read([summary for summary in summaries if summary.strip()], text.form)
    if text.name == "small":
        try:
            tokenizer: Any = train_tokenizer(sorted(set(read)), text.vocabulary)
        except UserError:  # too few words to train on: none of so few is long
            return lambda summary: False
    else:
        tokenizer = AutoTokenizer.from_pretrained(text.name)
    return lambda summary: len(tokenizer(as_read([summary], text.form)[0])["input_ids"]) > text.max_tokens


def _one_of_each_report(store: Store) -> list[str]:
    first: dict[str, str] = {}
    for volume, report in store.texts(REPORT).items():
        if report.strip():
            first.setdefault(report, volume)
    return list(first.values())


def _labels(store: Store, names: Sequence[str]) -> dict[str, dict[str, bool | None]]:
    rows = store.index(["volume_id", "labels"]).to_pylist()
    return {
        row["volume_id"]: {
            name: None if (value := (row["labels"] or {}).get(name)) is None else bool(value) for name in names
        }
        for row in rows
    }


def _judge_batch(batch: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    labels = [json.loads(text) for text in batch["labels"].tolist()]
    judged = judge_many(
        batch["report"].tolist(), batch["summary"].tolist(), names, None if labels[0] is None else labels
    )
    return {"volume": batch["volume"].tolist(), "verdicts": [json.dumps(one.verdicts) for one in judged]}


def _metric(key: str) -> str:
    return key.replace("+", "_and_")  # MLflow takes no plus sign in a metric's name


def _write_worst(file: Path, cases: dict[str, list[tuple[str, Judged]]]) -> None:
    try:
        with files.written_aside(file) as aside, aside.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["style", "volume_id", LOST, INVENTED, FLIPPED])
            for key, of_style in cases.items():
                for volume, one in of_style:
                    kinds = [
                        "; ".join(n for n, v in one.verdicts.items() if v == kind) for kind in (LOST, INVENTED, FLIPPED)
                    ]
                    writer.writerow([key, volume, *kinds])
    except OSError as error:
        raise UserError(
            f"The worst cases cannot be written to {file} ({short_error(error)}): name a file in a folder that can be.",
            code="worst-unwritable",
            field="--worst",
            value=str(file),
        ) from error
