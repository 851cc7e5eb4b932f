"""`brgsa summarize`: write a summary of every report, a table per style beside the shards, with Ray Data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.summaries import NOTHING_FOUND, Style, load_style, summarize_many
from brgsa.summaries.llm.claims import Claims, read_answer
from brgsa.summaries.llm.doubtful import combine
from brgsa.summaries.llm.grounding import Checked, check, is_foreign
from brgsa_platform.runtime.locks import held
from brgsa_platform.runtime.session import ray_session
from brgsa_platform.runtime.storage import Folder, short_error
from brgsa_platform.store.store import PROVENANCE, REPORT, Store, summary_file
from brgsa_platform.summaries import asking
from brgsa_platform.summaries.backends import NO_ANSWER, Answer
from brgsa_platform.summaries.mapping import mapped
from brgsa_platform.summaries.options import LlmOptions
from brgsa_platform.summaries.spending import Spending
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection


@dataclass(frozen=True)
class SummarizeResult:
    """What `summarize` did.

    Attributes:
        store: path or URL.
        styles: key of the style's column → figure → value. The figures are `reports` (volumes), `words_before` and
            `words_after` (mean words of a report and of its summary), `nothing_found` (summaries that only say so), `unread`
            (volumes with a report of which nothing was understood; their summary is empty); of a language model also those
            of `_llm_figures`.
    """

    store: str
    styles: dict[str, dict[str, float]]

    def summary(self) -> str:
        """The figures in one line, with the next command, and a warning where reports were not understood."""
        parts = [
            f"{style} ({figures['words_before']:.0f} → {figures['words_after']:.0f} words, {figures['nothing_found']:.0f} of "
            f"{figures['reports']:.0f} reports without a finding)"
            for style, figures in self.styles.items()
        ]
        line = f"{self.store}: {', '.join(parts)}. Next: brgsa train --data {self.store} data.style={next(iter(self.styles))}"
        unread = max((figures["unread"] for figures in self.styles.values()), default=0)
        if unread:
            reports = next(iter(self.styles.values()))["reports"]
            line += (
                f"\nWarning: of the reports of {unread:.0f} of {reports:.0f} volumes nothing was understood (another "
                "language, or a placeholder): their summary is empty, and training leaves them out."
            )
        return "\n".join([line, *(_llm_line(figures) for figures in self.styles.values() if "claims" in figures)])


def _llm_line(figures: dict[str, float]) -> str:
    """What a language model did, in a sentence or two."""
    line = (
        f"A language model made {figures['claims']:.0f} statements on {figures['distinct']:.0f} distinct reports: "
        f"{figures['flagged']:.0f} have no support in their report, {figures['failed']:.0f} answers could not be used; "
        f"{figures['requests']:.0f} requests, {figures['tokens_sent'] + figures['tokens_answered']:.0f} tokens, cost "
        f"{figures['cost']:.4f}."
    )
    if "sentences_asked" in figures:
        line += f" It saw {figures['sentences_asked']:.1%} of the sentences."
    if figures["unchecked"]:
        line += f" {figures['unchecked']:.0f} reports are in another language: their summaries are not checked."
    if figures["masked"]:
        line += f" {figures['masked']:.0f} names, dates and numbers were masked."
    return line


def summarize(
    store_path: Path | str,
    styles: Sequence[str | Style],
    options: LlmOptions = LlmOptions(),
    *,
    backend: str | None = None,
    model: str | None = None,
) -> SummarizeResult:
    """Compute the summaries of these styles; those that this summariser has already written for these volumes are kept.

    Args:
        store_path: path or URL of the store.
        styles: names of `brgsa.summaries.STYLES`, or YAML files.
        options: of styles that a language model writes.
        backend, model: in place of the styles' own.

    Raises:
        UserError: a style does not do (see `load_style`), there is no such store (see `Store.open`), MLflow does not answer,
            the summaries cannot be written ("summaries-unwritable"); of a language model, see `LlmOptions`, `asking.ask` and
            `locks.held`.
    """
    store = Store.open(store_path)
    chosen = _chosen(styles, backend, model)
    results = {}
    spending = Spending(options.price, options.max_cost)
    connection.client()  # a server that does not answer stops the run before the work
    with ray_session():
        for style in chosen:
            with tracking.run(
                "summarize",
                name=f"summarize {style.key}",
                params={**_about(style, options), "summariser": summariser_version()},
                tags={"brgsa.data": store.fingerprint, "brgsa.style": style.key},
            ) as run:
                texts, figures = _texts(store, style, options, spending)
                results[style.key] = _figures(store, texts) | figures
                run.log_metrics(results[style.key])
    return SummarizeResult(store.path, results)


def dry_run(
    store_path: Path | str,
    styles: Sequence[str | Style],
    options: LlmOptions,
    *,
    backend: str | None = None,
    model: str | None = None,
) -> str:
    """What `summarize` would ask and cost, with three examples; nothing is sent or written."""
    store = Store.open(store_path)
    reports = _distinct(store.texts(REPORT).values())
    lines = []
    for style in _chosen(styles, backend, model):
        if style.backend == "rules":
            lines.append(f"{style.key}: {len(reports)} distinct reports, by rules: nothing is sent, nothing to pay.")
        else:
            cache_of_style = asking.cache_of(store.folder, style, asking.identity(style), options)
            lines.append(asking.dry_run(reports, style, options, cache_of_style))
    return "\n".join(lines)


def _chosen(styles: Sequence[str | Style], backend: str | None, model: str | None) -> list[Style]:
    if not styles:
        raise UserError(
            "No summary style is given: name one with --style.", code="unknown-style", field="--style", value=""
        )
    try:
        loaded = [load_style(style) for style in styles]
    except UserError as error:
        if error.code == "unknown-style":
            error.field = "--style"
        raise
    return list(
        dict.fromkeys(style if style.form == "report" else style.with_backend(backend, model) for style in loaded)
    )


def _about(style: Style, options: LlmOptions) -> dict[str, Any]:
    """What a style's summaries depend on, for MLflow and the table's provenance."""
    about = {"style": style.name, "hash": style.hash, "backend": style.backend}
    if style.backend == "rules":
        return about
    return {
        **about,
        "model": style.model,
        "flagged": options.flagged,
        "unread": options.unread,
        "masked": options.masks(),
    }


@cache
def summariser_version() -> str:
    """Hash (12 hexadecimal digits) of the summariser's code and vocabulary."""
    digest = hashlib.sha256()
    for entry in _files(files("brgsa.summaries")):
        digest.update(entry.read_bytes())
    return digest.hexdigest()[:12]


