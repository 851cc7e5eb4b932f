"""`brgsa summarize`: a summary of every report, in a side table a style, with Ray Data."""

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
from brgsa_platform.store.store import REPORT, Store, summary_name
from brgsa_platform.tracking import client as tracking

REPORTS_A_TASK = 64
WRITTEN_BY = b"brgsa"  # key in a side table's schema metadata: which summariser wrote it, for which rows


@dataclass(frozen=True)
class SummarizeResult:
    """Per style: number of reports, mean words of reports and summaries, and reports with nothing found."""

    store: str
    styles: dict[str, dict[str, float]]

    def summary(self) -> str:
        parts = [
            f"{style} ({found['words_before']:.0f} → {found['words_after']:.0f} words, {found['nothing_found']:.0f} of "
            f"{found['reports']:.0f} reports without a finding)"
            for style, found in self.styles.items()
        ]
        return f"{self.store}: {', '.join(parts)}. Next: brgsa train --data {self.store} data.style={next(iter(self.styles))}"


def summarize(store_path: Path | str, styles: Sequence[str]) -> SummarizeResult:
    """Compute summaries of the given styles; one that this summariser has written for these rows is kept.

    Raises:
        UserError: no such style or store, or the store cannot be written.
    """
    store = Store.open(store_path)
    unknown = [style for style in styles if style not in STYLES]
    if unknown or not styles:
        raise UserError(f"Summary style {unknown[0] if unknown else ''!r} is unknown: choose from {', '.join(STYLES)}.")
    results = {}
    tracking.client()  # an unreachable server stops before the work
    with ray_session():
        for style in dict.fromkeys(styles):
            with tracking.run(
                "summarize",
                name=f"summarize {style}",
                params={"style": style, "summariser": summariser_version()},
                tags={"brgsa.data": store.fingerprint, "brgsa.style": style},
            ) as run:
                texts = _texts(store, style)
                results[style] = _statistics(store, texts)
                run.log_metrics(results[style])
    return SummarizeResult(store.path, results)


@cache
def summariser_version() -> str:
    """Hash of the rule-based summariser's code and vocabulary."""
    digest = hashlib.sha256()
    for entry in sorted(files("brgsa.summaries").iterdir(), key=lambda e: e.name):
        if entry.name.endswith((".py", ".yaml")):
            digest.update(entry.read_bytes())
    return digest.hexdigest()[:12]


def _texts(store: Store, style: str) -> dict[str, str]:
    """volume_id → summary; those of volumes that were added since, or of another summariser, are computed and written."""
    if style == REPORT:
        return store.texts(REPORT)
    written = store.summary_table(style)
    wanted = {"summariser": summariser_version(), "data": store.fingerprint}
    about = json.loads((written.schema.metadata or {}).get(WRITTEN_BY, b"{}")) if written is not None else {}
    if about == wanted:
        return store.texts(style)
    reports = store.texts(REPORT)
    texts: dict[str, str] = {}
    if written is not None and about.get("summariser") == wanted["summariser"]:
        # A store only grows, and a volume's report never changes in it.
        texts = dict(zip(written["volume_id"].to_pylist(), written["summary"].to_pylist(), strict=True))
    summaries = _summarised(sorted({reports[volume] for volume in reports.keys() - texts.keys()}), style)
    texts = {volume: texts.get(volume) or summaries[report] for volume, report in reports.items()}
    _write(store, style, texts, json.dumps(wanted).encode())
    return texts


def _summarised(reports: Sequence[str], style: str) -> dict[str, str]:
    """Each report's summary; reconstructions share a report, so each is read once."""
    import ray

    set_data_context()
    blocks = -(-len(reports) // REPORTS_A_TASK)
    dataset = ray.data.from_items([{"report": report} for report in reports], override_num_blocks=blocks)
    dataset = dataset.map_batches(_summarise_batch, fn_kwargs={"style": style}, batch_size=REPORTS_A_TASK)
    found: dict[str, str] = {}
    with progress(len(reports), f"summarize {style}: reports") as advance:
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            found.update(zip(batch["report"].tolist(), batch["summary"].tolist(), strict=True))
            advance(len(batch["report"]))
    return found


def _summarise_batch(batch: dict[str, Any], style: str) -> dict[str, Any]:
    reports = batch["report"].tolist()
    return {"report": reports, "summary": summarize_many(reports, style)}


def _write(store: Store, style: str, texts: dict[str, str], about: bytes) -> None:
    table = pa.table({"volume_id": list(texts), "summary": list(texts.values())})
    name = summary_name(style)
    try:
        with store.folder.written_aside(name) as aside:
            pq.write_table(table.replace_schema_metadata({WRITTEN_BY: about}), aside, compression="zstd")
    except OSError as error:
        raise UserError(
            f"Summaries cannot be written to {store.folder.at(name)} ({short_error(error)}): mend that and run it again."
        ) from error


def _statistics(store: Store, texts: dict[str, str]) -> dict[str, float]:
    reports = store.texts(REPORT)
    count = len(texts)
    return {
        "reports": float(count),
        "words_before": sum(len(reports[volume].split()) for volume in texts) / count,
        "words_after": sum(len(text.split()) for text in texts.values()) / count,
        "nothing_found": float(sum(text == NOTHING_FOUND for text in texts.values())),
    }
