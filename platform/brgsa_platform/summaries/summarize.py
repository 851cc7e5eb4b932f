"""`brgsa summarize`: write a summary of every report, a table per style beside the shards, with Ray Data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brgsa.errors import UserError
from brgsa.summaries import NOTHING_FOUND, STYLES, summarize_many
from brgsa_platform.runtime.progress import progress
from brgsa_platform.runtime.session import ray_session, set_data_context
from brgsa_platform.runtime.storage import short_error
from brgsa_platform.store.store import REPORT, Store, summary_file
from brgsa_platform.tracking import client as tracking
from brgsa_platform.tracking import connection

REPORTS_PER_TASK = 64
# Key in a table's schema metadata: the summariser that wrote the table, and the store's fingerprint at that time.
PROVENANCE = b"brgsa"


@dataclass(frozen=True)
class SummarizeResult:
    """What `summarize` did.

    Attributes:
        store: path or URL.
        styles: style → figure → value. The figures are `reports` (volumes), `words_before` and `words_after` (mean words of a
            report and of its summary), `nothing_found` (summaries that only say so), `unread` (volumes with a report of which
            nothing was understood; their summary is empty).
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
        return line


def summarize(store_path: Path | str, styles: Sequence[str]) -> SummarizeResult:
    """Compute the summaries of these styles; those that this summariser has already written for these volumes are kept.

    Args:
        store_path: path or URL of the store.
        styles: any of `brgsa.summaries.STYLES`.

    Raises:
        UserError: there is no such style ("unknown-style") or store (see `Store.open`), MLflow does not answer, or the
            summaries cannot be written ("summaries-unwritable").
    """
    store = Store.open(store_path)
    unknown = [style for style in styles if style not in STYLES]
    if unknown or not styles:
        name = unknown[0] if unknown else ""
        raise UserError(
            f"Summary style {name!r} is unknown: choose from {', '.join(STYLES)}.",
            code="unknown-style",
            field="--style",
            value=name,
        )
    results = {}
    connection.client()  # a server that does not answer stops the run before the work
    with ray_session():
        for style in dict.fromkeys(styles):
            with tracking.run(
                "summarize",
                name=f"summarize {style}",
                params={"style": style, "summariser": summariser_version()},
                tags={"brgsa.data": store.fingerprint, "brgsa.style": style},
            ) as run:
                texts = _texts(store, style)
                results[style] = _figures(store, texts)
                run.log_metrics(results[style])
    return SummarizeResult(store.path, results)


@cache
def summariser_version() -> str:
    """Hash (12 hexadecimal digits) of the rule-based summariser's code and vocabulary."""
    digest = hashlib.sha256()
    for entry in sorted(files("brgsa.summaries").iterdir(), key=lambda e: e.name):
        if entry.name.endswith((".py", ".yaml")):
            digest.update(entry.read_bytes())
    return digest.hexdigest()[:12]


def _texts(store: Store, style: str) -> dict[str, str]:
    """volume_id → summary. The table is written anew where volumes were added, or where another summariser wrote it."""
    if style == REPORT:
        return store.texts(REPORT)
    table = store.summary_table(style)
    wanted = {"summariser": summariser_version(), "data": store.fingerprint}
    written = json.loads((table.schema.metadata or {}).get(PROVENANCE, b"{}")) if table is not None else {}
    if written == wanted:
        return store.texts(style)
    kept: dict[str, str] = {}
    if table is not None and written.get("summariser") == wanted["summariser"]:
        # A store only grows, and a volume's report never changes in it.
        kept = dict(zip(table["volume_id"].to_pylist(), table["summary"].to_pylist(), strict=True))
    reports = store.texts(REPORT)
    new = _summarise_reports(sorted({reports[volume] for volume in reports.keys() - kept.keys()}), style)
    # A volume without a report has an empty summary, so look the volume up, not its text.
    texts = {volume: kept[volume] if volume in kept else new[report] for volume, report in reports.items()}
    _write(store, style, texts, json.dumps(wanted).encode())
    return texts


def _summarise_reports(reports: Sequence[str], style: str) -> dict[str, str]:
    """report → summary. The reports are distinct: reconstructions of a scan share one, which is read once."""
    import ray

    set_data_context()
    blocks = -(-len(reports) // REPORTS_PER_TASK)
    dataset = ray.data.from_items([{"report": report} for report in reports], override_num_blocks=blocks)
    dataset = dataset.map_batches(_summarise_batch, fn_kwargs={"style": style}, batch_size=REPORTS_PER_TASK)
    summaries: dict[str, str] = {}
    with progress(len(reports), f"summarize {style}: reports") as advance:
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            summaries.update(zip(batch["report"].tolist(), batch["summary"].tolist(), strict=True))
            advance(len(batch["report"]))
    return summaries


def _summarise_batch(batch: dict[str, Any], style: str) -> dict[str, Any]:
    """A task's work: the column `report`, and `summary` beside it."""
    reports = batch["report"].tolist()
    return {"report": reports, "summary": summarize_many(reports, style)}


def _write(store: Store, style: str, texts: dict[str, str], provenance: bytes) -> None:
    """Write a style's table."""
    table = pa.table({"volume_id": list(texts), "summary": list(texts.values())})
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