def _files(folder: Traversable) -> list[Traversable]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            found += _files(entry)
        elif entry.name.endswith((".py", ".yaml")):
            found.append(entry)
    return found


def _distinct(reports: Any) -> list[str]:
    return sorted(set(reports))


def _texts(
    store: Store, style: Style, options: LlmOptions, spending: Spending
) -> tuple[dict[str, str], dict[str, float]]:
    """volume_id → summary, and a language model's figures. The table is written anew where volumes were added, or where
    another summariser wrote it."""
    if style.form == "report":
        return store.texts(REPORT), {}
    table = store.summary_table(style.key)
    wanted = {"summariser": summariser_version(), "data": store.fingerprint, **_about(style, options)}
    written = json.loads((table.schema.metadata or {}).get(PROVENANCE, b"{}")) if table is not None else {}
    figures = written.pop("figures", {})
    if written == wanted:
        return store.texts(style.key), figures
    reports = store.texts(REPORT)
    if style.backend != "rules":
        with held(Folder(store.folder.at(f"summaries/{style.key}")), "summarize"):
            checked, figures = _by_model(store, style, options, spending)
            texts = {volume: checked[report].summary for volume, report in reports.items()}
            columns = {
                name: [getattr(checked[r], name) for r in reports.values()] for name in ("source", "fault", "flagged")
            }
            _write(store, style.key, texts, json.dumps({**wanted, "figures": figures}).encode(), columns)
        return texts, figures
    kept: dict[str, str] = {}
    if table is not None and written.get("summariser") == wanted["summariser"]:
        # A store only grows, and a volume's report never changes in it.
        kept = dict(zip(table["volume_id"].to_pylist(), table["summary"].to_pylist(), strict=True))
    new = _by_rules(_distinct(reports[volume] for volume in reports.keys() - kept.keys()), style)
    # A volume without a report has an empty summary, so look the volume up, not its text.
    texts = {volume: kept[volume] if volume in kept else new[report] for volume, report in reports.items()}
    _write(store, style.key, texts, json.dumps(wanted).encode())
    return texts, {}


def _by_model(
    store: Store, style: Style, options: LlmOptions, spending: Spending
) -> tuple[dict[str, Checked], dict[str, float]]:
    """report → checked summary by a language model, of the store's distinct reports, and the figures of the run."""
    reports = _distinct(store.texts(REPORT).values())
    before = (spending.requests, spending.sent, spending.answered, spending.cost)
    asked = asking.questions(reports, style, options.masks(), options.unread)
    backend = asking.make_backend(style, options, spending)
    answers = asking.ask(
        asked,
        backend,
        asking.cache_of(store.folder, style, backend.model, options),
        f"summarize {style.key}: questions",
    )
    rows = [
        {"report": report, "answers": json.dumps([answers.get(text, NO_ANSWER) for text in asked.texts[report]])}
        for report in reports
    ]
    checked: dict[str, Checked] = {}
    for batch in mapped(
        rows,
        _check_batch,
        {"style": style, "policy": options.flagged, "unread": options.unread},
        f"summarize {style.key}: check",
    ):
        for report, text in zip(batch["report"].tolist(), batch["checked"].tolist(), strict=True):
            checked[report] = Checked(**json.loads(text))
    after = (spending.requests, spending.sent, spending.answered, spending.cost)
    used = [now - then for now, then in zip(after, before, strict=True)]
    return checked, _llm_figures(checked, asked, used)


def _llm_figures(checked: dict[str, Checked], asked: asking.Questions, used: Sequence[float]) -> dict[str, float]:
    """Figures of a language model's summaries.

    `distinct` reports, their `claims` by support (`by_rules`, `by_overlap`, `flagged`), answers that `failed` by fault,
    reports whose summaries are `unchecked`, and what was asked in this run: `requests`, `tokens_sent`, `tokens_answered`,
    `cost`; `masked` identifiers; of a hybrid the share of `sentences_asked`.
    """
    figures: dict[str, float] = {"distinct": float(len(checked))}
    for name in ("claims", "by_rules", "by_overlap", "flagged"):
        figures[name] = float(sum(getattr(one, name) for one in checked.values()))
    faults = Counter(one.fault for one in checked.values() if one.fault)
    figures["failed"] = float(faults.total())
    figures |= {f"fault_{fault}": float(count) for fault, count in faults.items()}
    figures["unchecked"] = float(sum(one.source == "unchecked" for one in checked.values()))
    figures |= dict(zip(("requests", "tokens_sent", "tokens_answered", "cost"), map(float, used), strict=True))
    figures["masked"] = float(asked.masked.total())
    if asked.sentences:
        figures["sentences_asked"] = asked.doubted / asked.sentences
    return figures


def _by_rules(reports: Sequence[str], style: Style) -> dict[str, str]:
    """report → summary. The reports are distinct: reconstructions of a scan share one, which is read once."""
    rows = [{"report": report} for report in reports]
    summaries: dict[str, str] = {}
    for batch in mapped(rows, _summarise_batch, {"style": style}, f"summarize {style.key}: reports"):
        summaries.update(zip(batch["report"].tolist(), batch["summary"].tolist(), strict=True))
    return summaries


def _summarise_batch(batch: dict[str, Any], style: Style) -> dict[str, Any]:
    """A task's work: the column `report`, and `summary` beside it."""
    reports = batch["report"].tolist()
    return {"report": reports, "summary": summarize_many(reports, style)}


def _check_batch(batch: dict[str, Any], style: Style, policy: str, unread: bool) -> dict[str, Any]:
    """A task's work: the column `report`, and `checked` beside it, which is a `Checked` as JSON."""
    reports = batch["report"].tolist()
    answers = [[Answer(*one) for one in json.loads(text)] for text in batch["answers"].tolist()]
    checked = [
        asdict(checked_summary(report, of_report, style, policy, unread))
        for report, of_report in zip(reports, answers, strict=True)
    ]
    return {"report": reports, "checked": [json.dumps(one) for one in checked]}


def checked_summary(report: str, answers: Sequence[Answer], style: Style, policy: str, unread: bool = False) -> Checked:
    """The summary of a report from the answers to its parts, held to it."""
    if not report.strip():
        return Checked("", source="none")
    read = [read_answer(answer.content, style, answer.cut) for answer in answers]
    faults = [one.fault for one in read if one.fault]
    claims = Claims(tuple(dict.fromkeys(claim for one in read for claim in one.claims)), faults[0] if faults else "")
    if style.backend == "hybrid" and not (unread and is_foreign(report)):
        return combine(report, claims, style)
    return check(report, claims, style, policy, unread)


def _write(
    store: Store, style: str, texts: dict[str, str], provenance: bytes, columns: dict[str, list[Any]] | None = None
) -> None:
    """Write a style's table."""
    table = pa.table({"volume_id": list(texts), "summary": list(texts.values()), **(columns or {})})
    name = summary_file(style)
    try:
        with store.folder.written_aside(name) as aside:
            pq.write_table(table.replace_schema_metadata({PROVENANCE: provenance}), aside, compression="zstd")
    except OSError as error:
        raise UserError(
            f"Summaries cannot be written to {store.folder.at(name)} ({short_error(error)}): mend that and run it again.",
            code="summaries-unwritable",
            field=name,
            value=store.path,
        ) from error


def _figures(store: Store, texts: dict[str, str]) -> dict[str, float]:
    """The figures of `SummarizeResult.styles`."""
    reports = store.texts(REPORT)
    count = len(texts)
    return {
        "reports": float(count),
        "words_before": sum(len(reports[volume].split()) for volume in texts) / count,
        "words_after": sum(len(text.split()) for text in texts.values()) / count,
        "nothing_found": float(sum(text == NOTHING_FOUND for text in texts.values())),
        "unread": float(sum(not text.strip() and bool(reports[volume].strip()) for volume, text in texts.items())),
    }
